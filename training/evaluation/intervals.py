"""How sure a mean is: bootstrap over prompts, over prompts and trainings; Student's t over trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

NUM_RESAMPLES = 4000
ROUNDING = 1e-9
"""Thirds of verdicts that cancel out leave about 1e-18."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: over prompts.
        low: 2.5 % point of the bootstrap; None with a single prompt, which tells nothing about others.
        high: 97.5 % point, likewise.
        count: number of prompts.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; for a difference: it is there."""
        if self.low is None or self.high is None:
            return False
        return self.low > ROUNDING or self.high < -ROUNDING

    def in_words(self, sign: str = "") -> str:
        """Return "mean [low, high]", all with a sign where `sign` is "+"."""
        if self.low is None or self.high is None:
            return f"{self.mean:{sign}.4f} [one prompt: no interval]"
        return f"{self.mean:{sign}.4f} [{self.low:{sign}.4f}, {self.high:{sign}.4f}]"


def bootstrap(values: Tensor, seed: int = 0) -> Interval:
    """Return the mean over prompts with its 95 % interval.

    Prompts are resampled, not pictures: pictures of one prompt are not independent of each other.

    Args:
        values: [P, S], one row per prompt (seeds are averaged first); rows with NaN do not apply and are
            left out.
        seed: of the resampling, so that a report is reproducible.

    Raises:
        ValueError: not a table, or no prompt is left.
    """
    means = _applicable(values).mean(dim=1)
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(means), (NUM_RESAMPLES, len(means)), generator=generator)
    return _interval(means, means[picks].mean(dim=1))


def bootstrap_two_way(values: Tensor, seed: int = 0) -> Interval:
    """Return the mean with its 95 % interval when columns are trainings: both are resampled.

    With a few trainings only, resampling them tells about their spread, not enough about its tails: of 3
    trainings, the interval cannot be wider than from the lowest to the highest. See `student_interval`.

    Args:
        values: [P, S], one column per training; NaN where a prompt does not apply, in all columns alike.
        seed: of the resampling.

    Raises:
        ValueError: not a table, or no prompt is left.
    """
    table = _applicable(values)
    generator = torch.Generator().manual_seed(seed)
    num_prompts, num_seeds = table.shape
    rows = torch.randint(num_prompts, (NUM_RESAMPLES, num_prompts), generator=generator)
    columns = torch.randint(num_seeds, (NUM_RESAMPLES, num_seeds), generator=generator)
    # mean over the picked rows for every column first: [resamples, S], then over the picked columns
    means = table[rows].mean(dim=1)
    return _interval(table, means.gather(1, columns).mean(dim=1))


def student_interval(means: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over trainings: mean ± t·s/√S, t of S - 1 degrees of freedom.

    It knows nothing of the prompts, and is honest about few trainings: t is 4.3 for 3 of them, 2.8 for 5.

    Args:
        means: one per training, at least two.

    Raises:
        ValueError: fewer than two.
    """
    from scipy.stats import t  # half a second to import

    if len(means) < 2:
        raise ValueError(f"{len(means)} trainings have no spread; give at least two.")
    reach = float(t.ppf(0.975, len(means) - 1)) * stdev(means) / len(means) ** 0.5
    return fmean(means) - reach, fmean(means) + reach


def _applicable(values: Tensor) -> Tensor:
    """Return the rows without NaN, in double precision."""
    if values.ndim != 2:
        raise ValueError(f"values have shape {list(values.shape)}; pass [prompts, seeds].")
    table = values.double()
    table = table[~table.isnan().any(dim=1)]
    if not len(table):
        raise ValueError("No prompt has a value for this measure; there is nothing to average.")
    return table


def _interval(table: Tensor, resampled: Tensor) -> Interval:
    if len(table) == 1:
        return Interval(float(table.mean()), None, None, 1)
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(table.mean()), low, high, len(table))
