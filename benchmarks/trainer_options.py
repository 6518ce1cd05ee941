"""What each cost lever of the trainer costs and saves, measured in one run on the bundled model.

python -m benchmarks.trainer_options

Every lever is one policy update (or one rollout) on the same prompts from the same start; the first row is
the reference of the ratios. Memory is what the phase needs above what lay there before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2mv_core.loading import load_bundle
from training.config import home_path, load_config
from training.evaluation.report import markdown_rows
from training.models.rewards import load_rewards
from training.run.trainer import Trainer

from .measuring import report, timed

SHARED = (
    "sampling.prompts_per_iteration=8",
    "sampling.batch_size=4",
    "optim.prompts_per_update=8",
    "optim.micro_batch=4",
    "optim.lr=1e-9",  # the policy stays where it is: every lever does the same work
    "run.trackers=[]",
)
UPDATES: dict[str, tuple[str, ...]] = {
    "reference (micro_batch 4, all 4 steps)": (),
    "optim.trained_steps=2": ("optim.trained_steps=2",),
    "optim.trained_steps=1": ("optim.trained_steps=1",),
    "optim.micro_batch=1": ("optim.micro_batch=1",),
    "optim.micro_batch=2": ("optim.micro_batch=2",),
    "optim.micro_batch=8": ("optim.micro_batch=8",),
    "optim.splits_pairs=true": ("optim.splits_pairs=true",),
    "model.gradient_checkpointing=true": ("model.gradient_checkpointing=true",),
    "both of them, micro_batch 1": (
        "model.gradient_checkpointing=true",
        "optim.splits_pairs=true",
        "optim.micro_batch=1",
    ),
    "optim.mixed_precision=bf16": ("optim.mixed_precision=bf16",),
    "optim.kl_weight=1": ("optim.kl_weight=1",),
    "optim.ema_decay=0.99": ("optim.ema_decay=0.99",),
}
ROLLOUTS: dict[str, tuple[str, ...]] = {
    "reference (batch_size 4)": (),
    "sampling.batch_size=1": ("sampling.batch_size=1",),
    "sampling.batch_size=8": ("sampling.batch_size=8",),
    "optim.mixed_precision=bf16": ("optim.mixed_precision=bf16",),
    "sampling.state_dtype=bf16": ("sampling.state_dtype=bf16",),
}
REPEATS = 2
Figures = dict[str, tuple[float, float]]
"""Lever -> seconds, MiB."""


def make_trainer(overrides: tuple[str, ...], device: str, folder: str) -> Trainer:
    """Return a fresh trainer of the demo preset with some settings changed."""
    out_dir = Path(folder) / "_".join(["run", *overrides]).replace("=", "_")
    config = load_config("demo", [*SHARED, f"model.device={device}", f"run.out_dir={out_dir}", *overrides])
    rewards = load_rewards(config.reward.view, config.reward.joint, device)
    return Trainer(config, load_bundle("toybox", device), rewards)


def measure(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return the least seconds and the largest memory of some repeats."""
    seconds, memory = zip(*(timed(work, device)[:2] for _ in range(REPEATS)), strict=True)
    return min(seconds), max(memory)


def measure_levers(device: str, folder: str) -> dict[str, Figures]:
    """Return what an update and a rollout take with each lever."""
    found: dict[str, Figures] = {"update": {}, "rollout": {}}
    for name, overrides in UPDATES.items():
        trainer = make_trainer(overrides, device, folder)
        rollout, table = trainer._collect(1)
        # 1 as iteration each time: the same order of steps
        update = partial(trainer._update, 1, rollout, trainer._advantages(table))
        found["update"][name] = measure(update, device)
    for name, overrides in ROLLOUTS.items():
        trainer = make_trainer(overrides, device, folder)
        found["rollout"][name] = measure(partial(trainer._collect, 1), device)
    return found


def table(phase: str, figures: Figures) -> str:
    """Return Markdown with ratios to the first row."""
    seconds, memory = next(iter(figures.values()))
    rows = (
        [name, f"{s:.2f}", f"{s / seconds:.2f}", f"{m:.0f}", f"{m / max(memory, 1.0):.2f}"]
        for name, (s, m) in figures.items()
    )
    return markdown_rows([phase, "seconds", "ratio", "MiB above the start", "ratio"], rows)


def main() -> int:
    """Measure, print, and write report.json."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trainer_options", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=home_path, default=Path("docs/results/levers"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure_levers(arguments.device, folder)
    text = "\n\n".join(table(phase, figures) for phase, figures in found.items())
    report(arguments.out / "report.json", "benchmarks.trainer_options", text, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
