"""Comparing ways of doing the same on a machine that others use: in turn, many times, medians of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def synchronize() -> None:
    """Wait for the GPU, if there is one: its work is not done when the call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def time_in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every way, A B A B ..., after one call of each that does not count."""
    for work in ways.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            found[name].append(seconds_of(work))
    return found


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over the turns of our time by theirs; a disturbance hits both neighbours, or one turn only."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
