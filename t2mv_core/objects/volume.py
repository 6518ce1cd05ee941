"""A solid as numbers on a cubic grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

INSIDE = 0.5
"""Occupancy at the surface of a solid."""


@dataclass(frozen=True)
class Volume:
    """How much of each voxel of a cube around the origin is filled.

    Attributes:
        occupancy: [N, N, N] over x, y, z, in [0, 1], float32; solid where it is above `INSIDE`.
        half_width: half the cube's edge, world units; voxel i's centre is at (2i + 1 - N) half_width / N.
    """

    occupancy: Tensor
    half_width: float

    @property
    def resolution(self) -> int:
        """Number of voxels N along an edge."""
        return self.occupancy.shape[0]

    @property
    def voxel_size(self) -> float:
        """Edge of a voxel, world units."""
        return 2 * self.half_width / self.resolution

    def is_empty(self) -> bool:
        """Return whether no voxel is solid."""
        return not bool((self.occupancy > INSIDE).any())

    def sample(self, points: Tensor) -> Tensor:
        """Return the occupancy at points [..., 3] by trilinear interpolation, [...]; 0 outside the cube."""
        # grid_sample counts the last axis of its input, here z, first.
        places = points.reshape(1, 1, 1, -1, 3).flip(-1) / self.half_width
        return F.grid_sample(self.occupancy[None, None], places, align_corners=False).reshape(
            points.shape[:-1]
        )


def voxel_centres(resolution: int, half_width: float, device: torch.device | str = "cpu") -> Tensor:
    """Return the coordinates of the voxels' centres along one axis, [N], world units, float32."""
    steps = torch.arange(resolution, device=device, dtype=torch.float32)
    return (2 * steps + 1 - resolution) * (half_width / resolution)
