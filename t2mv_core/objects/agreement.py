"""Which views disagree with the solid that all views have in common.

    IoU_v = Σ min(S_v, P_v H) / Σ max(S_v, P_v H),   H = visual hull of the silhouettes S, P_v H = its picture

A view that shows too little carves away what others show, so the others lose; a view that shows too much
loses itself. Hence the contradicting view is the one without which the rest agree best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import CameraRig
from .carving import carve_hull
from .projection import Projection, project
from .viewing import check_masks, resize_masks
from .volume import INSIDE

RESOLUTION = 48
# In 60 rendered scenes the worst view agreed to 0.84 once (thin legs of a table), else to 0.89 and more, in
# the median to 0.96; with one view of another object, the worst view of ten scenes agreed to 0.74 or less.
MIN_IOU = 0.8
# Meshes of 60 rendered scenes, fitted to their own views, agreed to 0.76 and more in the worst view; with the
# views in another order, 43 of 60 to less.
MIN_OUTLINE = 0.75
# Means that differ by less do so by the size of voxels.
_SAME_GAIN = 0.01
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Agreement:
    """How V views agree with their common solid.

    Attributes:
        iou: agreement of each view with the solid of all views that show something, V numbers in [0, 1].
        disagreeing: views to leave out or to make again, in ascending order.
        sentences: what is wrong, for people; empty where nothing is.
    """

    iou: tuple[float, ...]
    disagreeing: tuple[int, ...]
    sentences: tuple[str, ...]


def view_agreement(projection: Projection, masks: Tensor) -> Tensor:
    """Return the IoU of each view's silhouette with the hull's picture, [V]; 0 where both are empty.

    Args:
        projection: the hull as the views see it, in pictures no larger than the masks.
        masks: [V, H, H] in [0, 1].
    """
    shown = resize_masks(masks, projection.coverage.shape[-1])
    common = torch.minimum(shown, projection.coverage).sum(dim=(1, 2))
    return common / torch.maximum(shown, projection.coverage).sum(dim=(1, 2)).clamp(min=1e-6)


def find_disagreement(masks: Tensor, rig: CameraRig, on_look: Callable[[], None] = lambda: None) -> Agreement:
    """Find views that are empty or that contradict the others.

    While the worst view agrees less than MIN_IOU, the view without which the rest agree best is left out;
    views between which silhouettes cannot decide are left out together. Those left out are named.

    Args:
        masks: covered share of each pixel, [V, H, H] in [0, 1].
        rig: the V cameras.
        on_look: called before each search for a view to leave out, which carves up to as many solids as there
            are pairs of views; may raise to cancel.

    Raises:
        ValueError: masks that are not one square picture per camera.
    """
    check_masks(masks, rig)
    is_empty = (masks.amax(dim=(1, 2)) <= INSIDE).tolist()
    kept = [v for v in range(rig.num_views) if not is_empty[v]]
    if not kept:
        return Agreement((0.0,) * rig.num_views, tuple(range(rig.num_views)), ("No view shows an object.",))
    masks = resize_masks(masks, RESOLUTION)  # once, and not in each of the hundreds of looks
    shares = _agreement_of(kept, masks, rig)
    iou = [0.0] * rig.num_views
    for v, share in zip(kept, shares, strict=True):
        iou[v] = share
    fitting, better = kept, shares
    while len(fitting) > 1 and min(better) < MIN_IOU:
        on_look()
        suspects = _find_suspects(fitting, better, masks, rig)
        fitting = [v for v in fitting if v not in suspects]
        better = _agreement_of(fitting, masks, rig) if fitting else []
    if len(kept) > 1 and len(fitting) == 1:
        fitting = []  # a view that is left alone agrees with nobody
    contradicting = [v for v in kept if v not in fitting]
    sentences = (
        _empty_sentence([v for v in range(rig.num_views) if v not in kept], rig),
        _contradiction_sentence(contradicting, _mean(shares), _mean(better) if fitting else None, rig),
    )
    disagreeing = tuple(v for v in range(rig.num_views) if v not in fitting)
    return Agreement(tuple(iou), disagreeing, tuple(sentence for sentence in sentences if sentence))


def repeat_sentence(images: Tensor, rig: CameraRig) -> str:
    """Say which views are the same picture to the last bit, or nothing.

    An object that looks the same from two sides is rarely drawn so; a picture that was connected twice is.

    Args:
        images: [V, 3, H, H].
        rig: the V cameras.
    """
    for v in range(len(images)):
        same = [w for w in range(v, len(images)) if torch.equal(images[v], images[w])]
        if len(same) > 1:
            return f"{name_views(same, rig)} are the same picture; check what is connected."
    return ""


def outline_sentence(outlines: Sequence[float], rig: CameraRig) -> str:
    """Name the views whose outlines are not those of a mesh, or say nothing.

    Args:
        outlines: each view's `view_agreement` with the mesh.
        rig: the V cameras.
    """
    other = [v for v, iou in enumerate(outlines) if iou < MIN_OUTLINE]
    if not other:
        return ""
    verb = "shows another outline" if len(other) == 1 else "show other outlines"
    return (
        f"{name_views(other, rig)} {verb} than the mesh has from there; check that the rig is the one "
        "that the views were made with, and that the mesh is of this object, upright, its front to the front."
    )


def _agreement_of(indices: Sequence[int], masks: Tensor, rig: CameraRig) -> list[float]:
    """Return the agreement of some of the views with the hull of those alone."""
    chosen, cameras = masks[list(indices)], rig.subset(indices)
    picture_px = min(RESOLUTION, masks.shape[-1])
    projection = project(carve_hull(chosen, cameras, RESOLUTION), cameras, picture_px)
    return view_agreement(projection, chosen).tolist()


def _find_suspects(kept: list[int], shares: list[float], masks: Tensor, rig: CameraRig) -> list[int]:
    """Return the view that the others agree best without, and all that are as suspicious.

    With several wrong views, leaving out one may help nothing; then the one that agrees least with the others
    one by one is suspicious.
    """
    if len(kept) == 2:
        return kept
    doubt = {v: _mean(_agreement_of([w for w in kept if w != v], masks, rig)) for v in kept}
    if max(doubt.values()) - _mean(shares) < _LEAST_GAIN:
        pairs = {v: [_mean(_agreement_of([v, w], masks, rig)) for w in kept if w != v] for v in kept}
        doubt = {v: 1 - _mean(agreements) for v, agreements in pairs.items()}
    return [v for v in kept if doubt[v] > max(doubt.values()) - _SAME_GAIN]


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def name_views(views: Sequence[int], rig: CameraRig) -> str:
    """Return "View 3 (right 90°)" or "Views 1 (front 0°) and 4 (back 180°)"."""
    names = [f"{v + 1} ({rig.labels()[v]})" for v in views]
    if len(names) == 1:
        return f"View {names[0]}"
    return f"Views {', '.join(names[:-1])} and {names[-1]}"


def _empty_sentence(views: Sequence[int], rig: CameraRig) -> str:
    if not views:
        return ""
    verb = "shows" if len(views) == 1 else "show"
    return f"{name_views(views, rig)} {verb} no object, so no solid fits all views; leave out what is empty."


def _contradiction_sentence(
    views: Sequence[int], agreement: float, without: float | None, rig: CameraRig
) -> str:
    """Return what contradicting views cost; `without` is the agreement of the rest, None if none is left."""
    if not views:
        return ""
    names, now = name_views(views, rig), f"{100 * agreement:.0f} %"
    if without is None:
        return f"{names} contradict each other: they agree with one solid to {now} only."
    verb, them = ("contradicts the others", "it") if len(views) == 1 else ("contradict other views", "them")
    return f"{names} {verb}: all agree with one solid to {now}, without {them} to {100 * without:.0f} %."
