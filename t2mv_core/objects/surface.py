"""The surface of a volume as triangles, by marching cubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .volume import INSIDE, Volume


@dataclass(frozen=True)
class Surface:
    """A triangle mesh in world units; ours are closed, a user's need not be.

    Attributes:
        vertices: [N, 3], float32.
        faces: vertex numbers [M, 3], int64, anticlockwise as seen from outside.
    """

    vertices: Tensor
    faces: Tensor

    def face_normals(self) -> Tensor:
        """Return outward normals [M, 3], each twice as long as its triangle is large."""
        a, b, c = self.vertices[self.faces].unbind(dim=1)
        return torch.linalg.cross(b - a, c - a)

    def vertex_normals(self) -> Tensor:
        """Return unit normals [N, 3], means of the triangles around each vertex weighted by their area."""
        per_corner = self.face_normals().repeat_interleave(3, dim=0)
        total = torch.zeros_like(self.vertices).index_add_(0, self.faces.flatten(), per_corner)
        return torch.nn.functional.normalize(total, dim=-1)

    def enclosed_volume(self) -> float:
        """Return the volume inside by the divergence theorem, Σ a·(b × c) / 6; negative if inside out."""
        corners = self.vertices[self.faces].double()
        return float(torch.linalg.det(corners).sum() / 6)


def extract_surface(volume: Volume, smoothing: float = 0.0) -> Surface:
    """Return the surface at half occupancy, closed also where the solid reaches the border of the cube.

    Args:
        volume: the solid.
        smoothing: standard deviation of a Gaussian that blurs the occupancy first, voxels; 0 blurs nothing.
            It rounds edges and dissolves what is thinner than about two standard deviations.

    Raises:
        ValueError: the volume has no solid voxel, or smoothing leaves none, or it is negative.
    """
    if smoothing < 0:
        raise ValueError(f"smoothing={smoothing} voxels must be 0 or more.")
    if volume.is_empty():
        raise ValueError(
            "The volume is empty, so it has no surface: the silhouettes share no point. Look at the views' "
            "agreement for the one that contradicts the others."
        )
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    padding = 1 + int(np.ceil(3 * smoothing))  # empty voxels around close the surface
    occupancy = np.pad(volume.occupancy.detach().cpu().numpy().astype(np.float32), padding)
    if smoothing:
        occupancy = gaussian_filter(occupancy, smoothing, truncate=3.0)
        if not (occupancy > INSIDE).any():
            raise ValueError(
                f"smoothing={smoothing} voxels dissolves the whole object; use less, or more voxels."
            )
    vertices, faces, _, _ = marching_cubes(
        occupancy, INSIDE, gradient_direction="ascent", allow_degenerate=False
    )
    # Voxel i's centre is at (2i + 1 - N) half_width / N; the padding shifted i.
    world = (2 * (vertices - padding) + 1 - volume.resolution) * (volume.half_width / volume.resolution)
    return Surface(
        torch.from_numpy(world.astype(np.float32)), torch.from_numpy(faces.astype(np.int64, copy=True))
    )
