"""The progress display of a run: one bar on a terminal, one log line per iteration anywhere else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from time import monotonic
from types import TracebackType
from typing import TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

REWARD_TEXTS = (
    "  view {view_reward_standard:.4f}",
    " (zmv {view_reward_zmv:.4f})",
    " (again {view_reward_again:.4f})",
    "  joint {joint_reward_standard:.4f}",
    " (zmv {joint_reward_zmv:.4f})",
    " (again {joint_reward_again:.4f})",
    "  lambda {lambda:.3f}",
    "  threshold {threshold:.4f}",
)
UPDATE_TEXTS = ("  loss {loss:.4f}", "  kl {approx_kl:.1e}", "  clipped {clip_fraction:.0%}")
BAR_FORMAT = "iteration {n_fmt}/{total_fmt} |{bar:10}|{desc}"
SECONDS_BETWEEN_DRAWINGS = 0.1


class RunDisplay:
    """Where a run stands, for the person who started it; a context manager around the loop.

    On a terminal it is one bar that stays when the run ends, and log messages appear above it. Otherwise
    phases are silent and every iteration is one line of this module's logger. The time left is the mean pace
    of the iterations since this object was made, so a resumed run does not count its earlier ones.

    Args:
        num_iterations: iterations of the whole run.
        iteration: iterations done already, 0 to num_iterations.
        is_shown: False makes everything silent (all processes but the main one).
        stream: where the bar goes if it is a terminal; none is stderr.
    """

    def __init__(
        self, num_iterations: int, iteration: int, is_shown: bool, stream: TextIO | None = None
    ) -> None:
        self.num_iterations = num_iterations
        self.iteration = self.first_iteration = iteration
        self.is_shown = is_shown
        self.stream = sys.stderr if stream is None else stream
        self._bar: tqdm | None = None
        self._resources = ExitStack()
        self._phase, self._done, self._total = "", 0, 0
        self._record: Mapping[str, float] = {}
        self._samples_per_second: float | None = None
        self._started = self._iteration_started = self._drawn = monotonic()

    def __enter__(self) -> RunDisplay:
        if self.is_shown and self.stream.isatty():
            self._resources.enter_context(logging_redirect_tqdm())
            self._bar = tqdm(
                total=self.num_iterations,
                initial=self.iteration,
                file=self.stream,
                bar_format=BAR_FORMAT,
                dynamic_ncols=True,
                leave=True,
            )
            self._resources.callback(self._bar.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._resources.close()
        self._bar = None

    def phase(self, name: str, total: int) -> None:
        """Begin a part of the current iteration, such as "rollout", of `total` units (>= 0)."""
        self._phase, self._done, self._total = name, 0, total
        self._draw()

    def advance(self, count: int = 1) -> None:
        """Move on within the phase by `count` units; cheap enough to be called thousands of times."""
        self._done += count
        if monotonic() - self._drawn >= SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def report(self, record: Mapping[str, float], num_sets: int) -> None:
        """End an iteration.

        Args:
            record: the iteration's metrics by name, see `metrics.METRICS`; only `iteration` must be there.
            num_sets: picture sets sampled in the iteration, by all processes together.
        """
        self.iteration = int(record["iteration"])
        self._iteration_started = monotonic()
        self._record = record
        self._samples_per_second = samples_per_second(num_sets, record.get("rollout_seconds"))
        self._phase, self._done, self._total = "", 0, 0
        if self._bar is not None:
            self._bar.n = self.iteration
            self._draw()
        elif self.is_shown:
            left = self._seconds_left()
            logger.info("%s", iteration_line(record, self.num_iterations, left, self._samples_per_second))

    def _draw(self) -> None:
        if self._bar is None:
            return
        self._drawn = monotonic()
        text = phase_text(self._phase, self._done, self._total)
        text += bar_text(self._record, self._seconds_left(), self._samples_per_second)
        self._bar.set_description_str(text, refresh=False)
        self._bar.refresh()

    def _seconds_left(self) -> float | None:
        """By the mean pace so far, counting down within an iteration; None before one is done."""
        num_done = self.iteration - self.first_iteration
        if num_done <= 0:
            return None
        pace = (self._iteration_started - self._started) / num_done
        elapsed = min(monotonic() - self._iteration_started, pace)
        return max(pace * (self.num_iterations - self.iteration) - elapsed, 0.0)


def iteration_line(
    record: Mapping[str, float],
    num_iterations: int,
    seconds_left: float | None,
    samples_per_second: float | None,
) -> str:
    """One iteration in one line for people; what the record lacks or is None is left out."""
    numbers = f"iteration {record['iteration']:.0f}/{num_iterations}"
    facts = format_known((*REWARD_TEXTS, *UPDATE_TEXTS), record)
    return numbers + facts + speed_text(samples_per_second) + left_text(seconds_left)


def bar_text(
    record: Mapping[str, float], seconds_left: float | None, samples_per_second: float | None
) -> str:
    """What follows the phase on the bar; a narrow terminal cuts it off, so the rewards come last."""
    return left_text(seconds_left) + speed_text(samples_per_second) + format_known(REWARD_TEXTS, record)


def phase_text(name: str, done: int, total: int) -> str:
    """The phase with its share done, rounded down and never above 100 %; nothing between phases."""
    if not name:
        return ""
    percent = min(100 * done // total, 100) if total > 0 else 100
    return f" {name} {percent:3d}%"


def left_text(seconds_left: float | None) -> str:
    """The time left, or nothing while it is unknown."""
    return "" if seconds_left is None else f"  left {format_duration(seconds_left)}"


def speed_text(samples_per_second: float | None) -> str:
    """The sampling speed to three digits, or nothing while it is unknown."""
    return "" if samples_per_second is None else f"  {samples_per_second:.3g} sets/s"


def format_known(templates: Sequence[str], record: Mapping[str, float]) -> str:
    """The templates whose names the record has, filled in and joined; None counts as missing."""
    known = {name: value for name, value in record.items() if value is not None}
    parts = []
    for template in templates:
        with suppress(KeyError):
            parts.append(template.format_map(known))
    return "".join(parts)


def format_duration(seconds: float) -> str:
    """Minutes and seconds, 2:05; from an hour on 1:02:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def samples_per_second(num_sets: int, seconds: float | None) -> float | None:
    """Sets per second of rollout; None when the time is missing or rounded to nothing."""
    return num_sets / seconds if seconds else None
