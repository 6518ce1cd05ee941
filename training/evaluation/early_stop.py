"""Early stopping: the best held-out value so far, and whether waiting for a better one is over."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)


class EarlyStop:
    """Remembers the best value of one measure over a run's evaluations; larger is better.

    Equal is not better: the earliest of equal values stays the best. NaN is never the best, but counts as an
    evaluation without one.

    Attributes:
        best_iteration: iteration of the best value; None before there is one.
        best_value: that value.
        last_iteration: iteration of the last evaluation; None before there is one.

    Args:
        measure: name of the held-out value that is watched; None watches nothing and never stops.
        patience: evaluations in a row without a new best after which the run is due to stop, >= 0; 0 is
            never.
        prompts: those that are measured on, or what tells pictures apart; none when nothing is measured.

    Raises:
        ValueError: `patience` is negative.
    """

    def __init__(self, measure: str | None, patience: int, prompts: Sequence[str] = ()) -> None:
        if patience < 0:
            raise ValueError(
                f"patience={patience} must be 0 (never stop early) or a number of evaluations above 0."
            )
        self.measure = measure
        self.patience = patience
        self.fingerprint = hashlib.sha256("\n".join(prompts).encode()).hexdigest() if prompts else ""
        self.best_iteration: int | None = None
        self.best_value: float | None = None
        self.last_iteration: int | None = None
        self._num_without_best = 0

    @property
    def is_due(self) -> bool:
        """Whether the last `patience` evaluations all failed to bring a new best."""
        return 0 < self.patience <= self._num_without_best

    def update(self, iteration: int, values: Mapping[str, float]) -> bool:
        """Take in one evaluation.

        Args:
            iteration: iterations done when it was made.
            values: held-out means by name of the measure.

        Returns:
            Whether this is the best so far; False when no measure is watched.

        Raises:
            ValueError: the measure is not among the values; nothing has changed.
        """
        if self.measure is not None and self.measure not in values:
            raise ValueError(_unknown_measure(self.measure, values))
        self.last_iteration = iteration
        if self.measure is None:
            return False
        value = float(values[self.measure])
        # not `value <= best`: every comparison with NaN is false
        is_best = value > self.best_value if self.best_value is not None else value == value
        if is_best:
            self.best_iteration, self.best_value = iteration, value
        self._num_without_best = 0 if is_best else self._num_without_best + 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """The best and the evaluations since, as JSON values."""
        return {
            "measure": self.measure,
            "last_iteration": self.last_iteration,
            "best_iteration": self.best_iteration,
            "best_value": self.best_value,
            "num_without_best": self._num_without_best,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; one in which nothing was watched changes nothing.

        Raises:
            ValueError: it is of another measure or other prompts: not comparable; nothing has changed.
        """
        before = state["fingerprint"]
        if before and self.fingerprint and before != self.fingerprint:
            raise ValueError(
                "The saved run was measured on other held-out prompts or pictures, so its best value cannot "
                "be compared; resume with the same ones (evaluation.prompts, evaluation.num_prompts), or "
                "train under another name (run.out_dir)."
            )
        self.fingerprint = self.fingerprint or before
        if self.measure is not None and state["measure"] is None:
            logger.warning(
                "The run did not watch %s from its beginning: its best LoRA will be the best from now on, "
                "which may be no better than the base model.", self.measure,
            )  # fmt: skip
        if self.measure is None or state["measure"] is None:
            self.last_iteration = state["last_iteration"]
            return
        if state["measure"] != self.measure:
            raise ValueError(
                f"The saved best value is of {state['measure']!r}, but {self.measure!r} is watched now; "
                f"resume with {state['measure']!r}, or train under another name (run.out_dir)."
            )
        self.last_iteration = state["last_iteration"]
        self.best_iteration = state["best_iteration"]
        self.best_value = state["best_value"]
        self._num_without_best = state["num_without_best"]


def _unknown_measure(measure: str, values: Mapping[str, float]) -> str:
    near = difflib.get_close_matches(measure, list(values), n=3, cutoff=0.0)
    if not near:
        return f"The measure {measure!r} cannot be watched: the evaluation has no values; give it a reward."
    names = " or ".join(repr(name) for name in near)
    return f"The measure {measure!r} is not among the evaluation's values; use {names}."
