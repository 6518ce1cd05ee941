"""The comparison's result files, read by method, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import config_from_dict
from .comparison import Task
from .costs import training_costs
from .methods import METHODS

COLUMNS = {
    "view_reward": "view reward",
    "joint_alignment": "alignment",
    "joint_geometry": "geometry",
    "joint_texture": "texture",
    "joint_overall": "overall (joint reward)",
    "judge_family": "judge: family",
    "judge_colour": "judge: colour",
    "judge_part": "judge: part colour",
    "judge_relation": "judge: relation",
    "judge_azimuth": "judge: azimuth",
    "hull_consistency": "hull consistency",
}


@dataclass(frozen=True)
class MethodResult:
    """All results of one method.

    Attributes:
        values: measure -> [P, S], NaN where a measure does not apply.
        runs: the result files' contents, seed by seed.
    """

    values: dict[str, Tensor]
    runs: list[dict[str, Any]]

    @property
    def seeds(self) -> list[int]:
        """Of the columns of `values`."""
        return [run["seed"] for run in self.runs]

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """What the trainings cost and how they went; none of a method without training."""
        return [run["training"] for run in self.runs if run["training"] is not None]

    @property
    def costs(self) -> list[dict[str, float]]:
        """Of each training: the counts of `training_costs`, and "seconds"."""
        return [
            {
                **training_costs(config_from_dict(run["config"]), training["iterations"]),
                "seconds": training["seconds"],
            }
            for run in self.runs
            if (training := run["training"]) is not None
        ]


Results = Mapping[str, MethodResult]


def load_results(tasks: Sequence[Task]) -> dict[str, MethodResult]:
    """Return results by method, of the tasks that are done."""
    done: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        if (result := task.read_result()) is not None:
            done.setdefault(task.method, []).append(result)
    return {
        method: MethodResult({name: _table(runs, name) for name in runs[0]["values"]}, runs)
        for method, runs in sorted(done.items(), key=lambda item: list(METHODS).index(item[0]))
    }


def paired_difference(results: Results, first: str, second: str, measure: str) -> Tensor:
    """Return first minus second by prompt and shared seed, [P, S]: both were measured with the same noise.

    Raises:
        ValueError: no seed in common.
    """
    a, b = results[first], results[second]
    shared = [seed for seed in b.seeds if seed in a.seeds]
    if not shared:
        raise ValueError(f"{first} and {second} have no seed in common; run both with the same --seeds.")
    left, right = ([found.seeds.index(seed) for seed in shared] for found in (a, b))
    return a.values[measure][:, left] - b.values[measure][:, right]


def _table(runs: Sequence[dict[str, Any]], measure: str) -> Tensor:
    rows = [[float("nan") if x is None else x for x in run["values"][measure]] for run in runs]
    return torch.tensor(rows, dtype=torch.float64).T
