"""The families of toybox objects: their names, parts and proportions in one table.

Front is -y (the camera at azimuth 0), right is +x, up is +z. An asymmetric family shows its azimuth in every
single view by shape or by the places of its parts, not only by shading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import families_furniture as furniture
from . import families_home as home
from . import families_moving as moving
from . import families_outdoor as outdoor
from .shapes import Part, Proportions

_LEGS = ("wooden", "metal")


@dataclass(frozen=True)
class Family:
    """A family: how to build it from its proportions and what its captions may say.

    `part_name` is the part that can have its own colour; `part_default` is its material when none is said.
    `ranges` bounds each proportion; `part_materials` are allowed for the part besides the ten colours.
    """

    name: str
    build: Callable[[Proportions], list[Part]]
    part_name: str
    part_default: str
    is_asymmetric: bool
    ranges: Mapping[str, tuple[float, float]]
    part_materials: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("mug", home.mug, "handle", "body", True, home.MUG),
        Family("teapot", home.teapot, "handle", "body", True, home.TEAPOT, _LEGS),
        Family("chair", furniture.chair, "legs", "wooden", True, furniture.CHAIR, _LEGS),
        Family("table", furniture.table, "legs", "body", False, furniture.TABLE, _LEGS),
        Family("bench", furniture.bench, "legs", "metal", True, furniture.BENCH, _LEGS),
        Family("sofa", furniture.sofa, "cushions", "accent", True, furniture.SOFA),
        Family("lamp", furniture.lamp, "base", "metal", False, furniture.LAMP, _LEGS),
        Family("hammer", home.hammer, "head", "metal", False, home.HAMMER, _LEGS),
        Family("umbrella", home.umbrella, "handle", "wooden", False, home.UMBRELLA, _LEGS),
        Family("robot", home.robot, "arms", "metal", True, home.ROBOT, _LEGS),
        Family("house", outdoor.house, "roof", "dark", True, outdoor.HOUSE, _LEGS),
        Family("windmill", outdoor.windmill, "blades", "accent", True, outdoor.WINDMILL, _LEGS),
        Family("tree", outdoor.tree, "trunk", "wooden", False, outdoor.TREE),
        Family("mushroom", outdoor.mushroom, "stem", "cream", False, outdoor.MUSHROOM),
        Family("snowman", outdoor.snowman, "hat", "dark", True, outdoor.SNOWMAN),
        Family("duck", outdoor.duck, "beak", "amber", True, outdoor.DUCK),
        Family("dog", outdoor.dog, "ears", "tint", True, outdoor.DOG),
        Family("rocket", moving.rocket, "fins", "metal", True, moving.ROCKET, _LEGS),
        Family("airplane", moving.airplane, "wings", "metal", True, moving.AIRPLANE, _LEGS),
        Family("car", moving.car, "wheels", "rubber", True, moving.CAR, _LEGS),
        Family("truck", moving.truck, "wheels", "rubber", True, moving.TRUCK, _LEGS),
        Family("boat", moving.boat, "cabin", "cream", True, moving.BOAT, _LEGS),
    )
}
