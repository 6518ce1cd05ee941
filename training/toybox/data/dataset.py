"""The rendered dataset on disk: shards of pictures and ground truth; a kill costs at most one shard."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.formats.atomic import replaced

from .renderer import render_views
from .scenes import FAMILIES, Scene, sample_scene

SHARD_SIZE = 200
IMAGE_PX = 64
_RECIPE = "recipe.json"


@dataclass(frozen=True)
class Dataset:
    """N scenes: `images` uint8 [N, V, H, W, 3], `silhouettes` bool [N, V, H, W], ground truth, V azimuths."""

    images: NDArray[np.uint8]
    silhouettes: NDArray[np.bool_]
    scenes: list[Scene]
    azimuths_deg: tuple[float, ...]


def render_dataset(
    out_dir: Path, num_scenes: int, seed: int, workers: int = 1, allow_held_out: bool = False
) -> None:
    """Render scenes 0..num_scenes-1 into shards; existing shards are kept, so a killed run continues.

    Scene i depends on (seed, i) only, and families take turns, so they are balanced.

    Args:
        out_dir: folder of the shards; made when missing.
        num_scenes: how many scenes, > 0.
        seed: which dataset, >= 0.
        workers: processes.
        allow_held_out: also draw the combinations that training must never see (for test sets).

    Raises:
        ValueError: the folder holds another dataset (other scenes, seed or held-out rule), or a bad number.
    """
    from tqdm import tqdm

    for name, value, least in (("num_scenes", num_scenes, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    out_dir.mkdir(parents=True, exist_ok=True)
    _check_recipe(out_dir, {"num_scenes": num_scenes, "seed": seed, "allow_held_out": allow_held_out})
    starts = [s for s in range(0, num_scenes, SHARD_SIZE) if not _shard_path(out_dir, s).exists()]
    write = partial(_write_shard, out_dir, num_scenes, seed, allow_held_out)
    with tqdm(total=num_scenes, unit="scene", desc=f"render {out_dir.name}", mininterval=1.0) as bar:
        bar.update(num_scenes - sum(min(SHARD_SIZE, num_scenes - s) for s in starts))
        if workers == 1 or len(starts) < 2:
            for count in map(write, starts):
                bar.update(count)
            return
        with ProcessPoolExecutor(max_workers=workers) as pool:
            for count in pool.map(write, starts):
                bar.update(count)


def load_dataset(dataset_dir: Path, limit: int | None = None) -> Dataset:
    """Read a rendered dataset into memory (73,728 bytes a scene), the first `limit` scenes when given.

    Raises:
        FileNotFoundError: the folder holds no dataset, or not all of its shards.
    """
    recipe_path = dataset_dir / _RECIPE
    if not recipe_path.exists():
        raise FileNotFoundError(
            f"{dataset_dir} holds no rendered dataset; run `python -m training.toybox render` first"
        )
    num_scenes = json.loads(recipe_path.read_text())["num_scenes"]
    wanted = num_scenes if limit is None else min(limit, num_scenes)
    views = len(DEFAULT_RIG.azimuths_deg)
    images = np.empty((wanted, views, IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    silhouettes = np.empty(images.shape[:-1], dtype=np.bool_)
    scenes: list[Scene] = []
    for start in range(0, wanted, SHARD_SIZE):
        path = _shard_path(dataset_dir, start)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; run the render stage again to complete the dataset")
        count = min(SHARD_SIZE, wanted - start)
        with np.load(path) as shard:
            images[start : start + count] = shard["images"][:count]
            packed = shard["silhouettes"][:count]
            silhouettes[start : start + count] = np.unpackbits(packed, axis=-1).astype(np.bool_)
            scenes += [Scene(**record) for record in json.loads(str(shard["scenes"]))[:count]]
    return Dataset(images, silhouettes, scenes, DEFAULT_RIG.azimuths_deg)


def dataset_scene(seed: int, index: int, allow_held_out: bool = False) -> Scene:
    """The scene number `index` of dataset `seed`; family `index` modulo the number of families."""
    # One 63-bit seed from the pair; SeedSequence hashes, so neighbouring scenes share nothing.
    entropy = np.random.SeedSequence([seed, index]).generate_state(1, dtype=np.uint64)
    names = tuple(FAMILIES)
    return sample_scene(
        int(entropy[0] >> np.uint64(1)), names[index % len(names)], allow_held_out=allow_held_out
    )


def _shard_path(out_dir: Path, start: int) -> Path:
    return out_dir / f"scenes_{start:06d}.npz"


def _check_recipe(out_dir: Path, recipe: dict[str, int | bool]) -> None:
    path = out_dir / _RECIPE
    if not path.exists():
        with replaced(path) as temporary:
            temporary.write_text(json.dumps(recipe))
        return
    found = json.loads(path.read_text())
    if found != recipe:
        raise ValueError(
            f"{out_dir} holds a dataset of {found}, asked for {recipe}; choose another folder or delete it"
        )


def _write_shard(out_dir: Path, num_scenes: int, seed: int, allow_held_out: bool, start: int) -> int:
    scenes = [
        dataset_scene(seed, i, allow_held_out) for i in range(start, min(start + SHARD_SIZE, num_scenes))
    ]
    rendered = [render_views(scene, DEFAULT_RIG.azimuths_deg, IMAGE_PX) for scene in scenes]
    path = _shard_path(out_dir, start)
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            images=np.stack([images for images, _ in rendered]),
            silhouettes=np.packbits(np.stack([silhouettes for _, silhouettes in rendered]), axis=-1),
            scenes=np.array(json.dumps([asdict(scene) for scene in scenes])),
        )
    return len(scenes)
