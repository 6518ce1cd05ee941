"""Picture similarity: how much each view looks like the picture that the set was drawn from.

    score = cos(encode_image(view), encode_image(picture))

by the image encoder of any CLIP score. It asks for the same thing in both, not for the same side of it: a
view reward for image to multiview. The prompt is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import RewardKind, RewardResult, check_request
from .clip_score import ClipScore, load_clip_score
from .open_clip_score import load_open_clip_score

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self


class PictureSimilarity:
    """View reward: cosine in [-1, 1] of each view and its set's picture."""

    kind: RewardKind = "view"
    takes_pictures = True

    def __init__(self, clip: ClipScore, name: str) -> None:
        """Take the image encoder of a CLIP score."""
        self.clip, self.name, self.notices = clip, name, clip.notices

    @property
    def model(self) -> nn.Module:
        """The network, for whoever manages memory."""
        network: nn.Module = self.clip.model
        return network

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the network to a device and precision."""
        self.clip.to(device, dtype)
        return self

    def __call__(
        self, images: Tensor, prompts: Sequence[str], pictures: Tensor | None = None
    ) -> RewardResult:
        """Score views against the pictures of their sets.

        Args:
            images: n = B·V views, those of a set contiguous, [n, 3, H, W] in [0, 1].
            prompts: n sentences, not read.
            pictures: of B sets, [B, 3, h, w] in [0, 1].

        Raises:
            ValueError: pictures are missing, or do not divide the views.
        """
        check_request(images, prompts, self.kind)
        if pictures is None:
            raise ValueError(
                f"The reward {self.name} compares views with the picture they were drawn from, and there is "
                "none; give the pictures, or choose another reward."
            )
        if not len(pictures) or len(images) % len(pictures):
            raise ValueError(f"{len(pictures)} pictures for {len(images)} views; give one picture per set.")
        wanted = self.clip.encode_images(pictures).repeat_interleave(len(images) // len(pictures), dim=0)
        return RewardResult((self.clip.encode_images(images) * wanted).sum(dim=-1).clone())


def load_picture_similarity(path: Path, name: str = "picture_similarity") -> PictureSimilarity:
    """Load it from the checkpoint of any open_clip model; see `load_open_clip_score`."""
    return PictureSimilarity(load_open_clip_score(path, name), name)


def load_toybox_similarity(path: Path) -> PictureSimilarity:
    """Load it from a CLIP that this project trained; see `load_clip_score`."""
    return PictureSimilarity(load_clip_score(path), "toybox_picture")
