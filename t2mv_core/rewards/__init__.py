"""Rewards by name. Adding one: its file in this folder, one entry in REWARDS, its test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from .base import Reward


@dataclass(frozen=True)
class RewardSpec:
    """An entry of REWARDS.

    Attributes:
        kind: "view" (one score per picture) or "joint" (one score per set of views).
        load: device -> the scorer; imports what it needs only when called.
        summary: one line for lists and tooltips.
    """

    kind: Literal["view", "joint"]
    load: Callable[[torch.device | str], Reward]
    summary: str


def _load_toybox_clip(device: torch.device | str) -> Reward:
    from ..toybox import toybox_path
    from .clip_score import load_clip_score

    return load_clip_score(toybox_path("rewards/clip.safetensors"), "toybox_clip", device)


def _load_toybox_hyperscore(device: torch.device | str) -> Reward:
    from ..toybox import toybox_path
    from .hyperscore import load_hyperscore

    return load_hyperscore(toybox_path("rewards/hyperscore.safetensors"), "toybox_hyperscore", device)


REWARDS: dict[str, RewardSpec] = {
    "toybox_clip": RewardSpec(
        "view", _load_toybox_clip, "Bundled CLIP: does one picture show what the prompt says?"
    ),
    "toybox_hyperscore": RewardSpec(
        "joint",
        _load_toybox_hyperscore,
        "Bundled HyperScore: alignment, geometry and texture of a set of six views.",
    ),
}


def load_reward(name: str, device: torch.device | str = "cpu") -> Reward:
    """Load a reward of REWARDS onto a device.

    Raises:
        ValueError: no reward has this name.
        FileNotFoundError: its weights are not on this machine.
    """
    if name not in REWARDS:
        raise ValueError(f"There is no reward named {name!r}; choose one of: {', '.join(sorted(REWARDS))}.")
    return REWARDS[name].load(device)
