"""Cross-view consistency of toybox pictures by geometry alone: do the silhouettes belong to one solid?

No learned model takes part and no reward is made of it, so it can disagree with what was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..objects.silhouettes import MIN_CONTRAST, contrast

BACKGROUND = 0.5
"""Grey level of what surrounds an object, in [0, 1]."""
# Points per pixel along a ray. At 2 they lie a quarter pixel off pixel borders and centres, so views at right
# angles never round; 4 changes the mean of true silhouettes by 0.0002 at twice the cost.
POINTS_PER_PIXEL = 2
CHUNK_SETS = 4  # 2 MiB of hull at 64 px: stays in the cache


def view_consistency(images: Tensor, azimuths_deg: Sequence[float]) -> Tensor:
    """Silhouette coherence of sets of pictures; see `silhouettes` and `silhouette_coherence`.

    Args:
        images: [B, V, 3, H, W] in [0, 1], a toybox object before its grey.
        azimuths_deg: the V cameras' azimuths, degrees.

    Returns:
        [B], float32, in [0, 1]; higher is better.

    Raises:
        ValueError: not sets of pictures, or not two or more of them with an azimuth each.
    """
    return silhouette_coherence(silhouettes(images), azimuths_deg)


def silhouettes(images: Tensor) -> Tensor:
    """Where the object is: where any channel differs from the toybox's constant grey background.

    Args:
        images: [B, V, 3, H, W] in [0, 1].

    Returns:
        bool [B, V, H, W]; holes stay holes.

    Raises:
        ValueError: not sets of RGB pictures in floating point.
    """
    if images.ndim != 5 or images.shape[2] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images have shape {list(images.shape)} and type {images.dtype}; silhouettes are found in "
            "[B, V, 3, H, W] of floating point in [0, 1] (divide uint8 by 255)."
        )
    return contrast(images, images.new_full((3,), BACKGROUND)) > MIN_CONTRAST


def silhouette_coherence(masks: Tensor, azimuths_deg: Sequence[float]) -> Tensor:
    """Share of all silhouette pixels that the visual hull of the silhouettes covers.

        C = Σ_v |S_v ∩ P_v(H)| / Σ_v |S_v|,   H = {points that every view sees inside its silhouette}

    P_v(H) ⊆ S_v always, so one solid seen truly gives 1. What a view shows beyond the hull, another view
    contradicts. The cameras are orthographic at elevation 0: a row of pixels sees one horizontal plane, and
    the ray through a pixel's centre is tested against the same row of the other views, without tolerance.

    Turning the other way round (all azimuths negated) changes nothing, because parallel rays do not tell
    front from back; views that all show the same symmetric outline are consistent too. Whether a view
    shows the asked-for side is the judge's question.

    Source: the idea and the name are of Hernández, Schmitt, Cipolla 2007, "Silhouette coherence for camera
    calibration under circular motion", IEEE TPAMI 29(2). Here: pixels of area, pooled over the views, and
    rays sampled at points.

    Args:
        masks: bool [B, V, H, W], V >= 2; the solid must stay inside all pictures, beyond them is background.
        azimuths_deg: the V cameras' azimuths as in `render_views`, degrees.

    Returns:
        [B], float32, in [0, 1] on the masks' device. 0 where a view is empty, since then the hull is; also
        where all views are: a model must not win by drawing nothing.

    Raises:
        ValueError: the masks are not [B, V, H, W] of bool, or V is not the number of azimuths or below 2.
    """
    _check_masks(masks, len(azimuths_deg))
    columns = _seen_columns(azimuths_deg, masks.shape[3]).to(masks.device)
    chunks = masks.split(CHUNK_SETS) if len(masks) else []
    shares = [_hull_shares(chunk, columns) for chunk in chunks]
    return torch.cat(shares) if shares else torch.zeros(0, device=masks.device)


def _check_masks(masks: Tensor, num_azimuths: int) -> None:
    if masks.ndim != 4 or masks.dtype != torch.bool:
        raise ValueError(
            f"masks have shape {list(masks.shape)} and type {masks.dtype}; pass bool [B, V, H, W]."
        )
    if masks.shape[1] != num_azimuths or num_azimuths < 2:
        raise ValueError(
            f"masks show {masks.shape[1]} views for {num_azimuths} azimuths; coherence needs at least two "
            "views and one azimuth for each of them."
        )


def _seen_columns(azimuths_deg: Sequence[float], width_px: int) -> Tensor:
    """Which column of view w sees each point of the rays of view v.

    Lengths are in half pictures. A ray's points span [-1, 1] in depth: whatever stays inside the pictures
    from all sides lies in that circle.

    Returns:
        int64 [V (v), V (w), W, POINTS_PER_PIXEL * W]; W stands for "outside the picture".
    """
    angles = torch.tensor(list(azimuths_deg), dtype=torch.float64).deg2rad()
    turn = (angles[:, None] - angles[None, :])[:, :, None, None]
    depth = _centres(POINTS_PER_PIXEL * width_px)
    # A point u right_v + d forward_v; right = (cos a, sin a), forward = (-sin a, cos a) as in the renderer.
    across = _centres(width_px)[:, None] * turn.cos() - depth * turn.sin()
    columns = ((across + 1) / 2 * width_px).floor().long()
    return torch.where((columns >= 0) & (columns < width_px), columns, width_px)


def _centres(count: int) -> Tensor:
    """Centres of `count` equal parts of [-1, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * 2 / count - 1


def _hull_shares(masks: Tensor, columns: Tensor) -> Tensor:
    """Coherence of a few sets: [b, V, H, W] and the columns of `_seen_columns` -> [b]."""
    num_sets, num_views, height, width = masks.shape
    # Columns first, and all rows of all sets beside each other: a point's rows are then one block of memory.
    views = masks.permute(1, 3, 0, 2).reshape(num_views, width, num_sets * height)
    padded = torch.cat([views, views.new_zeros(num_views, 1, num_sets * height)], dim=1)
    covered = torch.zeros(num_sets, device=masks.device)
    for v in range(num_views):
        others = [w for w in range(num_views) if w != v]  # a view's own rays carry its own silhouette
        in_hull = padded[others[0]].index_select(0, columns[v, others[0]].flatten())
        for w in others[1:]:
            in_hull &= padded[w].index_select(0, columns[v, w].flatten())
        reached = in_hull.view(width, -1, num_sets * height).any(dim=1) & views[v]
        covered += reached.view(width, num_sets, height).sum(dim=(0, 2))
    return covered / masks.sum(dim=(1, 2, 3)).clamp(min=1)
