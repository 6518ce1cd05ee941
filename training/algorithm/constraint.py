"""The dual variable of the joint-view constraint: multiplier λ, its self-paced threshold b, the spread s."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

logger = logging.getLogger(__name__)

SPREAD_DECAY = 0.9
"""A memory of about ten iterations. One iteration of 16 prompts errs by a fifth in its deviation, the mean of
ten by a twentieth; a longer one would be late where the policy's spread changes while it learns."""


ROUNDING = 1e-4
"""Relative spread up to which rewards count as equal; as `t2mv_core.rewards.base.hardly_differ`."""


class DualVariable:
    """λ of "maximise the view reward subject to joint reward >= b", updated once per iteration.

        J, v: mean and variance of the iteration's joint rewards
        b ← J at first, afterwards b ← d·b + (1 - d)·J
        s² ← v at first, afterwards s² ← 0.9·s² + 0.1·v
        λ ← clip(λ - η·(J - b)/s, 0, λ_max),   η = violated_lr if J < b else satisfied_lr

    Source: docs/method.md, section 6 (d = 0.99, η = 0.1 and a tenth of it, λ_0 = 0, λ_max = 5). Threshold and
    spread move before λ does.

    Deviates from the published step, which has no s (`unit` "raw"): its η belongs to HyperScore's range of 0
    to 10. λ weighs advantages, which are rewards over their deviation. With the constraint over the same
    deviation λ does not depend on the reward's scale. s² is a mean of variances *within* iterations: a J that
    falls from one iteration to the next must not widen s and so hide the violation. Deviations would not do,
    because the mean of those of few trajectories is too small.

    Invariant: 0 <= λ <= λ_max, and λ never falls while J < b. Threshold and spread are None until the first
    rewards: rewards may be negative, so no number can mean "unset".

    Args:
        violated_lr: η while J < b, > 0.
        satisfied_lr: η while J >= b, >= 0.
        maximum: λ_max, > 0.
        threshold_decay: d in [0, 1]; 1 keeps the threshold where it starts.
        initial_lambda: λ_0 in [0, λ_max].
        initial_threshold: b before the first rewards; None lets them set it.
        unit: "spread", or "raw" for s = 1.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        violated_lr: float = 0.1,
        satisfied_lr: float = 0.01,
        maximum: float = 5.0,
        threshold_decay: float = 0.99,
        initial_lambda: float = 0.0,
        initial_threshold: float | None = None,
        unit: Literal["spread", "raw"] = "spread",
    ) -> None:
        if not (violated_lr > 0 and satisfied_lr >= 0 and maximum > 0):
            raise ValueError(
                f"violated_lr={violated_lr} and lambda_max={maximum} must be positive, "
                f"satisfied_lr={satisfied_lr} zero or positive."
            )
        if not (0 <= threshold_decay <= 1 and 0 <= initial_lambda <= maximum):
            raise ValueError(
                f"threshold_decay={threshold_decay} must lie in [0, 1] and lambda_init={initial_lambda} in "
                f"[0, lambda_max={maximum}]."
            )
        self.violated_lr, self.satisfied_lr, self.maximum = violated_lr, satisfied_lr, maximum
        self.threshold_decay, self.unit = threshold_decay, unit
        self.lambda_ = initial_lambda
        self.threshold = initial_threshold
        self._variance: float | None = None

    @property
    def spread(self) -> float | None:
        """s, in joint reward."""
        return None if self._variance is None else math.sqrt(self._variance)

    def observe(self, joint_rewards: Sequence[float]) -> float:
        """Move threshold and spread by joint rewards; alone, without `step`, before the first iteration.

        Args:
            joint_rewards: of all trajectories; at least one.

        Returns:
            The slack J - b; negative while the constraint is violated.

        Raises:
            ValueError: a reward is not finite; nothing has changed.
        """
        if not all(map(math.isfinite, joint_rewards)):
            raise ValueError("A joint reward is not a number; the constraint needs finite ones.")
        mean = statistics.fmean(joint_rewards)
        self.threshold = _follow(self.threshold, mean, self.threshold_decay)
        self._variance = _follow(self._variance, statistics.pvariance(joint_rewards), SPREAD_DECAY)
        return mean - self.threshold

    def step(self, joint_rewards: Sequence[float]) -> None:
        """Move threshold and spread, then λ, by the joint rewards of all trajectories of an iteration.

        Raises:
            ValueError: a reward is not finite; nothing has changed.
        """
        slack = self.observe(joint_rewards)
        if self.unit == "spread":
            spread = self.spread or 0.0
            if spread <= ROUNDING * abs(statistics.fmean(joint_rewards)):
                logger.warning(
                    "All joint rewards have been equal so far: lambda stays at %.3f.", self.lambda_
                )
                return
            slack /= spread
        rate = self.violated_lr if slack < 0 else self.satisfied_lr
        self.lambda_ = min(max(self.lambda_ - rate * slack, 0.0), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        """Return λ, b and s², as JSON values."""
        return {"lambda": self.lambda_, "threshold": self.threshold, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.lambda_ = float(state["lambda"])
        self.threshold, self._variance = state["threshold"], state["variance"]


def _follow(mean: float | None, value: float, decay: float) -> float:
    """Return the exponential mean after a value, the value itself at first."""
    # value + d·(mean - value), not d·mean + (1-d)·value: exact when they are equal, so that rounding is never
    # a violation.
    return value if mean is None else value + decay * (mean - value)
