"""Rollouts: pairing, noise, rewards at the right place."""

from dataclasses import replace

import pytest
import torch

from t2mv_core.rewards.base import RewardResult
from t2mv_core.samplers import SamplingSettings
from training.rollout import NonFiniteError, Rewards, RolloutSettings, collect, paired_noise
from training.setup import make_policy

REQUESTS = [(0, "a cat"), (1, "a dog"), (2, "an ant")]


@pytest.fixture
def policy(tiny_bundle, tiny_config):
    return make_policy(tiny_config(), tiny_bundle)


def settings(batch_size=3, samplers=("standard", "zmv")):
    return RolloutSettings(samplers, SamplingSettings(num_steps=2), batch_size, seed=0)


def test_both_trajectories_start_from_the_same_noise(policy, plain_rewards):
    rollout = collect(policy, plain_rewards, settings(), 1, REQUESTS)
    standard, zmv = (scored.trajectory for scored in rollout.sets)
    # the second sampler's first state is the zigzag's x̃, so compare what both were given
    shape = torch.Size((1, 2, 4, 8, 8))
    first, second = (paired_noise(0, 1, [2], number) for number in (0, 1))
    assert torch.equal(first(shape), second(shape))
    assert not torch.equal(first(shape), second(shape))
    assert torch.equal(standard.states[2, :, 0], paired_noise(0, 1, [2], 0)(shape)[0])
    assert not torch.equal(zmv.states[2, :, 0], standard.states[2, :, 0])


def test_two_standard_samples_differ_only_after_the_start(policy, plain_rewards):
    rollout = collect(policy, plain_rewards, settings(samplers=("standard", "standard")), 1, REQUESTS)
    first, second = (scored.trajectory for scored in rollout.sets)
    assert torch.equal(first.states[:, :, 0], second.states[:, :, 0])
    assert not torch.equal(first.actions[:, :, 0], second.actions[:, :, 0])


def test_a_prompt_does_not_depend_on_its_batch(policy, plain_rewards):
    together = collect(policy, plain_rewards, settings(3), 1, REQUESTS)
    alone = collect(policy, plain_rewards, settings(1), 1, REQUESTS)
    last = collect(policy, plain_rewards, settings(3), 1, REQUESTS[2:])
    for number in (0, 1):
        ours = together.sets[number]
        torch.testing.assert_close(
            alone.sets[number].trajectory.actions, ours.trajectory.actions, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(last.sets[number].scores.view, ours.scores.view[2:], atol=1e-4, rtol=0)


def test_another_iteration_has_other_noise(policy, plain_rewards):
    first, second = (collect(policy, plain_rewards, settings(), iteration, REQUESTS) for iteration in (1, 2))
    assert not torch.equal(first.sets[0].trajectory.states, second.sets[0].trajectory.states)


def test_every_view_is_scored_with_its_own_prompt(policy):
    seen = []

    def view(images, prompts):
        seen.append((len(images), list(prompts)))
        return RewardResult(torch.arange(len(images)).float())

    def joint(images, prompts):
        seen.append((len(images), list(prompts)))
        return RewardResult(torch.arange(len(prompts)).float())

    scores = Rewards(view, joint).score(torch.zeros(2, 3, 3, 4, 4), ["a", "b"])
    assert seen == [(6, ["a", "a", "a", "b", "b", "b"]), (6, ["a", "b"])]
    torch.testing.assert_close(scores.view, torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(scores.joint, torch.tensor([0.0, 1]))


@pytest.mark.parametrize("role", ["view", "joint"])
def test_a_reward_that_is_no_number_names_its_prompt(plain_rewards, role):
    def broken(images, prompts):
        return RewardResult(torch.tensor([torch.inf if prompt == "b" else 0.0 for prompt in prompts]))

    with pytest.raises(NonFiniteError, match=f"The {role} reward of 'b'"):
        replace(plain_rewards, **{role: broken}).score(torch.zeros(2, 3, 3, 4, 4), ["a", "b"])
