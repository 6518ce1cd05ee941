"""Random toybox scenes: an object of a family, its colours, what stands with it; what training never sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .companions import COMPANIONS, floor_of
from .families import FAMILIES, Family
from .shapes import Part

__all__ = [
    "COLOURS", "COMPANIONS", "FAMILIES", "HELD_OUT_PAIRS", "HELD_OUT_PARTS", "HELD_OUT_RELATIONS",
    "Family", "Scene", "build_parts", "is_held_out", "material_colours", "sample_scene",
]  # fmt: skip

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.86, 0.09, 0.10),
    "green": (0.10, 0.62, 0.17),
    "blue": (0.10, 0.25, 0.88),
    "yellow": (0.97, 0.87, 0.10),
    "orange": (0.98, 0.48, 0.04),
    "purple": (0.50, 0.11, 0.66),
    "pink": (0.99, 0.56, 0.76),
    "brown": (0.40, 0.22, 0.10),
    "white": (0.97, 0.97, 0.96),
    "black": (0.07, 0.07, 0.08),
}

FIXED_MATERIALS: dict[str, Colour] = {
    "wood": (0.74, 0.54, 0.31),
    "wooden": (0.74, 0.54, 0.31),
    "metal": (0.33, 0.37, 0.43),
    "rubber": (0.14, 0.14, 0.15),
    "coal": (0.10, 0.10, 0.11),
    "dark": (0.24, 0.24, 0.27),
    "glass": (0.58, 0.82, 0.92),
    "light": (1.00, 0.96, 0.66),
    "amber": (0.98, 0.58, 0.08),
    "brick": (0.62, 0.15, 0.12),
    "cream": (0.93, 0.88, 0.76),
}

_NAMES, _SHADES = tuple(FAMILIES), tuple(COLOURS)


def _held_out_pairs() -> frozenset[tuple[str, str]]:
    """One colour of every family, another of every fifth: 27 of 220 pairs, every colour 2 to 4 times."""
    pairs = {(name, _SHADES[(3 * i + 1) % 10]) for i, name in enumerate(_NAMES)}
    pairs |= {(name, _SHADES[(3 * i + 6 + 2 * (i // 5)) % 10]) for i, name in enumerate(_NAMES) if i % 5 == 0}
    return frozenset(pairs)


def _held_out_parts() -> frozenset[tuple[str, str, str]]:
    """One or two seen pairs of every family, each with one part colour that is held out."""
    parts = set()
    for i, name in enumerate(_NAMES):
        for j in (0, 1):
            parts.add(
                (
                    name,
                    _SHADES[(3 * i + 3 + 2 * j) % 10],
                    _SHADES[(7 * i + 4 + 5 * j + (3 * i + 3 + 2 * j)) % 10],
                )
            )
    return frozenset(part for part in parts if part[1] != part[2])


def _held_out_relations() -> frozenset[tuple[str, str]]:
    """Two colours that the companion of each family never has: 22 of 110."""
    names = tuple(COMPANIONS)
    return frozenset(
        (name, _SHADES[(3 * i + 2 + 5 * j) % 10]) for i, name in enumerate(names) for j in (0, 1)
    )


HELD_OUT_PAIRS = _held_out_pairs()
"""(family, colour) pairs that never occur in training data."""
HELD_OUT_PARTS = _held_out_parts()
"""(family, colour, part colour) combinations that never occur in training data; their pairs do."""
HELD_OUT_RELATIONS = _held_out_relations()
"""(family, colour of its companion) that never occur in training data."""
_COMPANION_SHARE = 0.5


@dataclass(frozen=True)
class Scene:
    """Ground truth of one object.

    `part_colour` is one of the ten colours, "wooden" or "metal"; None: the family's default material.
    `companion_colour` is one of the ten colours; None: the object stands alone.
    """

    seed: int
    family: str
    colour: str
    part_colour: str | None = None
    companion_colour: str | None = None
    proportions: Mapping[str, float] = field(default_factory=dict)
    caption: str = ""


def is_held_out(
    family: str, colour: str, part_colour: str | None = None, companion_colour: str | None = None
) -> bool:
    """Whether training data must not contain this combination."""
    return (
        (family, colour) in HELD_OUT_PAIRS
        or (family, colour, part_colour) in HELD_OUT_PARTS
        or (family, companion_colour) in HELD_OUT_RELATIONS
    )


def sample_scene(
    seed: int, family: str | None = None, colour: str | None = None, allow_held_out: bool = False
) -> Scene:
    """Draw a scene; equal arguments give equal scenes.

    Args:
        seed: any non-negative integer.
        family: a key of FAMILIES; drawn uniformly when None.
        colour: a key of COLOURS; drawn uniformly among the allowed ones when None.
        allow_held_out: also draw combinations kept out of training.

    Returns:
        The scene with its caption.

    Raises:
        ValueError: an unknown family or colour, or a held-out pair without `allow_held_out`.
    """
    from .captions import caption  # captions describes scenes, so it imports this module

    rng = np.random.default_rng(np.random.SeedSequence(seed))
    family = _checked(family, _NAMES, "family") or _NAMES[int(rng.integers(len(_NAMES)))]
    if _checked(colour, _SHADES, "colour") is None:
        allowed = [name for name in _SHADES if allow_held_out or (family, name) not in HELD_OUT_PAIRS]
        colour = allowed[int(rng.integers(len(allowed)))]
    elif (family, colour) in HELD_OUT_PAIRS and not allow_held_out:
        raise ValueError(f"a {colour} {family} is held out of training; pass allow_held_out=True to draw it")
    assert colour is not None
    kind = FAMILIES[family]
    part_colour = _draw_part_colour(rng, kind, colour, allow_held_out)
    proportions = {name: round(float(rng.uniform(low, high)), 5) for name, (low, high) in kind.ranges.items()}
    companion_colour = _draw_companion_colour(rng, family, colour, allow_held_out)
    bare = Scene(seed, family, colour, part_colour, companion_colour, proportions)
    return replace(bare, caption=caption(bare, rng))


def _checked(name: str | None, allowed: tuple[str, ...], what: str) -> str | None:
    if name is not None and name not in allowed:
        raise ValueError(f"unknown {what} {name!r}; use one of: {', '.join(allowed)}")
    return name


def _draw_part_colour(
    rng: np.random.Generator, kind: Family, colour: str, allow_held_out: bool
) -> str | None:
    """None (the default material) in 45 % of the scenes; else another colour, or sometimes a material."""
    if rng.random() < 0.45:
        return None
    if kind.part_materials and rng.random() < 0.25:
        return kind.part_materials[int(rng.integers(len(kind.part_materials)))]
    allowed = [
        name
        for name in _SHADES
        if name != colour and (allow_held_out or (kind.name, colour, name) not in HELD_OUT_PARTS)
    ]
    return allowed[int(rng.integers(len(allowed)))]


def _draw_companion_colour(
    rng: np.random.Generator, family: str, colour: str, allow_held_out: bool
) -> str | None:
    if family not in COMPANIONS or rng.random() >= _COMPANION_SHARE:
        return None
    allowed = [
        name
        for name in _SHADES
        if name != colour and (allow_held_out or (family, name) not in HELD_OUT_RELATIONS)
    ]
    return allowed[int(rng.integers(len(allowed)))]


def build_parts(scene: Scene) -> list[Part]:
    """The scene's primitives in world units; each part's material is a key of `material_colours(scene)`."""
    parts = FAMILIES[scene.family].build(scene.proportions)
    if scene.companion_colour is None:
        return parts
    return [*parts, *COMPANIONS[scene.family].build(floor_of(parts))]


def material_colours(scene: Scene) -> dict[str, Colour]:
    """RGB in [0, 1] of every material a part may name.

    "body" is the scene's colour, "tint" a lighter or darker body for details, "accent" stands out from the
    body, "part" is the part that captions may mention.
    """
    body = COLOURS[scene.colour]
    luminance = 0.3 * body[0] + 0.59 * body[1] + 0.11 * body[2]
    tint = tuple(c + 0.25 * (1 - c) if luminance < 0.5 else 0.78 * c for c in body)
    if scene.colour == "white":
        tint = (0.70, 0.79, 0.92)  # a darkened white would vanish before the grey background
    accent = FIXED_MATERIALS["dark"] if scene.colour == "white" else COLOURS["white"]
    palette = {
        **FIXED_MATERIALS,
        **COLOURS,
        "body": body,
        "tint": (tint[0], tint[1], tint[2]),
        "accent": accent,
    }
    palette["part"] = palette[scene.part_colour or FAMILIES[scene.family].part_default]
    if scene.companion_colour is not None:
        palette["companion"] = COLOURS[scene.companion_colour]
    return palette
