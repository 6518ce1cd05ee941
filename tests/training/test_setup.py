"""Rewards and trackers by name."""

import pytest
import torch

from t2mv_core.rewards.base import RewardResult
from training.setup import available_trackers, load_rewards, scorer_of_part


def test_a_part_of_a_reward_is_a_reward():
    def model(images, prompts):
        return RewardResult(torch.zeros(1), {"geometry": torch.tensor([0.25])})

    assert scorer_of_part(model, "geometry")(torch.zeros(6, 3, 4, 4), ["a"]).scores.tolist() == [0.25]
    with pytest.raises(ValueError, match="no part 'colour'; it has geometry"):
        scorer_of_part(model, "colour")(torch.zeros(6, 3, 4, 4), ["a"])


def test_rewards_are_loaded_once_and_in_their_role():
    parts = ["toybox_hyperscore", "toybox_hyperscore.texture"]
    rewards = load_rewards(["toybox_clip"], parts, "cpu")
    assert list(rewards.joint) == parts
    scores = rewards.score(torch.rand(1, 6, 3, 64, 64), ["a red mug"])
    whole = scores.details["toybox_hyperscore.texture"]
    torch.testing.assert_close(scores.joint["toybox_hyperscore.texture"], whole)
    with pytest.raises(ValueError, match="toybox_clip is a view reward; it cannot be used as joint reward"):
        load_rewards(["toybox_clip"], ["toybox_clip"], "cpu")
    with pytest.raises(ValueError, match="There is no reward named 'clap'"):
        load_rewards(["clap"], [], "cpu")


def test_trackers_are_known_and_installed():
    assert available_trackers([]) == []
    with pytest.raises(ValueError, match="'tensorbord', which accelerate does not know"):
        available_trackers(["tensorbord"])
    with pytest.raises(ValueError, match="'aim', which is not installed"):
        available_trackers(["aim"])
