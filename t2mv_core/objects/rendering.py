"""Pictures of a coloured surface from any camera, without a graphics library.

A pixel shows the colour at x = c + d·b, where c is its place in the camera's plane, b the backward axis and d
how far the first surface on its ray lies towards the camera (`projection.project`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import CameraRig
from .colours import interpolate_colours
from .projection import project
from .surface import Surface
from .viewing import camera_axes
from .volume import INSIDE, Volume, voxel_centres

GREY = 0.5
_SUPERSAMPLING = 2


@torch.no_grad()
def render_surface(
    volume: Volume,
    surface: Surface,
    colours: Tensor,
    rig: CameraRig,
    picture_px: int,
    background: float = GREY,
) -> Tensor:
    """Draw a solid with the colours of its surface.

    Args:
        volume: the solid; where its surface lies is what rays find in it.
        surface: of the volume.
        colours: of the surface's vertices, [N, 3] in [0, 1].
        rig: V cameras.
        picture_px: P.
        background: grey beyond the object, in [0, 1].

    Returns:
        [V, 3, P, P] in [0, 1]; pixels on the rim mix object and background.
    """
    edge = picture_px * _SUPERSAMPLING
    seen = project(volume, rig, edge)
    across = voxel_centres(edge, rig.frustum, volume.occupancy.device)
    drawn = torch.full((rig.num_views, edge, edge, 3), background)
    for view, (right, up, backward) in enumerate(camera_axes(rig, volume.occupancy).unbind()):
        is_object = seen.coverage[view] > INSIDE
        row, column = is_object.nonzero(as_tuple=True)
        depth = seen.nearness[view][is_object]
        points = across[column, None] * right - across[row, None] * up + depth[:, None] * backward
        drawn[view][is_object] = interpolate_colours(surface.vertices, colours, points)
    return torch.nn.functional.avg_pool2d(drawn.permute(0, 3, 1, 2), _SUPERSAMPLING)
