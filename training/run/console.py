"""The progress display of a run: bars on a terminal, one log line per iteration anywhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

TEXTS = {
    "view_reward_standard": "view {:.4f}",
    "view_reward_zmv": "(zmv {:.4f})",
    "view_reward_redraw": "(fresh noise {:.4f})",
    "view_reward_again": "(again {:.4f})",
    "joint_reward_standard": "joint {:.4f}",
    "joint_reward_zmv": "(zmv {:.4f})",
    "joint_reward_redraw": "(fresh noise {:.4f})",
    "joint_reward_again": "(again {:.4f})",
    "lambda": "lambda {:.3f}",
    "threshold": "threshold {:.4f}",
    "joint_spread": "(spread {:.4f})",
    "loss": "loss {:.4f}",
    "approx_kl": "kl {:.1e}",
    "clip_fraction": "clipped {:.0%}",
}
"""The metrics that are shown."""


class Display(Protocol):
    """Shows where a run stands; whatever one of its methods raises ends the run."""

    def shown(self) -> AbstractContextManager[None]:
        """Be there within the block."""

    def phase(self, name: str, total: int) -> None:
        """Begin a part of the current iteration, such as "rollout", of `total` steps."""

    def advance(self) -> None:
        """End a step of the phase."""

    def report(self, record: Mapping[str, float]) -> None:
        """End an iteration, whose files are written; `record` has its metrics by name."""


class RunDisplay:
    """Shows where a run stands.

    On a terminal one bar counts iterations, a second one the steps of the current phase, and log messages
    appear above them. Elsewhere every iteration is one line of this module's logger.

    Args:
        num_iterations: iterations of the whole run.
        iteration: iterations done already.
        is_shown: False silences everything (all processes but the main one).
    """

    def __init__(self, num_iterations: int, iteration: int, is_shown: bool) -> None:
        self.num_iterations, self.iteration, self.is_shown = num_iterations, iteration, is_shown
        self._bar = self._phase = tqdm(disable=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the bars within the block, where stderr is a terminal."""
        is_disabled = None if self.is_shown else True  # None: as the terminal has it
        count = {"total": self.num_iterations, "initial": self.iteration}
        with tqdm(desc="iterations", disable=is_disabled, dynamic_ncols=True, **count) as self._bar:
            try:
                with nullcontext() if self._bar.disable else logging_redirect_tqdm():
                    yield
            finally:
                self._phase.close()

    def phase(self, name: str, total: int) -> None:
        """Begin a part of the current iteration, such as "rollout", of `total` steps."""
        self._phase.close()
        self._phase = tqdm(desc=name, total=total, disable=self._bar.disable, leave=False, dynamic_ncols=True)

    def advance(self) -> None:
        """End a step of the phase."""
        self._phase.update()

    def report(self, record: Mapping[str, float]) -> None:
        """End an iteration; `record` has its metrics by name."""
        self._phase.close()
        text = " ".join(text.format(record[name]) for name, text in TEXTS.items() if name in record)
        self._bar.update()
        self._bar.set_postfix_str(text)
        if self.is_shown and self._bar.disable:
            iteration = int(record["iteration"])
            seconds = record["rollout_seconds"] + record["update_seconds"]
            left = tqdm.format_interval(seconds * (self.num_iterations - iteration))
            logger.info("iteration %d/%d: %s, %s left", iteration, self.num_iterations, text, left)
