"""Stage `aware`: the other student, distilled with the adapter in place on trajectories of all views.

Nothing of it is shipped. It shows how much of the headroom comes from how the shipped student was distilled
(on single pictures, as LCM-SDXL) and how much from the schedule and the few steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.captions import caption
from ..data.dataset import load_dataset
from .adapter import load_teacher
from .evaluate import measure_aware
from .lcm import Amounts, solve_chunk, train_student, write_shards
from .networks import MultiviewNetworks, load_average
from .stage import StageConfig, seed_everything

AMOUNTS = Amounts(num_chunks=24, chunk_size=12, num_updates=600, batch_pairs=10)
QUICK = Amounts(num_chunks=1, chunk_size=2, num_updates=4, batch_pairs=2)
SEED_OFFSET = 60


def run(config: StageConfig) -> None:
    """Distil the student, and report it beside the shipped one in `export/aware.json`."""
    if not (report := config.export_dir / "report.json").is_file():
        raise FileNotFoundError(
            f"There is no {report}; run the stage evaluate first, which measures the others."
        )
    amounts = QUICK if config.quick else AMOUNTS
    seed_everything(config.seed + SEED_OFFSET)
    teacher, folder = load_teacher(config), config.out_dir / "aware"
    shards = solve_trajectories(config, teacher, amounts, folder)
    train_student(config, teacher, shards, amounts, folder)
    measure_aware(config, load_aware_student(folder))


def solve_trajectories(
    config: StageConfig, teacher: MultiviewNetworks, amounts: Amounts, folder: Path
) -> list[Path]:
    """Write shards of solved trajectories of whole sets."""
    latents = np.load(config.out_dir / "latents.npy", mmap_mode="r")
    scenes = load_dataset(config.data_dir).scenes

    def solve(rng: np.random.Generator) -> dict[str, np.ndarray]:
        torch.manual_seed(int(rng.integers(2**62)))
        picked = np.sort(rng.integers(len(scenes), size=amounts.chunk_size))
        captions = [caption(scenes[i], rng) for i in picked]
        return solve_chunk(teacher, captions, torch.from_numpy(latents[picked]).float(), rng)

    return write_shards(folder, amounts.num_chunks, config.seed + SEED_OFFSET, solve)


def load_aware_student(stage_dir: Path) -> MultiviewNetworks:
    """The running average of the student, frozen; see `load_average` for what raises."""
    student = load_average(MultiviewNetworks(has_guidance_embedding=True), stage_dir)
    return student.eval().requires_grad_(False)
