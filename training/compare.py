"""Repeat the paper's comparison on the bundled model: all methods, several seeds, a verdict on every claim.

python -m training.compare --out docs/results/claims

The same command goes on where it was stopped: finished runs lie in <out>/runs, the others in <work>.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from .config import home_path, load_config, settings_first
from .data.prompts import load_held_out, load_split
from .evaluation.choice import refuse_watched
from .evaluation.measure import spread
from .experiments.comparison import Task, make_tasks, run_task
from .experiments.comparison_report import write_comparison
from .experiments.methods import DEFAULT_METHODS, METHODS
from .models.base_loras import check_base_loras
from .mvczigal import EXIT_INTERRUPTED

QUICK = ("run.epochs=2", "run.iterations_per_epoch=4")
QUICK_PROMPTS = 40


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=home_path, default=Path("docs/results/claims"), help="report and result files")
    add("--work", type=home_path, default=Path("runs/comparison"), help="training runs while they go on")
    add("--preset", default="comparison", help="training preset shared by all methods")
    add("--methods", nargs="+", default=DEFAULT_METHODS, help=f"of {', '.join(METHODS)}")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--prompts", type=os.path.expanduser, default="heldout", help="prompt set or file to measure on")
    add("--num-prompts", type=int, default=300, help="how many of them, at even distances")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    add("--quick", action="store_true", help="into <out>_quick: 8 iterations, 40 prompts, one seed")
    add("--report-only", action="store_true", help="write the report of the result files there are")
    add("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the preset")
    return parser


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """Return what the command line asks for.

    Raises:
        ValueError, FileNotFoundError: it asks for something that does not exist.
    """
    overrides, count = list(arguments.overrides), arguments.num_prompts
    methods, seeds = list(dict.fromkeys(arguments.methods)), list(dict.fromkeys(arguments.seeds))
    for name, value in (("--jobs", arguments.jobs), ("--num-prompts", count)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if arguments.quick:
        overrides, count, seeds = [*QUICK, *overrides], min(count, QUICK_PROMPTS), seeds[:1]
    config = load_config(arguments.preset, overrides)
    if config.sampling.references is not None:
        raise ValueError("sampling.references is set; the comparison asks for views of prompts only.")
    if config.evaluation.view or config.evaluation.joint:
        raise ValueError(
            "evaluation.view or evaluation.joint is set; the comparison measures the rewards that are "
            "learned from. Set 'evaluation.view=[]' and 'evaluation.joint=[]'."
        )
    check_base_loras(config.model.base_loras)
    split = load_split(config.sampling.prompts, config.sampling.held_out_share)
    prompts = spread(load_held_out(arguments.prompts, split.train), count)
    tasks = make_tasks(methods, seeds, config, prompts, out_dir(arguments) / "runs", arguments.work)
    for task in tasks:
        refuse_watched(prompts, task.own_config, split)
    return tasks


def out_dir(arguments: argparse.Namespace) -> Path:
    """Return where the report goes; a reduced version must not replace the whole one."""
    out: Path = arguments.out
    return out.with_name(out.name + "_quick") if arguments.quick else out


def run_all(tasks: Sequence[Task], num_jobs: int) -> None:
    """Run what has no result yet, `num_jobs` processes of one thread at a time: faster than one of several.

    Raises:
        RuntimeError: runs failed; the others' results stay.
        KeyboardInterrupt: a run was interrupted, and has saved its state.
    """
    waiting = [task for task in tasks if task.read_result() is None]
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, processes, _prepare_process, (tasks[0].work_dir,)) as pool:
        futures = {pool.submit(_run_unless_stopped, task): task for task in waiting}
        try:
            for future in tqdm(as_completed(futures), "runs", len(tasks), initial=len(tasks) - len(waiting)):
                if future.exception() is None and not future.result():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()  # a training saves its state first
            pool.shutdown(cancel_futures=True)
            raise
    failed = [f"{futures[f].name}: {f.exception()}" for f in futures if f.exception() is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed, the same command goes on. {' '.join(failed)}")


_stopped = False


def _run_unless_stopped(task: Task) -> bool:
    """Run a task; after an interrupted one begin no other, though the pool hands some out in advance."""
    global _stopped
    _stopped = _stopped or not run_task(task)
    return not _stopped


def _prepare_process(folder: Path) -> None:
    """Compute on one thread, and send what this process prints to a file of its own."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"process_{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done, 130 when interrupted, 1 with a sentence on stderr otherwise."""
    words = list(sys.argv[1:] if words is None else words)
    arguments = build_parser().parse_intermixed_args(settings_first(words))
    try:
        tasks = tasks_of(arguments)
        if not arguments.report_only:
            run_all(tasks, arguments.jobs)
        path = write_comparison(tasks, out_dir(arguments), "python -m training.compare " + " ".join(words))
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)  # noqa: T201 - a command line
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"compare: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(path.read_text(encoding="utf-8"))  # noqa: T201
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the trainings would outlive this process
    raise SystemExit(main())
