"""What a reward is: its result, its protocol, and the checks that all scorers share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

RewardKind = Literal["view", "joint"]

# Pictures decoded in half precision leave [0, 1] by rounding; anything further out is another range.
RANGE_TOLERANCE = 1e-3
RESOLUTION = 1e-4
"""Scores whose spread is a smaller share of their mean differ by rounding: half precision has 3 digits."""


@dataclass(frozen=True)
class RewardResult:
    """Scores of one call: higher is better, comparable only within the same reward.

    Attributes:
        scores: [n] for a view reward, [B] for a joint reward; float32, without a graph.
        details: named parts of the score, same length as `scores` (HyperScore's four heads, for example).
    """

    scores: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)


class Reward(Protocol):
    """A scorer: pictures [n, 3, H, W] in [0, 1] and prompts in, a RewardResult out.

    A `view` reward takes one prompt per picture. A `joint` reward takes B prompts for n = B·V pictures, the
    views of a prompt contiguous, and scores every set as a whole.
    """

    name: str
    kind: RewardKind

    @property
    def model(self) -> nn.Module:
        """The network, for whoever manages memory."""
        ...

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score the pictures against the prompts."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the scorer to a device and a precision (None keeps it), and return it."""
        ...


def hardly_differ(scores: Sequence[float]) -> bool:
    """Return whether scores are equal, or differ by no more than rounding: their order then says nothing."""
    return statistics.pstdev(scores) <= RESOLUTION * abs(statistics.fmean(scores))


def check_request(images: Tensor, prompts: Sequence[str], kind: RewardKind) -> int:
    """Return the pictures per prompt: 1 for a view reward, V for a joint reward.

    Raises:
        ValueError: pictures or prompts that would be scored wrongly without an error: wrong shape, dtype,
            range or count, NaN, or an empty prompt.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(
            f"images have shape {list(images.shape)}; a reward takes [n, 3, H, W] with n of at least 1."
        )
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}; pass floats in [0, 1] (divide 0..255 by 255).")
    low, high = float(images.min()), float(images.max())
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity; look at the step that made the latents.")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"images range from {low:.3g} to {high:.3g}; pass values in [0, 1].")
    _check_prompts(prompts)
    if kind == "view" and len(prompts) != len(images):
        raise ValueError(
            f"{len(prompts)} prompts for {len(images)} images; a view reward takes one prompt per image: "
            "repeat each prompt for its views."
        )
    if not prompts or len(images) % len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts for {len(images)} images; a joint reward takes B prompts for B·V "
            "images, the views of a prompt contiguous."
        )
    return len(images) // len(prompts)


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise ValueError(f"prompts is {type(prompts).__name__}; pass a list of prompts.")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(
                f"prompt {index} is {type(prompt).__name__}, not text; pass a list of sentences."
            )
        if not prompt.strip():
            raise ValueError(f"prompt {index} is empty; a reward compares the picture with a sentence.")
