"""How sure a mean is: percentile bootstrap over prompts, and over prompts and training seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: over prompts.
        low: 2.5 % point of the bootstrap.
        high: 97.5 % point.
        count: number of prompts.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; for a difference: it is there."""
        return self.low > 0 or self.high < 0


def bootstrap(values: Tensor, seed: int = 0) -> Interval:
    """Mean over prompts and its 95 % interval.

    Prompts are resampled, not pictures: pictures of one prompt are not independent of each other.

    Args:
        values: [P, S], one row per prompt (seeds are averaged first); rows with NaN do not apply and are
            left out.
        seed: of the resampling, so that a report is reproducible.

    Raises:
        ValueError: not a table, or no prompt is left.
    """
    if values.ndim != 2:
        raise ValueError(f"values have shape {list(values.shape)}; pass [prompts, seeds].")
    means = values.double().mean(dim=1)
    means = means[~means.isnan()]
    if not len(means):
        raise ValueError("No prompt has a value for this measure; there is nothing to average.")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(means), (NUM_RESAMPLES, len(means)), generator=generator)
    low, high = torch.quantile(
        means[picks].mean(dim=1), torch.tensor([0.025, 0.975], dtype=torch.float64)
    ).tolist()
    return Interval(float(means.mean()), low, high, len(means))


def bootstrap_two_way(values: Tensor, seed: int = 0) -> Interval:
    """Mean and its 95 % interval when the columns are trainings: prompts and trainings are both resampled.

    With a few trainings only, resampling them tells about their spread, not enough about its tails: an
    interval of 3 seeds is somewhat too narrow.

    Args:
        values: [P, S], one column per training; NaN where a prompt does not apply, in all columns alike.
        seed: of the resampling.

    Raises:
        ValueError: not a table, or no prompt is left.
    """
    if values.ndim != 2:
        raise ValueError(f"values have shape {list(values.shape)}; pass [prompts, seeds].")
    table = values.double()
    table = table[~table.isnan().any(dim=1)]
    if not len(table):
        raise ValueError("No prompt has a value for this measure; there is nothing to average.")
    generator = torch.Generator().manual_seed(seed)
    num_prompts, num_seeds = table.shape
    rows = torch.randint(num_prompts, (NUM_RESAMPLES, num_prompts), generator=generator)
    columns = torch.randint(num_seeds, (NUM_RESAMPLES, num_seeds), generator=generator)
    # mean over the picked rows for every column first: [resamples, S], then over the picked columns
    means = torch.stack([table[picks].mean(dim=0) for picks in rows])
    picked = means.gather(1, columns).mean(dim=1)
    low, high = torch.quantile(picked, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(table.mean()), low, high, num_prompts)
