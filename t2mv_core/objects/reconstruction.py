"""Views to a coloured solid: the steps of this folder in their order.

silhouettes -> views that contradict the others left out -> visual hull -> surface -> colours
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import CameraRig
from .agreement import Agreement, find_disagreement
from .carving import OnStep, carve_hull
from .colours import colour_vertices
from .surface import Surface, extract_surface
from .viewing import Views, camera_axes
from .volume import Volume

MIN_ANGLE_DEG = 15.0
"""Cameras that look along nearly one line carve a bar as deep as the room, not an object."""


@dataclass(frozen=True)
class Reconstruction:
    """What V views show.

    Attributes:
        volume: the visual hull.
        surface: of the hull.
        colours: of the surface's vertices, [N, 3] in [0, 1].
        agreement: of the views; those that it names as disagreeing were left out.
    """

    volume: Volume
    surface: Surface
    colours: Tensor
    agreement: Agreement


@torch.no_grad()
def reconstruct(
    views: Views, resolution: int = 128, smoothing: float = 1.0, on_step: OnStep | None = None
) -> Reconstruction:
    """Carve and colour the object that views show.

    Args:
        views: V pictures of one object.
        resolution: voxels along an edge of the room.
        smoothing: of the surface, voxels; see `extract_surface`.
        on_step: called with (steps done, all steps) of carving and looking; may raise to cancel.

    Raises:
        ValueError: fewer than two views agree, their cameras look along one line, or nothing is left.
    """
    check_directions(views.rig, range(views.rig.num_views))
    agreement = find_disagreement(
        views.masks, views.rig, on_look=lambda: None if on_step is None else on_step(0, 1)
    )
    kept = [v for v in range(views.rig.num_views) if v not in agreement.disagreeing]
    if len(kept) < 2:
        raise ValueError(
            f"No two views agree on an object. {' '.join(agreement.sentences)} Draw the views again, or give "
            "masks of the object."
        )
    check_directions(views.rig, kept)
    used = Views(views.images[kept], views.masks[kept], views.rig.subset(kept))
    volume = carve_hull(used.masks, used.rig, resolution, on_step)
    surface = extract_surface(volume, smoothing)
    return Reconstruction(volume, surface, colour_vertices(surface, volume, used, on_step), agreement)


def check_directions(rig: CameraRig, views: Sequence[int]) -> None:
    """Raise ValueError unless two of some views look along different lines."""
    backward = camera_axes(rig, torch.zeros(()))[list(views), 2]
    if float((backward @ backward.T).abs().min()) > math.cos(math.radians(MIN_ANGLE_DEG)):
        names = ", ".join(rig.labels()[v] for v in views)
        raise ValueError(
            f"The views ({names}) all look along one line, so they do not say how deep the object is; use at "
            "least two that differ by 15 to 165 degrees, such as front and right."
        )
