"""Colours of points on a surface, from the views that see them best.

    weight_v(x) = visible_v(x) · S_v(P_v x) · max(0, n(x)·b_v)^k

S_v is the covered share of the pixel where view v sees x, b_v points from the object to camera v, and a point
is visible unless the solid has a surface in front of it. Points that no view sees take the colours of the
nearest ones that some view sees.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .carving import OnStep
from .projection import Projection, project
from .surface import Surface
from .viewing import Views, camera_axes, picture_places, sample_pictures
from .volume import Volume

# A view that looks straight at a surface counts four times as much as one at 45 degrees.
SHARPNESS = 4
# Steeper views than this see a surface as a line, and its depth changes by more than the tolerance per pixel.
MIN_FACING = 0.2
_HIDDEN_VOXELS = 2.0
_NEIGHBOURS = 4


def colour_vertices(surface: Surface, volume: Volume, views: Views, on_step: OnStep | None = None) -> Tensor:
    """Return a colour for each vertex of a volume's surface, [N, 3] in [0, 1], on the pictures' device.

    Args:
        surface: of the volume.
        volume: what hides points from views.
        views: V pictures.
        on_step: called with (steps done, all steps), view by view; may raise to cancel.

    Raises:
        ValueError: no view sees any vertex.
    """
    points, normals = (x.to(views.images) for x in (surface.vertices, surface.vertex_normals()))
    projection = project(volume, views.rig, volume.resolution, on_step)
    colours, weights = sample_views(points, normals, views, projection, volume.voxel_size)
    total = weights.sum(dim=0)
    mean = (colours * weights[..., None]).sum(dim=0) / total.clamp(min=1e-8)[:, None]
    return fill_unseen(points, mean, total > MIN_FACING**SHARPNESS / 2).clamp(0, 1)


def sample_views(
    points: Tensor, normals: Tensor, views: Views, projection: Projection, voxel_size: float
) -> tuple[Tensor, Tensor]:
    """Look at points of a surface from all views.

    Args:
        points: [M, 3], world units.
        normals: [M, 3], of unit length, outwards.
        views: V pictures.
        projection: the solid as these views see it; it hides points.
        voxel_size: of the solid, world units; a point two voxels behind the visible surface is hidden.

    Returns:
        Colours [V, M, 3], without the background that pixels on the rim are mixed with, and weights [V, M]
        in [0, 1], 0 where a view does not see the point.
    """
    backward = camera_axes(views.rig, points)[:, 2]
    facing = backward @ normals.T
    places = picture_places(points, views.rig)
    visible = backward @ points.T >= _at_nearest(projection.nearness, places) - _HIDDEN_VOXELS * voxel_size
    masks = views.masks[:, None]
    covered = sample_pictures(masks, places)[:, 0]
    mixed = sample_pictures(_without_background(views) * masks, places)
    colours = (mixed / covered.clamp(min=1e-6)[:, None]).transpose(1, 2)
    weights = covered * facing.clamp(0, 1) ** SHARPNESS * (visible & (facing > MIN_FACING))
    return colours, weights


def to_linear(colours: Tensor) -> Tensor:
    """Return sRGB colours in [0, 1] as light, in [0, 1]: what glTF has in the points of a mesh.

    Source: IEC 61966-2-1; glTF 2.0, section 3.7.2.1: COLOR_0 is linear. Textures stay sRGB.
    """
    return torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def fill_unseen(points: Tensor, colours: Tensor, seen: Tensor) -> Tensor:
    """Give unseen points the colours of their four nearest seen ones, weighted by inverse distance.

    Args:
        points: [N, 3].
        colours: [N, 3]; those of unseen points are not read.
        seen: bool [N].

    Raises:
        ValueError: no point is seen.
    """
    if bool(seen.all()):
        return colours
    if not bool(seen.any()):
        raise ValueError(
            f"None of the {len(points)} points is seen by any view, so there is no colour to fill in; check "
            "that the views and the surface are of one object."
        )
    filled = colours.clone()
    filled[~seen] = interpolate_colours(points[seen], colours[seen], points[~seen])
    return filled


def interpolate_colours(points: Tensor, colours: Tensor, places: Tensor) -> Tensor:
    """Return colours at places [M, 3] from the four nearest points [N, 3] with colours [N, 3], N >= 1.

    They are weighted by inverse distance.
    """
    from scipy.spatial import cKDTree

    k = min(_NEIGHBOURS, len(points))
    distances, nearest = cKDTree(points.cpu().numpy()).query(places.cpu().numpy(), k=list(range(1, k + 1)))
    weights = 1 / (torch.from_numpy(distances).to(colours) + 1e-6)
    around = colours[torch.from_numpy(nearest).to(colours.device)]
    return (around * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)


def _at_nearest(nearness: Tensor, places: Tensor) -> Tensor:
    """Return values of the nearest pixels, [V, P, P] at [V, M, 2] -> [V, M]; minus infinity may be there."""
    edge = nearness.shape[-1]
    column, row = ((places + 1) / 2 * edge).floor().long().clamp(0, edge - 1).unbind(dim=-1)
    return nearness.flatten(1).gather(1, row * edge + column)


def _without_background(views: Views) -> Tensor:
    """Return the pictures with the colours of pixels on the rim taken from their purest neighbours."""
    purity = views.masks[:, None] ** 4
    total = F.avg_pool2d(purity, 3, stride=1, padding=1)
    around = F.avg_pool2d(views.images * purity, 3, stride=1, padding=1) / total.clamp(min=1e-6)
    is_pure = views.masks[:, None] > 1 - 1e-3
    return torch.where(is_pure | (total < 1e-6), views.images, around)
