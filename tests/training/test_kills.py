"""A run that is killed again and again, half of the times while it writes, ends like the undisturbed one."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from training.run.metrics import read_metrics

NUM_KILLS = 20
RUN = {
    "sampling": {"prompts_per_iteration": 2},
    "optim": {"ema_decay": 0.9, "prompts_per_update": 1},
    "evaluation": {"every": 3, "prompts": "dev", "num_prompts": 1, "stop_measure": "view_reward"},
    "run": {"epochs": 20, "iterations_per_epoch": 2, "keep_loras": 3},
}
NUM_ITERATIONS = 40


def unfinished_writes(folder: Path) -> set[tuple[str, int]]:
    """Names and times of what lies in the run folder only while something is written."""
    found = set()
    for place in (folder, folder / "lora"):
        try:
            entries = list(os.scandir(place))
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.name.endswith(".tmp"):
                try:
                    found.add((entry.name, entry.stat().st_mtime_ns))
                except FileNotFoundError:  # finished in the meantime
                    continue
    return found


def wait_until_ready(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line == "ready\n":
            return
    raise AssertionError(f"The run ended before it began, with {process.wait()}.")


@pytest.mark.slow
def test_twenty_kills_change_nothing(runs):
    draw = random.Random(0)
    folder = runs.root / "killed"
    metrics = folder / "metrics.jsonl"
    is_hit, iterations = [], []
    for number in range(NUM_KILLS):
        known, start = unfinished_writes(folder), len(read_metrics(metrics))
        process = runs.start("killed", {"sleep": 0.15}, **RUN)
        wait_until_ready(process)
        wanted, beginning = draw.randrange(2), draw.choice([".last.pt.", "."])
        while process.poll() is None and len(read_metrics(metrics)) < start + wanted:
            time.sleep(0.02)
        time.sleep(draw.uniform(0.0, 0.4))
        while number % 2 and process.poll() is None:
            if any(name.startswith(beginning) for name, _ in unfinished_writes(folder) - known):
                break
        process.kill()
        process.communicate()
        assert process.returncode == -9, "The run was over before it could be killed."
        is_hit.append(bool(unfinished_writes(folder) - known))
        iterations.append(len(read_metrics(metrics)))
    # in the middle of the run, all along it, and often with something half written
    assert max(iterations) < NUM_ITERATIONS
    assert len(set(iterations)) >= NUM_KILLS // 2, iterations
    assert sum(is_hit) >= NUM_KILLS // 4, is_hit
    runs.assert_identical(runs.train("killed", resume=True, **RUN), runs.train("undisturbed", **RUN))
