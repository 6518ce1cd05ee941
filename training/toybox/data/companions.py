"""What stands with an object: a plate under a mug, a ball beside a robot; a caption binds its colour, too.

Front is -y, right is +x, up is +z, as in the families. Every companion fits into the frame from all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .shapes import Part, half_extents

_CORNER = (0.27, -0.27)  # front right, 0.38 from the axis


@dataclass(frozen=True)
class Companion:
    """A second object.

    Attributes:
        name: its noun.
        place: the preposition: "on", "beside".
        build: its primitives, of the material "companion", on or under a floor at height z.
    """

    name: str
    place: str
    build: Callable[[float], list[Part]]


def floor_of(parts: Sequence[Part]) -> float:
    """Height z of the lowest point of some parts' bounding boxes."""
    return min(
        part.at[2]
        - sum(
            abs(axis[2]) * extent
            for axis, extent in zip(part.axes, half_extents(part.shape, part.size), strict=True)
        )
        for part in parts
    )


def _plate(floor: float) -> list[Part]:
    return [
        Part("cone", (0.30, 0.48, 0.03), (0, 0, floor - 0.02), "companion"),
        Part("torus", (0.46, 0.03), (0, 0, floor + 0.005), "companion"),
    ]


def _rug(floor: float) -> list[Part]:
    return [Part("cylinder", (0.53, 0.03), (0, 0, floor - 0.02), "companion")]


def _ball(floor: float) -> list[Part]:
    return [Part("ellipsoid", (0.14,) * 3, (*_CORNER, floor + 0.14), "companion")]


def _box(floor: float) -> list[Part]:
    return [Part("box", (0.11, 0.11, 0.13, 0.015), (*_CORNER, floor + 0.13), "companion")]


PLATE = Companion("plate", "on", _plate)
RUG = Companion("rug", "on", _rug)
BALL = Companion("ball", "beside", _ball)
BOX = Companion("box", "beside", _box)

COMPANIONS = {
    "mug": PLATE,
    "teapot": PLATE,
    "chair": RUG,
    "sofa": RUG,
    "lamp": BOX,
    "robot": BALL,
    "snowman": BALL,
    "dog": BALL,
    "tree": BOX,
    "mushroom": BOX,
    "rocket": BOX,
}
"""The companion of every family that has one."""
