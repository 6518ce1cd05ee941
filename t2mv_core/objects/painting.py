"""Views painted onto a mesh that is there already.

fitting into the views' outlines -> finer triangles -> depth of the mesh -> colours of its vertices
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import CameraRig
from .agreement import view_agreement
from .carving import OnStep
from .colours import MIN_FACING, SHARPNESS, fill_unseen, sample_views
from .projection import Projection, project_surface
from .surface import Surface
from .viewing import Views, camera_axes
from .volume import INSIDE

MAX_VERTICES = 300_000
_EDGE_PIXELS = 1.5
# Two pixels of the depth picture: as far as a steep but visible surface changes within one.
_HIDDEN_PIXELS = 2.0


@dataclass(frozen=True)
class Painting:
    """A mesh with the colours of its views.

    Attributes:
        surface: the mesh, where the views see it, with its triangles made finer.
        colours: of its vertices, [N, 3] in [0, 1].
        seen: share of the vertices that at least one view sees, in (0, 1]; others took their neighbours'
            colours.
        outlines: agreement of each view's outline with the mesh's, V numbers in [0, 1].
    """

    surface: Surface
    colours: Tensor
    seen: float
    outlines: tuple[float, ...]


@torch.no_grad()
def paint_surface(surface: Surface, views: Views, on_step: OnStep | None = None) -> Painting:
    """Give a mesh the colours of views; each vertex takes those of the views that see it best.

    Args:
        surface: triangles, in the world of the views' cameras; see `fit_surface`.
        views: V pictures of the same object.
        on_step: called with (steps done, all steps); may raise to cancel.

    Raises:
        ValueError: the mesh has no triangle, or no view sees any vertex.
    """
    check_triangles(surface)
    picture_px = views.masks.shape[-1]
    fine = subdivide(surface, _EDGE_PIXELS * 2 * views.rig.frustum / picture_px)
    projection = project_surface(fine, views.rig, picture_px, on_step)
    colours, seen = look_from(fine.vertices, fine.vertex_normals(), views, projection)
    outlines = view_agreement(projection, views.masks).tolist()
    return Painting(fine, colours, float(seen.float().mean()), tuple(outlines))


def check_triangles(surface: Surface) -> None:
    """Raise ValueError for a mesh without triangles."""
    if not len(surface.faces):
        raise ValueError("The mesh has no triangles, so there is nothing to paint; connect another mesh.")


def look_from(
    points: Tensor,
    normals: Tensor,
    views: Views,
    projection: Projection,
    points_at_once: int = 2**20,
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the colours of points on a mesh, [M, 3] in [0, 1], and which of them a view sees, bool [M].

    Points that none sees take the colours of the nearest that one sees.

    Args:
        points: [M, 3], world units.
        normals: [M, 3], of unit length, outwards.
        views: V pictures.
        projection: the mesh as these views see it.
        points_at_once: bounds the memory.
        on_step: called with (steps done, all steps); may raise to cancel.

    Raises:
        ValueError: no view sees any point.
    """
    # sample_views hides what lies two voxels behind the front: its voxel is our pixel.
    voxel = _HIDDEN_PIXELS / 2 * 2 * views.rig.frustum / views.masks.shape[-1]
    means, totals = [], []
    parts = list(zip(points.split(points_at_once), normals.split(points_at_once), strict=True))
    for number, (place, normal) in enumerate(parts, start=1):
        colours, weights = sample_views(place, normal, views, projection, voxel)
        totals.append(weights.sum(dim=0))
        means.append((colours * weights[..., None]).sum(dim=0) / totals[-1].clamp(min=1e-8)[:, None])
        if on_step is not None:
            on_step(number, len(parts))
    seen = torch.cat(totals) > MIN_FACING**SHARPNESS / 2
    return fill_unseen(points, torch.cat(means), seen).clamp(0, 1), seen


def subdivide(surface: Surface, max_edge: float, max_vertices: int = MAX_VERTICES) -> Surface:
    """Return the same surface with triangles cut into four until no edge is longer than `max_edge`.

    All triangles are cut alike, so that no gaps open; it ends before more than `max_vertices` are needed.
    """
    while len(surface.vertices) + 3 * len(surface.faces) // 2 <= max_vertices:
        corners = surface.vertices[surface.faces]
        if float((corners - corners.roll(1, dims=1)).norm(dim=-1).max()) <= max_edge:
            break
        surface = _cut_in_four(surface)
    return surface


def _cut_in_four(surface: Surface) -> Surface:
    a, b, c = surface.faces.unbind(dim=1)
    edges = torch.stack([torch.stack(pair, dim=1) for pair in ((a, b), (b, c), (c, a))])  # [3, M, 2]
    unique, which = edges.reshape(-1, 2).sort(dim=1).values.unique(dim=0, return_inverse=True)
    ab, bc, ca = (len(surface.vertices) + which).reshape(3, -1)
    quarters = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    faces = torch.cat([torch.stack(quarter, dim=1) for quarter in quarters])
    middles = surface.vertices[unique].mean(dim=1)
    return Surface(torch.cat([surface.vertices, middles]), faces)


def fit_surface(surface: Surface, masks: Tensor, rig: CameraRig) -> Surface:
    """Scale and move a mesh so that it fills the views' outlines: by one factor, without turning it.

    In every view the outline's box has a width, a height and a middle. The factor is the median of the ratios
    to the mesh's own boxes; the shift is the one whose middles lie nearest to the outlines' (least squares).

    Args:
        surface: the mesh, upright, its front towards the front camera.
        masks: covered share of each pixel, [V, H, H] in [0, 1].
        rig: the V cameras.

    Raises:
        ValueError: the mesh has no points or no size, or a view shows no object.
    """
    if not len(surface.vertices) or float((surface.vertices.amax(0) - surface.vertices.amin(0)).max()) <= 0:
        raise ValueError("The mesh has no size, so it cannot be fitted to the views; connect another mesh.")
    axes = camera_axes(rig, surface.vertices)[:, :2]  # right and up of every view
    along = torch.einsum("vac,nc->van", axes, surface.vertices)
    low, high = along.amin(dim=-1), along.amax(dim=-1)  # [V, 2]
    shown_low, shown_high = (x.to(low) for x in _outline_boxes(masks, rig))
    sizes = high - low
    factor = ((shown_high - shown_low) / sizes.clamp(min=1e-6))[sizes > 1e-6].median()
    offsets = (shown_low + shown_high) / 2 - factor * (low + high) / 2
    shift = torch.linalg.lstsq(axes.reshape(-1, 3), offsets.reshape(-1, 1), driver="gelsd").solution[:, 0]
    return Surface(factor * surface.vertices + shift, surface.faces)


def _outline_boxes(masks: Tensor, rig: CameraRig) -> tuple[Tensor, Tensor]:
    """Return both ends of each outline along the picture's right and up, [V, 2] each, world units."""
    edge = masks.shape[-1]
    boxes = []
    for number, mask in enumerate(masks):
        row, column = (mask > INSIDE).nonzero(as_tuple=True)
        if not len(row):
            raise ValueError(
                f"View {number + 1} ({rig.labels()[number]}) shows no object, so the mesh cannot be fitted "
                "to it; leave that view out, or give masks."
            )
        boxes.append([column.min(), column.max() + 1, edge - 1 - row.max(), edge - row.min()])
    left, right, bottom, top = (2 * torch.tensor(boxes).float() / edge - 1).T * rig.frustum
    return torch.stack([left, bottom], dim=1), torch.stack([right, top], dim=1)
