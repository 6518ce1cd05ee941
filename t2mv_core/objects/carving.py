"""Space carving: the largest solid that fits all silhouettes, the visual hull.

    occupancy(x) = min_v S_v(P_v x),   P_v x = where view v sees x,   S_v bilinear, 0 beyond the picture

With masks in [0, 1] the surface lies where the minimum is a half, between the centres of voxels.
Source: Kutulakos, Seitz 2000, "A theory of shape by space carving", IJCV 38(3); here silhouettes alone carve.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..cameras import CameraRig
from .viewing import check_masks, picture_places, resize_masks, sample_pictures
from .volume import Volume, voxel_centres

OnStep = Callable[[int, int], None]
"""Called with (steps done, all steps); an exception that it raises ends the work."""

MIN_RESOLUTION, MAX_RESOLUTION = 16, 512
_POINTS_AT_ONCE = 2**17  # with six views 12 MiB of places


@torch.no_grad()
def carve_hull(masks: Tensor, rig: CameraRig, resolution: int = 128, on_step: OnStep | None = None) -> Volume:
    """Carve the visual hull of one object's silhouettes out of the cube that the pictures span.

    Masks finer than the grid are reduced first, so that its voxels see averages.

    Args:
        masks: covered share of each pixel, [V, H, H] in [0, 1]; float32.
        rig: the V cameras; the cube has their frustum as half its edge.
        resolution: voxels along an edge N; memory grows with its cube (128: 8 MiB, 256: 64 MiB).
        on_step: called with (steps done, all steps), slab by slab; may raise to cancel.

    Returns:
        The hull on the masks' device. It is empty where a silhouette is, or where they share no point.

    Raises:
        ValueError: masks that are not one square picture per camera, or a resolution out of range.
    """
    check_masks(masks, rig)
    if not MIN_RESOLUTION <= resolution <= MAX_RESOLUTION:
        raise ValueError(
            f"resolution={resolution} voxels along an edge must lie between {MIN_RESOLUTION} and "
            f"{MAX_RESOLUTION}."
        )
    pictures = resize_masks(masks.float(), resolution)[:, None]
    centres = voxel_centres(resolution, rig.frustum, masks.device)
    depth = max(1, _POINTS_AT_ONCE // resolution**2)
    slabs = []
    for start in range(0, resolution, depth):
        x, y, z = torch.meshgrid(centres[start : start + depth], centres, centres, indexing="ij")
        places = picture_places(torch.stack([x, y, z], dim=-1).reshape(-1, 3), rig)
        slabs.append(sample_pictures(pictures, places)[:, 0].amin(dim=0).reshape(x.shape))
        if on_step is not None:
            on_step(min(start + depth, resolution), resolution)
    return Volume(torch.cat(slabs), rig.frustum)
