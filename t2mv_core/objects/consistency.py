"""A score of sets of views: do they show one solid, and does its surface have one colour from every side?

    geometry = C · A
    C = mean_v IoU_v of the silhouettes with their hull (`agreement.view_agreement`)
    A = 1 − Σ_x Σ_{v<w} ω_vw(x) min(1, |c_v(x) − c_w(x)|_∞ / τ) / Σ_x Σ_{v<w} ω_vw(x),   ω_vw = √(w_v w_w)

x are the vertices of the hull's surface, c_v(x) is the colour that view v shows there and w_v(x) how well it
sees it (`colours.sample_views`).

Silhouettes alone cannot tell a set from its mirror image: parallel rays do not tell front from back, so a set
of mirrored views is the outline of one solid, too. Colours can: they put the front's colours on both sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import CameraRig
from .agreement import view_agreement
from .carving import carve_hull
from .colours import MIN_FACING, sample_views
from .projection import project
from .silhouettes import object_masks
from .surface import extract_surface
from .viewing import Views, camera_axes, resize_masks

RESOLUTION = 48
PICTURE_PX = 64
"""Larger pictures are reduced to this before colours are compared: the hull is no finer."""
# A difference of this much in any channel counts as another colour. On 20 rendered scenes colours alone told
# a set with one mirrored view from the true set in 18; differences without a bound did in 14 to 16.
OTHER_COLOUR = 0.15


@dataclass(frozen=True)
class Consistency:
    """Scores of B sets of views, each [B], float32, in [0, 1]; higher is better.

    Attributes:
        geometry: silhouettes times colours.
        silhouettes: C, agreement of the silhouettes with their hull.
        colours: A, agreement of the colours between views that see the same part of the hull.
    """

    geometry: Tensor
    silhouettes: Tensor
    colours: Tensor


@torch.no_grad()
def score_consistency(images: Tensor, rig: CameraRig, alpha: Tensor | None = None) -> Consistency:
    """Score sets of views by the solid that they have in common; no learned model takes part.

    A set whose silhouettes are empty or share no point scores 0, also one with no point that two views see:
    a model must not win by drawing nothing.

    Args:
        images: [B, V, 3, H, H] in [0, 1].
        rig: the V cameras; at least two must look at a common surface.
        alpha: [B, V, H, H] in [0, 1] where a background remover found the objects; None compares with the
            colour of each picture's border.

    Raises:
        ValueError: not sets of square pictures, not one per camera, or cameras that share no surface.
    """
    if images.ndim != 5 or images.shape[1] != rig.num_views:
        raise ValueError(
            f"images have shape {list(images.shape)} for {rig.num_views} cameras; pass sets of views "
            "[B, V, 3, H, H], one view per camera."
        )
    check_overlap(rig)
    masks = object_masks(images, alpha)
    parts = [_score_set(Views(*pair, rig)) for pair in zip(images.float(), masks, strict=True)]
    silhouettes, colours = images.new_tensor(parts, dtype=torch.float32).reshape(-1, 2).unbind(dim=1)
    return Consistency(silhouettes * colours, silhouettes, colours)


def colour_agreement(colours: Tensor, weights: Tensor) -> float:
    """Return A of points whose colours V views show, 0 where no point is seen by two.

    Args:
        colours: [V, M, 3] in [0, 1].
        weights: [V, M], how well each view sees each point.
    """
    roots = weights.sqrt()
    difference, total = 0.0, 0.0
    for v in range(1, len(colours)):
        pair = roots[v] * roots[:v]
        gap = (colours[v] - colours[:v]).abs().amax(dim=-1)
        difference += float((pair * (gap / OTHER_COLOUR).clamp(max=1)).sum())
        total += float(pair.sum())
    return 1 - difference / total if total > 0 else 0.0


def _score_set(views: Views) -> tuple[float, float]:
    """Return C and A of one set."""
    hull = carve_hull(views.masks, views.rig, RESOLUTION)
    if hull.is_empty():
        return 0.0, 0.0
    views = _reduced(views)
    projection = project(hull, views.rig, min(RESOLUTION, views.masks.shape[-1]))
    silhouettes = float(view_agreement(projection, views.masks).mean())
    surface = extract_surface(hull)
    points, normals = (x.to(views.images) for x in (surface.vertices, surface.vertex_normals()))
    colours, weights = sample_views(points, normals, views, projection, hull.voxel_size)
    return silhouettes, colour_agreement(colours, weights)


def _reduced(views: Views) -> Views:
    """Return views whose pictures are at most PICTURE_PX wide."""
    if views.images.shape[-1] <= PICTURE_PX:
        return views
    size = (PICTURE_PX, PICTURE_PX)
    images = F.interpolate(views.images, size, mode="bilinear", align_corners=False, antialias=True)
    return Views(images, resize_masks(views.masks, PICTURE_PX), views.rig)


def check_overlap(rig: CameraRig) -> None:
    """Raise ValueError unless some surface exists that two cameras see well enough."""
    # Both views see a surface that faces halfway between them at half their angle.
    largest = 2 * math.acos(MIN_FACING)
    backward = camera_axes(rig, torch.zeros(()))[:, 2]
    cosines = backward @ backward.T - 2 * torch.eye(rig.num_views)
    if float(cosines.max()) < math.cos(largest):
        raise ValueError(
            f"The cameras at {', '.join(rig.labels())} see no surface in common, so their colours cannot be "
            f"compared; take at least two that are less than {math.degrees(largest):.0f} degrees apart."
        )
