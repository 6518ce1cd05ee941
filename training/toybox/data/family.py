"""The record that describes one family of toybox objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .shapes import Part

Proportions = Mapping[str, float]


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
