"""Rollouts: pairing, noise, rewards at the right place."""

from dataclasses import replace

import pytest
import torch

from t2mv_core.rewards.base import RewardResult
from t2mv_core.samplers import SamplingSettings
from training.algorithm.rollout import Batch, RolloutSettings, collect, paired_noise
from training.algorithm.scoring import NonFiniteError, Rewards
from training.data.text_cache import ConditionCache
from training.models.policy import make_policy

REQUESTS = [(0, "a cat"), (1, "a dog"), (2, "an ant")]


@pytest.fixture
def policy(tiny_bundle, tiny_config):
    return make_policy(tiny_config(), tiny_bundle)


@pytest.fixture
def sample(policy, plain_rewards):
    """One iteration of some prompts; the tests' REQUESTS and settings() unless they say otherwise."""

    def run(settings, iteration=1, requests=REQUESTS):
        slots, prompts = zip(*requests, strict=True)
        batch = Batch(prompts, ConditionCache(policy.bundle).lookup(prompts))
        return collect(policy, plain_rewards, settings, iteration, slots, batch)

    return run


def settings(batch_size=3, samplers=("standard", "zmv")):
    return RolloutSettings(samplers, SamplingSettings(num_steps=2), batch_size, seed=0)


def test_both_trajectories_start_from_the_same_noise(sample):
    rollout = sample(settings())
    standard, zmv = (scored.trajectory for scored in rollout.sets)
    # the second sampler's first state is the zigzag's x̃, so compare what both were given
    shape = torch.Size((1, 2, 4, 8, 8))
    first, second = (paired_noise(0, 1, [2], number) for number in (0, 1))
    assert torch.equal(first(shape), second(shape))
    assert not torch.equal(first(shape), second(shape))
    assert torch.equal(standard.states[2, :, 0], paired_noise(0, 1, [2], 0)(shape)[0])
    assert not torch.equal(zmv.states[2, :, 0], standard.states[2, :, 0])


def test_two_standard_samples_differ_only_after_the_start(sample):
    rollout = sample(settings(samplers=("standard", "standard")))
    first, second = (scored.trajectory for scored in rollout.sets)
    assert torch.equal(first.states[:, :, 0], second.states[:, :, 0])
    assert not torch.equal(first.actions[:, :, 0], second.actions[:, :, 0])


def test_trajectories_with_noise_of_their_own_differ_from_the_start(sample):
    paired = sample(settings(samplers=("standard", "standard")))
    alone = sample(replace(settings(samplers=("standard", "standard")), has_own_noise=True))
    first, second = (scored.trajectory for scored in alone.sets)
    assert torch.equal(first.states[:, :, 0], paired.sets[0].trajectory.states[:, :, 0])
    starts = torch.stack([first.states[:, :, 0], second.states[:, :, 0]]).flatten(2)
    assert abs(float(torch.corrcoef(starts.flatten(1))[0, 1])) < 0.1  # independent


def test_a_prompt_does_not_depend_on_its_batch(sample):
    together = sample(settings(3))
    alone = sample(settings(1))
    last = sample(settings(3), requests=REQUESTS[2:])
    for number in (0, 1):
        ours = together.sets[number]
        torch.testing.assert_close(
            alone.sets[number].trajectory.actions, ours.trajectory.actions, atol=1e-4, rtol=0
        )
        theirs = last.sets[number].scores.view["redness"]
        torch.testing.assert_close(theirs, ours.scores.view["redness"][2:], atol=1e-4, rtol=0)


def test_another_iteration_has_other_noise(sample):
    first, second = (sample(settings(), iteration) for iteration in (1, 2))
    assert not torch.equal(first.sets[0].trajectory.states, second.sets[0].trajectory.states)


def test_every_view_is_scored_with_its_own_prompt():
    seen = []

    def view(images, prompts):
        seen.append((len(images), list(prompts)))
        return RewardResult(torch.arange(len(images)).float())

    def joint(images, prompts):
        seen.append((len(images), list(prompts)))
        return RewardResult(torch.arange(len(prompts)).float())

    scores = Rewards({"one": view}, {"two": joint}).score(torch.zeros(2, 3, 3, 4, 4), ["a", "b"])
    assert seen == [(6, ["a", "a", "a", "b", "b", "b"]), (6, ["a", "b"])]
    torch.testing.assert_close(scores.view, {"one": torch.tensor([[0.0, 1, 2], [3, 4, 5]])})
    torch.testing.assert_close(scores.joint, {"two": torch.tensor([0.0, 1])})


def test_several_rewards_keep_their_names_and_their_parts():
    def scorer(value, **parts):
        return lambda images, prompts: RewardResult(
            torch.full((len(prompts),), value), {k: torch.full((len(prompts),), v) for k, v in parts.items()}
        )

    rewards = Rewards(
        {"a": scorer(1.0), "b": scorer(2.0)}, {"c": scorer(3.0, shape=4.0), "d": scorer(5.0, shape=6.0)}
    )
    scores = rewards.score(torch.zeros(2, 3, 3, 4, 4), ["a cat", "a dog"])
    assert {name: values.unique().item() for name, values in scores.view.items()} == {"a": 1.0, "b": 2.0}
    assert {name: tuple(values.shape) for name, values in scores.view.items()} == {"a": (2, 3), "b": (2, 3)}
    assert {name: values.tolist() for name, values in scores.joint.items()} == {
        "c": [3.0] * 2,
        "d": [5.0] * 2,
    }
    assert {name: values.tolist() for name, values in scores.details.items()} == {
        "c.shape": [4.0] * 2,
        "d.shape": [6.0] * 2,
    }


def test_scores_of_batches_are_joined_by_name(policy, plain_rewards):
    rewards = Rewards({**plain_rewards.view, "again": plain_rewards.view["redness"]}, plain_rewards.joint)
    slots, prompts = zip(*REQUESTS, strict=True)
    batch = Batch(prompts, ConditionCache(policy.bundle).lookup(prompts))
    scored = collect(policy, rewards, settings(2), 1, slots, batch).sets[0]
    redness = scored.images[:, :, 0].float().mean(dim=(2, 3)) / 255
    # the kept pictures are rounded to 1/255
    torch.testing.assert_close(scored.scores.view["redness"], redness, atol=2e-3, rtol=0)
    assert torch.equal(scored.scores.view["again"], scored.scores.view["redness"])
    assert scored.scores.joint["agreement"].shape == (3,)
    assert torch.equal(scored.scores.details["agreement.overall"], scored.scores.joint["agreement"])


@pytest.mark.parametrize("role", ["view", "joint"])
def test_a_reward_that_is_no_number_names_its_prompt(plain_rewards, role):
    def broken(images, prompts):
        return RewardResult(torch.tensor([torch.inf if prompt == "b" else 0.0 for prompt in prompts]))

    scorers = {"view": plain_rewards.view, "joint": plain_rewards.joint}
    scorers[role] = {**scorers[role], "broken": broken}
    with pytest.raises(NonFiniteError, match="The reward broken of 'b'"):
        Rewards(**scorers).score(torch.zeros(2, 3, 3, 4, 4), ["a", "b"])
