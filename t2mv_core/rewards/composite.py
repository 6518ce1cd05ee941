"""Rewards made of rewards: a named part, the worst or the mean of a set's views.

    part:   R = details[name]                                   kind as the reward's
    worst:  R({x^v}, c) = min_v  R(x^v, c)                      view -> joint
    mean:   R({x^v}, c) = mean_v R(x^v, c)                      view -> joint

Several weighted rewards are the trainer's: it normalises each before it adds them (docs/training.md).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import Reward, RewardKind, RewardResult, check_request
from .registry import OVER_VIEWS, no_such_part

if TYPE_CHECKING:
    from typing_extensions import Self


class ScoredOnce:
    """A reward of which several parts are used; it keeps its last result for the same pictures."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.name, self.kind, self.model = reward.name, reward.kind, reward.model
        self._last: tuple[weakref.ref[Tensor], list[str], RewardResult] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the reward behind it."""
        self.reward.to(device, dtype)
        self._last = None
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score, or return what the same pictures scored."""
        if self._last is not None and self._last[0]() is images and self._last[1] == list(prompts):
            return self._last[2]
        result = self.reward(images, prompts)
        self._last = (weakref.ref(images), list(prompts), result)
        return result


class PartOfReward:
    """One of a reward's details as a reward of its own, such as HyperScore's "geometry"."""

    def __init__(self, reward: Reward, part: str) -> None:
        self.reward, self.part = reward, part
        self.name, self.kind, self.model = f"{reward.name}.{part}", reward.kind, reward.model

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the reward behind it."""
        self.reward.to(device, dtype)
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score by the detail alone; ValueError where the reward has none of that name."""
        details = self.reward(images, prompts).details
        if self.part not in details:
            raise ValueError(no_such_part(self.reward.name, self.part, details))
        return RewardResult(details[self.part])


class OverViews:
    """A view reward as a joint reward: the worst view of a set, or the mean of its views."""

    kind: RewardKind = "joint"

    def __init__(self, reward: Reward, part: str) -> None:
        """Wrap a view reward; `part` is "min" or "mean", else ValueError."""
        if reward.kind != "view" or part not in OVER_VIEWS:
            raise ValueError(
                f"{reward.name}.{part}: only view rewards have the parts {' and '.join(OVER_VIEWS)}, and "
                f"{reward.name} is a {reward.kind} reward."
            )
        self.reward, self.part = reward, part
        self.name, self.model = f"{reward.name}.{part}", reward.model

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the reward behind it."""
        self.reward.to(device, dtype)
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score B sets of pictures [B·V, 3, H, W]; the views' scores are in `details`: "view_1", …."""
        num_views = check_request(images, prompts, self.kind)
        per_view = [prompt for prompt in prompts for _ in range(num_views)]
        views = self.reward(images, per_view).scores.reshape(len(prompts), num_views)
        details = {f"view_{number}": scores for number, scores in enumerate(views.unbind(dim=1), start=1)}
        return RewardResult(views.amin(dim=1) if self.part == "min" else views.mean(dim=1), details)
