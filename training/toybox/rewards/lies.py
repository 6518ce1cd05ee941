"""True and false descriptions of scenes: what the rewards learn about captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from t2mv_core.toybox.prompt_lists import PromptSpec

from ..data.captions import spec_of
from ..data.companions import COMPANIONS
from ..data.scenes import COLOURS, FAMILIES, Scene, is_held_out

MENTIONED = 0.8  # share of part colours and companions that a description says
CAPTION_WEIGHTS = {"family": 0.6, "colour": 0.4, "part": 0.25, "companion": 0.25}
CAPTION_DAMAGES = ("family", "colour", "part", "companion", "swap")


def describe(scene: Scene, rng: np.random.Generator) -> PromptSpec:
    """A true description in a random wording; the part's own colour and the companion are usually said."""
    says_part, says_companion = rng.random(2) < MENTIONED
    part = scene.part_colour if says_part else None
    companion = scene.companion_colour if says_companion else None
    return spec_of(scene.family, scene.colour, part, companion, int(rng.integers(4)))


def possible_lies(spec: PromptSpec) -> list[str]:
    """The kinds of CAPTION_DAMAGES that can be done to a description."""
    kinds = ["family", "colour"]
    kinds += ["part"] if spec.part_colour is not None else []
    kinds += ["companion"] if spec.companion_colour is not None else []
    return kinds + (["swap"] if _swaps(spec) else [])


def falsify(spec: PromptSpec, kind: str, rng: np.random.Generator) -> PromptSpec:
    """Change one thing a description says, not into a combination that is held out of training.

    Args:
        spec: a true description.
        kind: "family", "colour", "part", "companion", "swap" (the body's colour exchanged with the part's or
            the companion's), or "any" for a possible one. An impossible one becomes "colour".
        rng: draws the new words.
    """
    possible = possible_lies(spec)
    if kind == "any":
        kind = possible[int(rng.integers(len(possible)))]
    change = _CHANGES[kind if kind in possible else "colour"]
    # A swap has few outcomes; and where a test scene is held out itself, there is nothing to keep back.
    is_exempt = kind == "swap" or _is_held_out(spec)
    while True:
        lie = change(spec, rng)
        if is_exempt or not _is_held_out(lie):
            style = int(rng.integers(4))
            return spec_of(lie.family, lie.colour, lie.part_colour, lie.companion_colour, style)


def _lie_about_family(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    names = tuple(FAMILIES if spec.companion_colour is None else COMPANIONS)
    return replace(spec, family=_other(names, (spec.family,), rng))


def _lie_about_colour(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    named = (spec.colour, spec.part_colour, spec.companion_colour)
    return replace(spec, colour=_other(tuple(COLOURS), named, rng))


def _lie_about_part(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    return replace(spec, part_colour=_other(tuple(COLOURS), (spec.colour, spec.part_colour), rng))


def _lie_about_companion(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    return replace(spec, companion_colour=_other(tuple(COLOURS), (spec.colour, spec.companion_colour), rng))


def _swap(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    swaps = _swaps(spec)
    return swaps[int(rng.integers(len(swaps)))]


_CHANGES = {
    "family": _lie_about_family,
    "colour": _lie_about_colour,
    "part": _lie_about_part,
    "companion": _lie_about_companion,
    "swap": _swap,
}


def _swaps(spec: PromptSpec) -> list[PromptSpec]:
    """The description with the body's colour exchanged, for every colour that a body can have."""
    swaps = []
    if spec.part_colour in COLOURS:
        swaps.append(replace(spec, colour=str(spec.part_colour), part_colour=spec.colour))
    if spec.companion_colour is not None:
        swaps.append(replace(spec, colour=spec.companion_colour, companion_colour=spec.colour))
    return swaps


def wrongness(spec: PromptSpec, scene: Scene) -> float:
    """How much of a description is false for a scene, in [0, 1]: the sum of its lies' CAPTION_WEIGHTS."""
    wrong = CAPTION_WEIGHTS["family"] * (spec.family != scene.family)
    wrong += CAPTION_WEIGHTS["colour"] * (spec.colour != scene.colour)
    wrong += CAPTION_WEIGHTS["part"] * (spec.part_colour not in (None, scene.part_colour))
    wrong += CAPTION_WEIGHTS["companion"] * (spec.companion_colour not in (None, scene.companion_colour))
    return min(1.0, wrong)


def truth_table(specs: Sequence[PromptSpec], scenes: Sequence[Scene]) -> Tensor:
    """Which description is true of which scene, [scenes, specs] bool."""
    is_true = np.ones((len(scenes), len(specs)), np.bool_)
    for name in ("family", "colour", "part_colour", "companion_colour"):
        shown = np.array([str(getattr(scene, name)) for scene in scenes])
        claims = np.array([str(getattr(spec, name)) for spec in specs])
        is_silent = np.array([getattr(spec, name) is None for spec in specs])
        is_true &= (shown[:, None] == claims[None]) | is_silent
    return torch.from_numpy(is_true)


def _is_held_out(spec: PromptSpec) -> bool:
    return is_held_out(spec.family, spec.colour, spec.part_colour, spec.companion_colour)


def _other(names: tuple[str, ...], excluded: tuple[str | None, ...], rng: np.random.Generator) -> str:
    left = [name for name in names if name not in excluded]
    return left[int(rng.integers(len(left)))]
