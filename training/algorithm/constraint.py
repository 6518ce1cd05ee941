"""The dual variable of the joint-view constraint: multiplier λ and its self-paced threshold b."""

from __future__ import annotations

import math
from typing import Any


class DualVariable:
    """λ of "maximise the view reward subject to joint reward >= b", updated once per iteration.

        b ← J at the first step, afterwards b ← d·b + (1 - d)·J
        λ ← clip(λ - η·(J - b), 0, λ_max),   η = violated_lr if J < b else satisfied_lr

    Source: docs/method.md, section 6 (d = 0.99, η = 0.1 and a tenth of it, λ_0 = 0, λ_max = 5). J is the mean
    joint reward of all trajectories of the iteration; the threshold moves before λ does.

    Invariant: 0 <= λ <= λ_max, and λ never falls while J < b. The threshold is None until the first step:
    rewards may be negative, so no number can mean "unset".

    Args:
        violated_lr: η while J < b, > 0.
        satisfied_lr: η while J >= b, >= 0.
        maximum: λ_max, > 0.
        threshold_decay: d in [0, 1]; 1 keeps the threshold where it starts.
        initial_lambda: λ_0 in [0, λ_max].
        initial_threshold: b before the first step; None lets the first J set it.

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
        self.threshold_decay = threshold_decay
        self.lambda_ = initial_lambda
        self.threshold = initial_threshold

    def step(self, joint_reward_mean: float) -> None:
        """Move the threshold, then λ, by this iteration's mean joint reward J.

        Raises:
            ValueError: J is not finite; nothing has changed.
        """
        if not math.isfinite(joint_reward_mean):
            raise ValueError(
                f"The mean joint reward is {joint_reward_mean}; the constraint needs a finite number."
            )
        if self.threshold is None:
            self.threshold = joint_reward_mean
        else:
            # J + d·(b - J), not d·b + (1-d)·J: exact when b = J, so that rounding is never a violation.
            self.threshold = joint_reward_mean + self.threshold_decay * (self.threshold - joint_reward_mean)
        slack = joint_reward_mean - self.threshold
        rate = self.violated_lr if slack < 0 else self.satisfied_lr
        self.lambda_ = min(max(self.lambda_ - rate * slack, 0.0), self.maximum)

    def state_dict(self) -> dict[str, Any]:
        """Return λ and b, as JSON values."""
        return {"lambda": self.lambda_, "threshold": self.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.lambda_ = float(state["lambda"])
        self.threshold = None if state["threshold"] is None else float(state["threshold"])
