"""Pictures of scenes as a user might bring them: from any side, under other light, cut out and framed."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.formats.atomic import replaced
from t2mv_core.reference_picture import frame_picture

from .dataset import IMAGE_PX
from .renderer import render_views
from .scenes import Scene
from .shapes import Vector

PER_SCENE = 2
DRAWN_PX = 96  # before it is framed
OF_THE_RIG = 0.5  # share of the pictures from one of the rig's sides; the others are from anywhere
LIGHT_ELEVATION_DEG = (15.0, 75.0)
_CHUNK_SCENES = 50


def draw_reference(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint8], float]:
    """Draw a framed picture of a scene, uint8 [64, 64, 3]; return it with its camera's azimuth in degrees."""
    azimuth = float(rng.uniform(0, 360))
    if rng.random() < OF_THE_RIG:
        azimuth = float(rng.choice(DEFAULT_RIG.azimuths_deg))
    return render_reference(scene, azimuth, draw_light(rng)), azimuth


def draw_light(rng: np.random.Generator) -> Vector:
    """Draw a direction to the light, from above, as a unit vector."""
    elevation, azimuth = (math.radians(x) for x in (rng.uniform(*LIGHT_ELEVATION_DEG), rng.uniform(0, 360)))
    level = math.cos(elevation)
    return level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)


def render_reference(scene: Scene, azimuth_deg: float, light: Vector) -> NDArray[np.uint8]:
    """Render a scene from one side and frame it as `reference_picture` frames a user's, uint8 [64, 64, 3]."""
    images, silhouettes = render_views(scene, [azimuth_deg], DRAWN_PX, light)
    colours = torch.from_numpy(images[0]).movedim(-1, 0).float() / 255
    picture = torch.cat([colours, torch.from_numpy(silhouettes).float()])
    framed = frame_picture(picture, IMAGE_PX)
    return (255 * framed).round().to(torch.uint8).movedim(0, -1).numpy()


def render_references(scenes: list[Scene], path: Path, seed: int, workers: int = 1) -> None:
    """Write pictures of all scenes, uint8 [N, PER_SCENE, 64, 64, 3], unless the file is there.

    The pictures of scene i depend on (seed, i) only.
    """
    from tqdm import tqdm

    if path.is_file():
        return
    starts = range(0, len(scenes), _CHUNK_SCENES)
    chunks = [scenes[start : start + _CHUNK_SCENES] for start in starts]
    # Not forked: a copy of a process in which torch has worked hangs at its first interpolation.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(partial(_draw_chunk, seed), starts, chunks)
        pictures = list(tqdm(drawn, total=len(chunks), desc="references", mininterval=5.0))
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(pictures))


def _draw_chunk(seed: int, start: int, scenes: list[Scene]) -> NDArray[np.uint8]:
    rngs = [np.random.default_rng([seed, start + number]) for number in range(len(scenes))]
    pictures = [
        [draw_reference(scene, rng)[0] for _ in range(PER_SCENE)]
        for scene, rng in zip(scenes, rngs, strict=True)
    ]
    return np.array(pictures)
