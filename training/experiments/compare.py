"""The paper's comparison on the bundled model: all methods, several seeds, one table, every claim answered.

python -m training.compare --out docs/results/comparison

Goes on where it was stopped: finished runs lie in <out>/runs, a run in progress resumes from <work>.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..config import load_config
from ..data.prompts import load_prompts
from ..evaluation.measure import spread
from ..models.base_loras import check_base_loras
from ..mvczigal import EXIT_INTERRUPTED
from .comparison import METHODS, Task, make_tasks, run_task

QUICK = ("run.epochs=2", "run.iterations_per_epoch=4")
QUICK_PROMPTS, QUICK_SEEDS = 40, (0,)
POLL_SECONDS = 1.0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("docs/results/comparison"), help="report and result files")
    add("--work", type=Path, default=Path("runs/comparison"), help="training runs while they go on")
    add("--preset", default="comparison", help="training preset shared by all methods")
    add("--methods", nargs="+", default=list(METHODS), help=f"of {', '.join(METHODS)}")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--prompts", default="heldout200", help="prompt set or file to measure on")
    add("--num-prompts", type=int, default=200, help="how many of them, at even distances")
    add("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="runs at a time, one thread each")
    add(
        "--quick",
        action="store_true",
        help="a reduced version into <out>_quick: 8 iterations, 40 prompts, one seed",
    )
    add("--report-only", action="store_true", help="write the report of the result files there are")
    add("--task", metavar="METHOD:SEED", help=argparse.SUPPRESS)
    add("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the preset")
    return parser


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """What the command line asks for.

    Raises:
        ValueError, FileNotFoundError: it asks for something that does not exist.
    """
    overrides, count = list(arguments.overrides), arguments.num_prompts
    methods, seeds = list(dict.fromkeys(arguments.methods)), list(dict.fromkeys(arguments.seeds))
    for name, value in (("--jobs", arguments.jobs), ("--num-prompts", count)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if arguments.quick:
        overrides, count, seeds = [*QUICK, *overrides], min(count, QUICK_PROMPTS), seeds[: len(QUICK_SEEDS)]
    config = load_config(arguments.preset, overrides)
    check_base_loras(config.model.base_loras)
    prompts = spread(load_prompts(arguments.prompts), count)
    out = out_dir(arguments)
    return make_tasks(methods, seeds, config, prompts, out / "runs", arguments.work)


def out_dir(arguments: argparse.Namespace) -> Path:
    """Where the report goes; a reduced version must not replace the whole one."""
    return arguments.out.with_name(arguments.out.name + "_quick") if arguments.quick else arguments.out


def run_one(tasks: Sequence[Task], name: str) -> int:
    """Run one task in this process, as a child of `run_all`."""
    import torch

    torch.set_num_threads(1)
    method, _, seed = name.partition(":")
    task = next(task for task in tasks if (task.method, task.seed) == (method, int(seed)))
    return 0 if run_task(task) else EXIT_INTERRUPTED


def run_all(tasks: Sequence[Task], words: Sequence[str], num_jobs: int) -> None:
    """Run what has no result yet, `num_jobs` processes at a time.

    Raises:
        RuntimeError: a run failed; its log is named. The others' results stay.
    """
    waiting = [task for task in tasks if task.read_result() is None]
    running: list[tuple[Task, subprocess.Popen[bytes]]] = []
    failed = []
    with tqdm(total=len(tasks), initial=len(tasks) - len(waiting), desc="runs") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    task = waiting.pop(0)
                    running.append((task, start(task, words)))
                time.sleep(POLL_SECONDS)
                ended = [(task, process) for task, process in running if process.poll() is not None]
                running = [entry for entry in running if entry not in ended]
                failed += [task for task, process in ended if process.returncode]
                progress.update(len(ended))
        finally:
            for _, process in running:  # interrupted: they save and end
                process.terminate()
            for _, process in running:
                process.wait()
    if failed:
        logs = ", ".join(str(log_path(task)) for task in failed)
        raise RuntimeError(f"{len(failed)} of the runs failed; see {logs}. The same command goes on.")


def start(task: Task, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """The task in a process of its own with one thread: two such runs are faster than one run with two."""
    log_path(task).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "training.compare", *words, "--task", f"{task.method}:{task.seed}"]
    with log_path(task).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def log_path(task: Task) -> Path:
    """What a run said."""
    return task.work_dir / f"{task.name}.log"


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: 0 when done, 130 when interrupted, 1 with a sentence on stderr otherwise."""
    from .comparison_report import write_comparison

    words = list(sys.argv[1:] if words is None else words)
    arguments = build_parser().parse_intermixed_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        tasks = tasks_of(arguments)
        if arguments.task:
            return run_one(tasks, arguments.task)
        if not arguments.report_only:
            run_all(tasks, words, arguments.jobs)
        path = write_comparison(tasks, out_dir(arguments), "python -m training.compare " + " ".join(words))
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)  # noqa: T201 - a command line
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"compare: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(path.read_text(encoding="utf-8"))  # noqa: T201
    return 0
