"""From an iteration's rewards to advantages: several rewards, weights, prompts compared with themselves."""

import math

import pytest
import torch

from training.algorithm.advantages import (
    RewardTable,
    equal_rewards,
    iteration_advantages,
    joint_gap_record,
    reward_record,
    weighted_mean,
)
from training.algorithm.objectives import normalize_advantages

PROMPTS = ("a cat", "a dog", "a cat")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def table():
    """Three prompts, two trajectories each, two views; two rewards per role, on very different scales."""
    view = {"one": draw(3, 2, 2), "two": 5 + 10 * draw(3, 2, 2, seed=1)}
    joint = {"three": draw(3, 2, seed=2), "four": 100 * draw(3, 2, seed=3) - 7}
    return RewardTable(PROMPTS, view, joint)


def test_a_weighted_mean_by_hand():
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0, -2.0]), "unused": torch.ones(2)}
    # (3·1 + 1·5)/4 and (3·2 - 1·2)/4
    torch.testing.assert_close(weighted_mean(values, {"a": 3.0, "b": 1.0}), torch.tensor([2.0, 1.0]))


def test_the_joint_gap_is_zmv_minus_standard_by_hand():
    rewards = {"a": torch.tensor([[1.0, 2.0], [3.0, 3.5]]), "b": torch.tensor([[0.0, 4.0], [2.0, 0.0]])}
    # a: (1 + 0.5)/2 = 0.75, b: (4 - 2)/2 = 1; (3·0.75 + 1·1)/4
    weights = {"a": 3.0, "b": 1.0}
    assert joint_gap_record(rewards, weights, ("standard", "zmv")) == {"joint_gap": pytest.approx(0.8125)}
    assert joint_gap_record(rewards, weights, ("zmv", "standard")) == {"joint_gap": pytest.approx(-0.8125)}


@pytest.mark.parametrize("samplers", [("standard", "standard"), ("zmv", "zmv")])
def test_there_is_no_joint_gap_between_trajectories_of_one_sampler(samplers):
    assert joint_gap_record({"a": torch.ones(1, 2)}, {"a": 1.0}, samplers) == {}
    assert joint_gap_record({}, {}, ("standard", "zmv")) == {}


@pytest.mark.parametrize(
    ("samplers", "kinds"),
    [
        (("standard", "zmv"), ("standard", "zmv")),
        (("standard", "standard"), ("standard", "again")),
        (("zmv", "zmv"), ("zmv", "again")),
    ],
)
def test_mean_rewards_are_named_by_sampler(samplers, kinds):
    record = reward_record("joint", {"a": torch.tensor([[1.0, 2.0], [3.0, 6.0]])}, {"a": 1.0}, samplers)
    assert record == {f"joint_reward_{kinds[0]}": 2.0, f"joint_reward_{kinds[1]}": 4.0}


def test_rewards_that_differ_by_rounding_are_named():
    table = RewardTable(
        PROMPTS,
        {"equal": torch.full((3, 2, 2), 0.95), "rounding": 0.95 + 1e-5 * draw(3, 2, 2), "one": draw(3, 2, 2)},
        {"zero": torch.zeros(3, 2), "small": 1e-3 * draw(3, 2)},
    )
    assert equal_rewards(table) == ["equal", "rounding", "zero"]
    with_one = iteration_advantages(table, {"one": 1.0, "rounding": 1.0}, {"zero": 1.0}, lambda_=1.0)
    torch.testing.assert_close(with_one, normalize_advantages(table.view["one"]) / 2 / 2)


def test_advantages_by_hand():
    table = RewardTable(
        ("a", "b"),
        {"r": torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[1.0, 3.0], [5.0, 7.0]]])},
        {"s": torch.tensor([[0.0, 2.0], [2.0, 4.0]])},
    )
    # view: mean 4, variance (9 + 1 + 1 + 9)/4 = 5; joint: mean 2, variance (4 + 0 + 0 + 4)/4 = 2
    view = torch.tensor([[[-3.0, -1.0], [1.0, 3.0]]]).expand(2, 2, 2) / math.sqrt(5)
    joint = torch.tensor([[-2.0, 0.0], [0.0, 2.0]])[:, :, None] / math.sqrt(2)
    found = iteration_advantages(table, {"r": 1.0}, {"s": 1.0}, lambda_=3.0)
    torch.testing.assert_close(found, (view + 3 * joint) / 4)
    alone = iteration_advantages(table, {"r": 1.0}, {"s": 1.0}, lambda_=math.inf)
    torch.testing.assert_close(alone, joint.expand(2, 2, 2))


@pytest.mark.parametrize("is_per_prompt", [False, True])
def test_every_reward_is_normalised_before_the_sum(table, is_per_prompt):
    weights = {"one": 3.0, "two": 1.0}, {"three": 1.0, "four": 4.0}
    found = iteration_advantages(table, *weights, 0.5, is_per_prompt)
    groups = [0, 1, 0] if is_per_prompt else None
    one, two, three, four = (
        normalize_advantages(values, groups) for values in (*table.view.values(), *table.joint.values())
    )
    expected = ((3 * one + two) / 4 + 0.5 * ((three + 4 * four) / 5)[:, :, None]) / 1.5
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    scaled = RewardTable(
        PROMPTS,
        {**table.view, "two": 1000 * table.view["two"]},
        {**table.joint, "three": table.joint["three"] / 50 + 9},
    )
    torch.testing.assert_close(
        iteration_advantages(scaled, *weights, 0.5, is_per_prompt), found, atol=1e-4, rtol=0
    )
    # a weight does count, and only its share
    other = iteration_advantages(table, {"one": 1.0, "two": 1.0}, weights[1], 0.5, is_per_prompt)
    assert (other - found).abs().max() > 1e-2
    same = iteration_advantages(table, {"one": 6.0, "two": 2.0}, weights[1], 0.5, is_per_prompt)
    torch.testing.assert_close(same, found)


def test_per_prompt_a_trajectory_is_compared_with_its_own_prompts(table):
    found = iteration_advantages(table, {"one": 1.0, "two": 1.0}, {}, 0.0, is_per_prompt=True)
    assert found[[0, 2]].mean().abs() < 1e-6
    assert found[1].mean().abs() < 1e-6
    # an easy prompt gives no advantage: only the differences within a prompt count
    easier = {
        name: values + torch.tensor([5.0, 0.0, 5.0])[:, None, None] for name, values in table.view.items()
    }
    easy = iteration_advantages(RewardTable(PROMPTS, easier, {}), {"one": 1.0, "two": 1.0}, {}, 0.0, True)
    torch.testing.assert_close(easy, found, atol=1e-5, rtol=0)
    whole = iteration_advantages(RewardTable(PROMPTS, easier, {}), {"one": 1.0, "two": 1.0}, {}, 0.0)
    assert whole[[0, 2]].mean() > 0.1


@pytest.mark.parametrize("lambda_", [0.0, 2.0, math.inf])
def test_without_a_joint_reward_the_multiplier_has_nothing_to_weigh(table, lambda_):
    alone = RewardTable(PROMPTS, table.view, {})
    found = iteration_advantages(alone, {"one": 1.0, "two": 1.0}, {}, lambda_)
    expected = (normalize_advantages(table.view["one"]) + normalize_advantages(table.view["two"])) / 2
    torch.testing.assert_close(found, expected)
