"""Pictures as a scorer's network takes them: resized, made square, normalised, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Fit = Literal["crop", "pad", "stretch"]
"""How a picture that is not square becomes square: its middle, with black bars, or distorted."""
CHUNK_BYTES = 256 * 2**20
"""Bound on the activations of one forward pass of a scorer."""
LIVE_COPIES = 24
"""Copies of a transformer's tokens that live at once without a graph: residual, q, k, v, attention, MLP
(4 + 4 while it is activated), and attention's logits as far as they are kept; rounded up."""


def prepare_images(
    images: Tensor,
    image_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str = "bicubic",
    fit: Fit = "stretch",
) -> Tensor:
    """Resize [n, 3, H, W] to image_px squared with antialiasing and normalise per channel; float32.

    Pictures that have the size already are not resampled.
    """
    images = images.float()
    height, width = images.shape[-2:]
    if (height, width) != (image_px, image_px):
        size = (image_px, image_px)
        if fit != "stretch":
            size = _fitting_size(height, width, image_px, fit)
        # First across, then down, clipped after either: so does PIL, by which published scorers learned.
        for step in ((height, size[1]), size):
            images = F.interpolate(images, step, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
        images = _center(images, image_px)
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def _fitting_size(height: int, width: int, image_px: int, fit: Fit) -> tuple[int, int]:
    """Size of a picture before the middle is cut out, or the bars are added; rounded as published."""
    if fit == "crop":  # torchvision and transformers round the longer side down
        shorter = min(height, width)
        return int(image_px * height / shorter), int(image_px * width / shorter)
    longer = max(height, width)
    return max(1, round(height * image_px / longer)), max(1, round(width * image_px / longer))


def _center(images: Tensor, image_px: int) -> Tensor:
    """Cut what is too long, and fill what is too short with black, equally on both sides."""
    padding: list[int] = []
    for size in reversed(images.shape[-2:]):
        # Torchvision's rounding: a cut's first half is rounded, a bar's first half rounded down.
        missing = image_px - size
        first = missing // 2 if missing > 0 else -round(-missing / 2)
        padding += [first, missing - first]
    return F.pad(images, padding)


def images_per_chunk(tokens: int, width: int, dtype: torch.dtype, bound: int = CHUNK_BYTES) -> int:
    """How many pictures of `tokens` tokens of `width` channels go through a transformer within the bound."""
    return max(1, bound // (LIVE_COPIES * tokens * width * dtype.itemsize))
