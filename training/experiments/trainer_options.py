"""What each cost lever of the trainer costs and saves, measured in one run on the bundled model.

python -m training.experiments.trainer_options --out docs/results/levers

Every lever is one policy update (or one rollout) on the same prompts from the same start; the first row is
the reference of the ratios. Memory is what the phase needs above what lay there before: on the CPU the growth
of the resident set's peak, on a GPU `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.loading import load_bundle
from t2mv_core.text import encode_text
from training.config import load_config
from training.models.rewards import load_rewards
from training.run.environment import describe_environment
from training.run.trainer import Trainer

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


def make_trainer(overrides: tuple[str, ...], device: str, folder: Path) -> Trainer:
    """A fresh trainer of the demo preset with some settings changed."""
    config = load_config("demo", [*SHARED, f"model.device={device}", f"run.out_dir={folder}", *overrides])
    rewards = load_rewards(config.reward.view, config.reward.joint, device)
    return Trainer(config, load_bundle("toybox", device), rewards)


def peak_mib(device: str) -> float:
    """Peak memory since `reset_peak`, MiB."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def reset_peak(device: str) -> float:
    """Forget the peak; returns what lies there now, MiB."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory stays resident and hides the next peak
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to the present resident set
    return peak_mib(device)


def timed(work: Callable[[], Any], device: str, repeats: int = REPEATS) -> tuple[float, float, Any]:
    """Least seconds and largest memory growth in MiB of some repeats, and the last result."""
    seconds, growth, result = [], [], None
    for _ in range(repeats):
        before = reset_peak(device)
        started = time.monotonic()
        result = work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - started)
        growth.append(peak_mib(device) - before)
    return min(seconds), max(growth), result


def measure_levers(device: str, folder: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Phase -> lever -> (seconds, MiB)."""
    found: dict[str, dict[str, tuple[float, float]]] = {"update": {}, "rollout": {}}
    for number, (name, overrides) in enumerate(UPDATES.items()):
        trainer = make_trainer(overrides, device, folder / f"update{number}")
        rollout, table = trainer._collect(1)
        advantages = trainer._advantages(table)
        # 1 as iteration each time: the same order of steps
        work = lambda t=trainer, r=rollout, a=advantages: t._update(1, r, a)  # noqa: E731
        found["update"][name] = timed(work, device)[:2]
    for number, (name, overrides) in enumerate(ROLLOUTS.items()):
        trainer = make_trainer(overrides, device, folder / f"rollout{number}")
        found["rollout"][name] = timed(partial(trainer._collect, 1), device)[:2]
    return found


def measure_sharing(device: str) -> list[str]:
    """What is computed once instead of per iteration or per sample."""
    bundle = load_bundle("toybox", device)
    prompts = [f"a red mug number {k}" for k in range(16)]
    text, _, condition = timed(lambda: encode_text(bundle, prompts), device)
    cameras, _, features = timed(lambda: encode_cameras(bundle, DEFAULT_RIG), device)
    text_bytes = sum(x.nbytes for x in condition._tensors() if x is not None) / len(prompts)
    camera_bytes = sum(residual.nbytes for residual in features.residuals)
    return [
        f"Text of 16 prompts: {text * 1000:.0f} ms once per run instead of once per iteration; "
        f"{text_bytes / 1024:.1f} KiB per prompt that no trajectory, step or view holds again.",
        f"Camera features: {cameras * 1000:.0f} ms, {camera_bytes / 1024:.0f} KiB once per run; stored with "
        f"every trajectory of 32 sets they would be {32 * camera_bytes / 2**20:.0f} MiB.",
    ]


def measure_trajectories(device: str, folder: Path) -> list[str]:
    """Bytes a rollout keeps, in fp32 and bf16."""
    sizes = {}
    for dtype in ("fp32", "bf16"):
        trainer = make_trainer((f"sampling.state_dtype={dtype}",), device, folder / dtype)
        rollout, _ = trainer._collect(1)
        kept = [getattr(s.trajectory, part) for s in rollout.sets for part in ("states", "actions")]
        sizes[dtype] = sum(tensor.nbytes for tensor in kept) / 2**20
    return [
        f"States and actions of 16 sets: {sizes['fp32']:.2f} MiB in fp32, {sizes['bf16']:.2f} MiB in bf16, "
        "on the CPU in either case."
    ]


def table(found: dict[str, tuple[float, float]]) -> str:
    """Markdown with ratios to the first row."""
    seconds, memory = next(iter(found.values()))
    lines = ["| lever | seconds | ratio | MiB above the start | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {s:.2f} | {s / seconds:.2f} | {m:.0f} | {m / max(memory, 1.0):.2f} |"
        for name, (s, m) in found.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write report.md and report.json."""
    parser = argparse.ArgumentParser(
        prog="python -m training.experiments.trainer_options", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/levers"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure_levers(arguments.device, Path(folder))
        remarks = [*measure_sharing(arguments.device), *measure_trajectories(arguments.device, Path(folder))]
    environment = describe_environment()
    git = environment["git"]
    commit = f"{str(git['commit'])[:10]}{' with changes' if git['is_dirty'] else ''}"
    text = "\n\n".join(
        [
            "# Cost levers of the trainer",
            f"`python -m training.experiments.trainer_options {' '.join(sys.argv[1:])}`, "
            f"{arguments.threads} threads, "
            f"commit {commit}, {arguments.device}. 8 prompts x 2 trajectories x 4 steps "
            f"of the bundled model; the least time and the largest memory of {REPEATS} repeats.",
            "## One policy update",
            table(found["update"]),
            "## One rollout",
            table(found["rollout"]),
            "## Computed or kept once",
            "\n".join(f"* {remark}" for remark in remarks),
        ]
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.md").write_text(text + "\n", encoding="utf-8")
    record = {"environment": environment, "levers": found, "remarks": remarks}
    (arguments.out / "report.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(text)  # noqa: T201 - a command line
    return 0


if __name__ == "__main__":
    sys.exit(main())
