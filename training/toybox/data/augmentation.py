"""Harmless changes of a picture: what a generator or a VAE may do to it without making it a worse answer.

Scorers and the judge are trained on pictures changed like this, so that their verdict on a generated picture
is about what it shows and not about how it was made.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT_PX = 3.0
MAX_ZOOM = 0.06
MAX_BLUR = 0.8
BLUR_SIGMA_PX = 1.6
MAX_NOISE = 0.06
MAX_GAIN = 0.10
MAX_OFFSET = 0.03


def augment(images: Tensor, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """Shift, zoom, blur, add noise and change the brightness of each picture by random small amounts.

    Args:
        images: [n, 3, H, W] in [0, 1].
        rng: CPU generator; equal states give equal results.
        strength: scales every amount; 0 leaves the pictures as they are.

    Returns:
        [n, 3, H, W] in [0, 1].
    """
    count = len(images)
    images = move(images, strength, rng)
    images = blur(images, MAX_BLUR * strength * _amounts(count, rng))
    images = images * (1 + MAX_GAIN * strength * _signed(count, rng)) + MAX_OFFSET * strength * _signed(
        count, rng
    )
    noise = torch.randn(images.shape, generator=rng)
    return (images + MAX_NOISE * strength * _amounts(count, rng) * noise).clamp(0, 1)


def move(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Move by a fraction of a pixel up to a few, and zoom a little; the border is repeated."""
    count, size = len(images), images.shape[-1]
    theta = torch.zeros(count, 2, 3)
    zoom = 1 + MAX_ZOOM * strength * _signed(count, rng).flatten()
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = 2 * MAX_SHIFT_PX * strength / size * (2 * torch.rand(count, 2, generator=rng) - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blur(images: Tensor, amount: Tensor) -> Tensor:
    """Mix each picture with its Gaussian blur.

    Args:
        images: [n, 3, H, W].
        amount: [n, 1, 1, 1]; 0 keeps the picture, 1 is a blur of BLUR_SIGMA_PX.
    """
    # Two matrix products: several times faster on CPU than a depthwise convolution of this size.
    rows, columns = (_blur_matrix(size) for size in images.shape[-2:])
    return torch.lerp(images, rows @ images @ columns.T, amount)


def _blur_matrix(size: int) -> Tensor:
    """Gaussian weights [size, size] with rows that sum to one, so that a plain border stays as it is."""
    steps = torch.arange(float(size))
    weights = torch.exp(-((steps[:, None] - steps[None]) ** 2) / (2 * BLUR_SIGMA_PX**2))
    return weights / weights.sum(dim=1, keepdim=True)


def _amounts(count: int, rng: torch.Generator) -> Tensor:
    """Uniform in [0, 1], squared so that small changes are common, [n, 1, 1, 1]."""
    return torch.rand(count, 1, 1, 1, generator=rng) ** 2


def _signed(count: int, rng: torch.Generator) -> Tensor:
    """Uniform in [-1, 1], [n, 1, 1, 1]."""
    return 2 * torch.rand(count, 1, 1, 1, generator=rng) - 1
