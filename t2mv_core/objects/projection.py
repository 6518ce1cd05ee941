"""What cameras see: the silhouette and depth of a volume, by rays, and of a surface, by its points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import CameraRig
from .carving import OnStep
from .surface import Surface
from .viewing import camera_axes, picture_places
from .volume import INSIDE, Volume, voxel_centres

_POINTS_AT_ONCE = 2**20
_POINTS_PER_PIXEL = 2


@dataclass(frozen=True)
class Projection:
    """A volume as V cameras see it, in pictures of P x P pixels.

    Attributes:
        coverage: largest occupancy along each pixel's ray, [V, P, P], in [0, 1].
        nearness: how far the first surface on the ray lies towards the camera, measured from the origin
            along the camera's backward axis, [V, P, P], world units; minus infinity where there is none.
    """

    coverage: Tensor
    nearness: Tensor


@torch.no_grad()
def project(volume: Volume, rig: CameraRig, picture_px: int, on_step: OnStep | None = None) -> Projection:
    """Look at a volume from all cameras of a rig.

    Rays start in front of the cube and take one voxel per step; between the last step outside and the first
    one inside, the surface is found by linear interpolation.

    Args:
        volume: the solid.
        rig: V cameras.
        picture_px: P, at least 1; more than the volume's resolution shows nothing new.
        on_step: called with (steps done, all steps), view by view; may raise to cancel.
    """
    axes = camera_axes(rig, volume.occupancy)
    across = voxel_centres(picture_px, rig.frustum, volume.occupancy.device)
    seen = []
    for number, (right, up, backward) in enumerate(axes.unbind(), start=1):
        # How far the cube reaches along the ray, and one step beyond: rays start outside.
        reach = volume.half_width * float(backward.abs().sum()) + volume.voxel_size
        steps = math.ceil(2 * reach / volume.voxel_size) + 1
        nearness = torch.linspace(reach, -reach, steps).to(across)
        rows = max(1, _POINTS_AT_ONCE // (picture_px * steps))
        rays = across[:, None, None] * right + nearness[:, None] * backward  # [P, steps, 3]
        parts = [
            _first_surface(volume.sample(height[:, None, None, None] * up + rays), nearness)
            for height in (-across).split(rows)
        ]
        seen.append([torch.cat(part) for part in zip(*parts, strict=True)])
        if on_step is not None:
            on_step(number, rig.num_views)
    coverage, depth = (torch.stack(part) for part in zip(*seen, strict=True))
    return Projection(coverage, depth)


@torch.no_grad()
def project_surface(
    surface: Surface, rig: CameraRig, picture_px: int, on_step: OnStep | None = None
) -> Projection:
    """Look at triangles from all cameras of a rig; they need not be closed.

    Every triangle is covered with points half a pixel apart, and each pixel keeps the nearest. A triangle
    wider than two pictures gets no more points, so that they are further apart.

    Args:
        surface: triangles; what lies beyond the pictures is not seen.
        rig: V cameras.
        picture_px: P, at least 1.
        on_step: called with (steps done, all steps), group by group of triangles; may raise to cancel.
    """
    spacing = 2 * rig.frustum / picture_px / _POINTS_PER_PIXEL
    corners = surface.vertices[surface.faces]  # [M, 3, 3]
    longest = (corners - corners.roll(1, dims=1)).norm(dim=-1).amax(dim=1)
    parts = (longest / spacing).ceil().long().clamp(1, 2 * _POINTS_PER_PIXEL * picture_px)
    backward = camera_axes(rig, surface.vertices)[:, 2]
    nearness = torch.full((rig.num_views, picture_px**2), -torch.inf, device=corners.device)
    counts = parts.unique().tolist()
    for number, count in enumerate(counts, start=1):
        weights = _triangle_grid(count).to(corners)
        for triangles in corners[parts == count].split(max(1, _POINTS_AT_ONCE // len(weights))):
            points = torch.einsum("gk,mkc->mgc", weights, triangles).reshape(-1, 3)
            column, row = ((picture_places(points, rig) + 1) / 2 * picture_px).floor().long().unbind(dim=-1)
            is_inside = (column >= 0) & (column < picture_px) & (row >= 0) & (row < picture_px)
            near = torch.where(is_inside, backward @ points.T, -torch.inf)
            pixels = torch.where(is_inside, row * picture_px + column, 0)
            nearness.scatter_reduce_(1, pixels, near, "amax")
        if on_step is not None:
            on_step(number, len(counts))
    nearness = nearness.reshape(rig.num_views, picture_px, picture_px)
    return Projection(nearness.isfinite().float(), nearness)


def _triangle_grid(count: int) -> Tensor:
    """Return the barycentric weights of points that cut each edge into `count` parts, [G, 3]."""
    first, second = torch.meshgrid(torch.arange(count + 1), torch.arange(count + 1), indexing="ij")
    is_inside = first + second <= count
    a, b = first[is_inside], second[is_inside]
    return torch.stack([a, b, count - a - b], dim=1) / count


def _first_surface(occupancy: Tensor, nearness: Tensor) -> tuple[Tensor, Tensor]:
    """Return coverage and nearness of rays: [..., S], [S] from near to far -> [...], [...]."""
    coverage = occupancy.amax(dim=-1)
    first = (occupancy > INSIDE).byte().argmax(dim=-1, keepdim=True)
    before = (first - 1).clamp(min=0)
    inside, outside = occupancy.gather(-1, first)[..., 0], occupancy.gather(-1, before)[..., 0]
    back = ((inside - INSIDE) / (inside - outside).clamp(min=1e-6)).clamp(0, 1)
    near = nearness[first[..., 0]] + back * (nearness[before[..., 0]] - nearness[first[..., 0]])
    return coverage, torch.where(coverage > INSIDE, near, -torch.inf)
