"""Six small orthographic pictures of a scene by sphere tracing, fast on one CPU core.

Each part is traced on its own, only over the rays that meet its bounding box and only as long as they live;
the nearest part wins, which is exact for a union. Pictures are traced at twice their size and averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.toybox.silhouettes import BACKGROUND

from .scenes import Scene, build_parts, material_colours
from .shapes import Array, Part, Vector, distance, half_extents

FRUSTUM = DEFAULT_RIG.frustum
SUPERSAMPLING = 2
LIGHT: Vector = (0.47, -0.52, 0.713)  # towards the light, fixed in the world: front, right, above
AMBIENT, DIFFUSE, GLOSS = 0.62, 0.42, 0.14
MAX_STEPS, HIT_DISTANCE = 40, 0.0015


def render_views(
    scene: Scene,
    azimuths_deg: Sequence[float] = DEFAULT_RIG.azimuths_deg,
    image_px: int = 64,
    light: Vector = LIGHT,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Render a scene from a ring of orthographic cameras at elevation 0.

    User azimuth 0 looks along +y (image right = +x, up = +z); azimuth 90 stands at +x (image right = +y).

    Args:
        scene: what to draw.
        azimuths_deg: V user azimuths, degrees.
        image_px: edge of the square pictures, pixels.
        light: unit vector towards the light, in the world.

    Returns:
        Pictures uint8 [V, image_px, image_px, 3]; silhouettes bool [V, image_px, image_px], true where at
        least half of the pixel is covered.

    Raises:
        ValueError: no azimuth is given or image_px is below 8.
    """
    if not len(azimuths_deg) or image_px < 8:
        raise ValueError(
            f"render_views got {len(azimuths_deg)} azimuths and image_px={image_px}; "
            "pass at least one azimuth in degrees and at least 8 pixels"
        )
    edge = image_px * SUPERSAMPLING
    parts = build_parts(scene)
    cameras = [_camera(azimuth) for azimuth in azimuths_deg]
    depth = np.full(len(cameras) * edge * edge, np.inf, dtype=np.float32)
    winner = np.full(depth.shape, -1, dtype=np.int16)
    hits = []
    for number, part in enumerate(parts):
        pixels, points, part_depth = _trace(part, cameras, edge)
        nearer = part_depth < depth[pixels]
        pixels, points = pixels[nearer], [axis[nearer] for axis in points]
        depth[pixels], winner[pixels] = part_depth[nearer], number
        hits.append((pixels, points))
    colours = _shade(scene, parts, hits, winner, cameras, light)
    return _average(colours, winner >= 0, len(cameras), image_px)


def _camera(azimuth_deg: float) -> tuple[Vector, Vector]:
    """The image's right axis and the viewing direction of a user azimuth."""
    c, s = math.cos(math.radians(azimuth_deg)), math.sin(math.radians(azimuth_deg))
    return (c, s, 0.0), (-s, c, 0.0)


def _trace(
    part: Part, cameras: list[tuple[Vector, Vector]], edge: int
) -> tuple[NDArray[np.int64], list[Array], Array]:
    """Hits of one part: flat pixel numbers, local points (x, y, z), and world depth along the view."""
    rays = [_rays(part, index, camera, edge) for index, camera in enumerate(cameras)]
    pixels = np.concatenate([ray[0] for ray in rays])
    x, y, z, s, end, dx, dy, dz = (np.concatenate([ray[1][k] for ray in rays]) for k in range(8))
    middle = np.concatenate([ray[2] for ray in rays])
    found: list[tuple[NDArray[Any], ...]] = []
    alive = np.arange(len(pixels))
    for _ in range(MAX_STEPS):
        d = distance(part.shape, part.size, x, y, z)
        hit = d < np.float32(HIT_DISTANCE)
        if hit.any():
            found.append((alive[hit], x[hit], y[hit], z[hit], s[hit]))
        d = np.maximum(d, np.float32(HIT_DISTANCE))
        keep = ~hit & (s + d <= end)
        alive, d = alive[keep], d[keep]
        if not len(alive):
            break
        s, end, dx, dy, dz = s[keep] + d, end[keep], dx[keep], dy[keep], dz[keep]
        x, y, z = x[keep] + dx * d, y[keep] + dy * d, z[keep] + dz * d
    if not found:
        none = np.zeros(0, dtype=np.float32)
        return np.zeros(0, dtype=np.int64), [none, none, none], none
    index, x, y, z, s = (np.concatenate(group) for group in zip(*found, strict=True))
    return pixels[index], [x, y, z], s + middle[index]


def _rays(
    part: Part, view: int, camera: tuple[Vector, Vector], edge: int
) -> tuple[NDArray[np.int64], list[Array], Array]:
    """Rays of one view that may meet the part's box.

    Returns flat pixel numbers; local start (x, y, z), path so far, its end, local direction (x, y, z); the
    depth of the part's centre.
    """
    right, forward = camera
    up: Vector = (0.0, 0.0, 1.0)
    extents = half_extents(part.shape, part.size)
    local = [tuple(_dot(axis, vector) for axis in part.axes) for vector in (right, up, forward)]
    reach_u, reach_v, reach_d = (
        sum(abs(a) * e for a, e in zip(vector, extents, strict=True)) for vector in local
    )
    columns = _window(_dot(part.at, right), reach_u, edge)
    rows = _window(-part.at[2], reach_v, edge)
    u = (((columns + 0.5) * 2 / edge - 1) * FRUSTUM - _dot(part.at, right)).astype(np.float32)
    v = ((1 - (rows + 0.5) * 2 / edge) * FRUSTUM - part.at[2]).astype(np.float32)
    pixels = ((view * edge + rows)[:, None] * edge + columns[None, :]).ravel()
    start = [
        (
            np.float32(local[1][k]) * v[:, None]
            + np.float32(local[0][k]) * u[None, :]
            + np.float32(-reach_d * local[2][k])
        ).ravel()
        for k in range(3)
    ]
    count = len(pixels)
    paths = [np.full(count, value, dtype=np.float32) for value in (-reach_d, reach_d + 1e-3, *local[2])]
    offset = np.full(count, _dot(part.at, forward), dtype=np.float32)
    return pixels, [*start, *paths], offset


def _window(centre: float, reach: float, edge: int) -> NDArray[np.int64]:
    """Rows or columns whose pixel centres lie within `reach` of `centre`."""
    low = math.floor(((centre - reach) / FRUSTUM + 1) / 2 * edge)
    high = math.ceil(((centre + reach) / FRUSTUM + 1) / 2 * edge)
    return np.arange(max(low, 0), min(max(high, 0), edge), dtype=np.int64)


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _shade(
    scene: Scene,
    parts: list[Part],
    hits: list[tuple[NDArray[np.int64], list[Array]]],
    winner: NDArray[np.int16],
    cameras: list[tuple[Vector, Vector]],
    light: Vector,
) -> Array:
    """Colours [pixels, 3]: ambient + wrapped Lambert + a soft highlight; the light is fixed in the world."""
    palette = material_colours(scene)
    colours = np.full((len(winner), 3), BACKGROUND, dtype=np.float32)
    per_view = len(winner) // len(cameras)
    halves = np.array([_half_vector(forward, light) for _, forward in cameras], dtype=np.float32)
    for number, (pixels, points) in enumerate(hits):
        visible = winner[pixels] == number
        if not visible.any():
            continue
        pixels = pixels[visible]
        nx, ny, nz = _normals(parts[number], [axis[visible] for axis in points])
        lambert = nx * np.float32(light[0]) + ny * np.float32(light[1]) + nz * np.float32(light[2])
        lit = np.float32(AMBIENT) + np.float32(DIFFUSE) * (np.float32(0.5) + np.float32(0.5) * lambert)
        half = halves[pixels // per_view]
        shine = np.maximum(nx * half[:, 0] + ny * half[:, 1] + nz * half[:, 2], np.float32(0))
        for _ in range(4):  # to the 16th power, by squaring: exactly rounded on every machine
            shine = shine * shine
        base = np.asarray(palette[parts[number].material], dtype=np.float32)
        colours[pixels] = base[None, :] * lit[:, None] + np.float32(GLOSS) * shine[:, None]
    return colours


def _half_vector(forward: Vector, light: Vector) -> Vector:
    """Unit vector between the light and the viewer."""
    x, y, z = light[0] - forward[0], light[1] - forward[1], light[2] - forward[2]
    length = math.sqrt(x * x + y * y + z * z)
    return (x / length, y / length, z / length)


def _normals(part: Part, points: list[Array]) -> tuple[Array, Array, Array]:
    """World normals by differences of the distance at the four corners of a small tetrahedron."""
    x, y, z = points
    step = np.float32(1e-3)
    gradient = [np.zeros_like(x) for _ in range(3)]
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        ex, ey, ez = (np.float32(value) * step for value in corner)
        d = distance(part.shape, part.size, x + ex, y + ey, z + ez)
        for k in range(3):
            gradient[k] += np.float32(corner[k]) * d
    a, b, c = gradient
    scale = np.float32(1) / np.sqrt(a * a + b * b + c * c + np.float32(1e-20))
    a, b, c = a * scale, b * scale, c * scale
    u, v, w = part.axes
    nx, ny, nz = (np.float32(u[k]) * a + np.float32(v[k]) * b + np.float32(w[k]) * c for k in range(3))
    return nx, ny, nz


def _average(
    colours: Array, covered: NDArray[np.bool_], num_views: int, image_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Average the fine pixels of each pixel and quantize."""
    s = SUPERSAMPLING
    fine = np.rint(np.clip(colours, 0, 1) * np.float32(255)).astype(np.uint16)
    blocks = fine.reshape(num_views, image_px, s, image_px, s, 3)
    total = sum(blocks[:, :, i, :, j] for i in range(s) for j in range(s))
    images = ((total + s * s // 2) // (s * s)).astype(np.uint8)
    cover = covered.reshape(num_views, image_px, s, image_px, s).sum(axis=(2, 4), dtype=np.int64)
    return images, cover * 2 >= s * s
