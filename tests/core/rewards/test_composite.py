"""Parts of rewards, worst and mean views, and sums, on rewards of plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from t2mv_core.rewards.base import RewardResult
from t2mv_core.rewards.composite import OverViews, PartOfReward, ScoredOnce


class Redness:
    """View reward: mean red, plus the prompt's length."""

    kind, name, model = "view", "redness", nn.Linear(1, 1)

    def __call__(self, images, prompts):
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return RewardResult(images[:, 0].mean(dim=(1, 2)) + lengths)

    def to(self, device, dtype=None):
        self.moved_to = (device, dtype)
        return self


class Agreement(Redness):
    """Joint reward with two parts."""

    kind, name, model = "joint", "agreement", nn.Linear(2, 2)

    def __call__(self, images, prompts):
        sets = images.unflatten(0, (len(prompts), -1)).mean(dim=(1, 2, 3, 4))
        return RewardResult(sets, {"overall": sets, "geometry": -sets})


IMAGES = torch.arange(6.0).div(10).view(6, 1, 1, 1).expand(6, 3, 4, 4)
PROMPTS = ["a", "bb"]


def test_worst_and_mean_view_by_hand():
    worst, mean = (OverViews(Redness(), part) for part in ("min", "mean"))
    assert torch.allclose(worst(IMAGES, PROMPTS).scores, torch.tensor([0.0 + 1, 0.3 + 2]))
    assert torch.allclose(mean(IMAGES, PROMPTS).scores, torch.tensor([0.1 + 1, 0.4 + 2]))
    assert (worst.name, worst.kind) == ("redness.min", "joint")


def test_the_scores_of_the_views_are_details():
    details = OverViews(Redness(), "min")(IMAGES, PROMPTS).details
    assert list(details) == ["view_1", "view_2", "view_3"]
    assert torch.allclose(details["view_2"], torch.tensor([1.1, 2.4]))


def test_parts_of_one_reward_share_one_pass():
    class Counting(Agreement):
        calls = 0

        def __call__(self, images, prompts):
            self.calls += 1
            return super().__call__(images, prompts)

    counting = Counting()
    once = ScoredOnce(counting)
    for _ in range(2):
        for part in ("overall", "geometry"):
            PartOfReward(once, part)(IMAGES, PROMPTS)
    assert counting.calls == 1
    once(IMAGES, ["a", "c"])
    once(IMAGES.clone(), ["a", "c"])
    once.to("cpu")(IMAGES, PROMPTS)
    assert counting.calls == 4


def test_only_view_rewards_have_worst_and_mean_views():
    with pytest.raises(ValueError, match="agreement is a joint reward"):
        OverViews(Agreement(), "min")
    with pytest.raises(ValueError, match="only view rewards have the parts min and mean"):
        OverViews(Redness(), "max")


def test_a_part_is_the_detail_of_that_name():
    part = PartOfReward(Agreement(), "geometry")
    assert torch.allclose(part(IMAGES, PROMPTS).scores, torch.tensor([-0.1, -0.4]))
    assert (part.name, part.kind) == ("agreement.geometry", "joint")
    with pytest.raises(ValueError, match="agreement has no part 'colour'; it has overall, geometry"):
        PartOfReward(Agreement(), "colour")(IMAGES, PROMPTS)
