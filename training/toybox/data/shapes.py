"""Primitives of toybox objects: signed distance functions and the parts that place them in the world.

Every distance works on three float32 arrays of local coordinates and is built to stay below the true
distance, so that sphere tracing does not step through a surface. Only + - * /, square roots and comparisons
are used on arrays: they are exactly rounded, hence the same seed gives the same picture bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = tuple[float, float, float]
Proportions = Mapping[str, float]
IDENTITY: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Part:
    """One primitive of an object, in world units (the camera sees x and z in [-0.55, 0.55]).

    `size` means what the distance function of `shape` says; `axes` are the local x, y, z axes in the world;
    `material` is a key of `scenes.material_colours`.
    """

    shape: str
    size: tuple[float, ...]
    at: Vector
    material: str = "body"
    axes: tuple[Vector, Vector, Vector] = IDENTITY


def distance(shape: str, size: tuple[float, ...], x: Array, y: Array, z: Array) -> Array:
    """Signed distance (a lower bound of it outside) from local points to a primitive, in world units."""
    return SHAPES[shape][0](size, x, y, z)


def half_extents(shape: str, size: tuple[float, ...]) -> Vector:
    """Half sizes of the primitive's local bounding box."""
    return SHAPES[shape][1](size)


def turned(axis: str, degrees: float) -> tuple[Vector, Vector, Vector]:
    """Local axes after a right-handed turn about the world's x, y or z axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return ((1.0, 0.0, 0.0), (0.0, c, s), (0.0, -s, c))
    if axis == "y":
        return ((c, 0.0, -s), (0.0, 1.0, 0.0), (s, 0.0, c))
    return ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0))


def along(direction: Vector) -> tuple[Vector, Vector, Vector]:
    """Local axes whose z axis points along `direction` (any length but zero)."""
    dx, dy, dz = direction
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    w = (dx / length, dy / length, dz / length)
    helper = (1.0, 0.0, 0.0) if abs(w[0]) < 0.9 else (0.0, 1.0, 0.0)
    v = (
        w[1] * helper[2] - w[2] * helper[1],
        w[2] * helper[0] - w[0] * helper[2],
        w[0] * helper[1] - w[1] * helper[0],
    )
    norm = math.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2)
    v = (v[0] / norm, v[1] / norm, v[2] / norm)
    u = (v[1] * w[2] - v[2] * w[1], v[2] * w[0] - v[0] * w[2], v[0] * w[1] - v[1] * w[0])
    return (u, v, w)


def limb(start: Vector, end: Vector, radius: float, material: str = "body") -> Part:
    """A capsule from one point to another."""
    return _between("capsule", start, end, (radius,), material)


def taper(start: Vector, end: Vector, radii: tuple[float, float], material: str = "body") -> Part:
    """A capped cone from one point to another, `radii` at its start and its end."""
    return _between("cone", start, end, radii, material)


def _between(shape: str, start: Vector, end: Vector, radii: tuple[float, ...], material: str) -> Part:
    direction = (end[0] - start[0], end[1] - start[1], end[2] - start[2])
    half = math.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2) / 2
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
    return Part(shape, (*radii, half), middle, material, along(direction))


def _length2(a: Array, b: Array) -> Array:
    return np.sqrt(a * a + b * b)


def _ellipsoid(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Three radii. First order distance k0 (k0 - 1) / k1, k0 = |p/r|, k1 = |p/r²|: k0 r - r for a sphere."""
    a, b, c = (np.float32(1.0 / radius) for radius in size)
    x1, y1, z1 = x * a, y * b, z * c
    k0 = np.sqrt(x1 * x1 + y1 * y1 + z1 * z1)
    x2, y2, z2 = x1 * a, y1 * b, z1 * c
    k1 = np.sqrt(x2 * x2 + y2 * y2 + z2 * z2) + np.float32(1e-6)
    # First order distances overestimate a little beside the poles of flat ellipsoids; 0.9 makes up for it.
    return np.float32(0.9) * k0 * (k0 - np.float32(1)) / k1


def _box(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Half sizes and the radius of the rounded edges, which lies inside the half sizes."""
    hx, hy, hz, r = (np.float32(value) for value in size)
    qx, qy, qz = np.abs(x) - (hx - r), np.abs(y) - (hy - r), np.abs(z) - (hz - r)
    inside = np.minimum(np.maximum(qx, np.maximum(qy, qz)), np.float32(0))
    qx, qy, qz = np.maximum(qx, np.float32(0)), np.maximum(qy, np.float32(0)), np.maximum(qz, np.float32(0))
    return np.sqrt(qx * qx + qy * qy + qz * qz) + inside - r


def _cylinder(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Radius, half height; axis z."""
    qr, qz = _length2(x, y) - np.float32(size[0]), np.abs(z) - np.float32(size[1])
    inside = np.minimum(np.maximum(qr, qz), np.float32(0))
    return _length2(np.maximum(qr, np.float32(0)), np.maximum(qz, np.float32(0))) + inside


def _cone(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Radius at the bottom, radius at the top, half height; axis z. Largest of its three plane distances."""
    bottom, top, half = size
    slope = (top - bottom) / (2 * half)
    cosine = 1.0 / math.sqrt(1.0 + slope * slope)
    radius = np.float32((bottom + top) / 2) + np.float32(slope) * z
    return np.maximum((_length2(x, y) - radius) * np.float32(cosine), np.abs(z) - np.float32(half))


def _torus(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Radius of the ring, radius of the tube; axis z."""
    return _length2(_length2(x, y) - np.float32(size[0]), z) - np.float32(size[1])


def _arch(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """The half of a torus with y >= 0."""
    return np.maximum(_torus(size, x, y, z), -y)


def _capsule(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Radius, half length between the centres of the caps; axis z."""
    half = np.float32(size[1])
    dz = z - np.minimum(np.maximum(z, -half), half)
    return np.sqrt(x * x + y * y + dz * dz) - np.float32(size[0])


def _cup(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Radius, half height, wall: a cylinder hollow from the top."""
    radius, half, wall = size
    inner = np.maximum(_length2(x, y) - np.float32(radius - wall), np.float32(wall - half) - z)
    return np.maximum(_cylinder((radius, half), x, y, z), -inner)


def _dome(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """The half of an ellipsoid (rx, ry, rz) with z >= 0."""
    return np.maximum(_ellipsoid(size, x, y, z), -z)


def _frustum(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Half x and y at the bottom, half x and y at the top, half height, shift of the top along y."""
    bottom_x, bottom_y, top_x, top_y, half, shift = size
    d = np.abs(z) - np.float32(half)
    slope = (top_x - bottom_x) / (2 * half)
    wall = np.abs(x) - (np.float32((bottom_x + top_x) / 2) + np.float32(slope) * z)
    d = np.maximum(d, wall * np.float32(1.0 / math.sqrt(1.0 + slope * slope)))
    for sign in (1.0, -1.0):
        slope = (top_y + sign * shift - bottom_y) / (2 * half)
        limit = np.float32((bottom_y + top_y + sign * shift) / 2) + np.float32(slope) * z
        d = np.maximum(d, (np.float32(sign) * y - limit) * np.float32(1.0 / math.sqrt(1.0 + slope * slope)))
    return d


def _hull(size: Sequence[float], x: Array, y: Array, z: Array) -> Array:
    """Half beam, half length, half height: a boat's hull, bow at -y, narrower at the keel."""
    beam, length, half = size
    reach = np.float32(beam) * (np.float32(1) + np.float32(0.28 / half) * (z - np.float32(half)))
    # The bow closes over the front 60 % of the length as a parabola: (1 - s^2).
    s = np.maximum(-y / np.float32(length) + np.float32(-0.2), np.float32(0)) * np.float32(1.25)
    wall = (np.abs(x) - reach * (np.float32(1) - s * s)) * np.float32(0.6)
    rake = (np.abs(y) - np.float32(length) - np.float32(0.3) * (z - np.float32(half))) * np.float32(0.9)
    return np.maximum(np.maximum(wall, rake), np.abs(z) - np.float32(half))


SHAPES: dict[str, tuple[Callable[[Any, Array, Array, Array], Array], Callable[[Any], Vector]]] = {
    "ellipsoid": (_ellipsoid, lambda s: (s[0], s[1], s[2])),
    "box": (_box, lambda s: (s[0], s[1], s[2])),
    "cylinder": (_cylinder, lambda s: (s[0], s[0], s[1])),
    "cone": (_cone, lambda s: (max(s[0], s[1]), max(s[0], s[1]), s[2])),
    "torus": (_torus, lambda s: (s[0] + s[1], s[0] + s[1], s[1])),
    "arch": (_arch, lambda s: (s[0] + s[1], s[0] + s[1], s[1])),
    "capsule": (_capsule, lambda s: (s[0], s[0], s[1] + s[0])),
    "cup": (_cup, lambda s: (s[0], s[0], s[1])),
    "dome": (_dome, lambda s: (s[0], s[1], s[2])),
    "frustum": (_frustum, lambda s: (max(s[0], s[2]), max(s[1], s[3] + abs(s[5])), s[4])),
    "hull": (_hull, lambda s: (s[0], s[1], s[2])),
}
