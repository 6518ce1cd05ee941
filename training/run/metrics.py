"""The record of a run: one JSON line per iteration.

Where a role has several rewards, "view_reward_standard" is their weighted mean and each is logged apart as
"view_reward_standard/<name>".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

METRICS = {
    "iteration": "number of the iteration, from 1",
    "loss": "mean loss of the objective over all pairs of the iteration, the KL aside",
    "grad_norm": "mean norm of the gradient before it is clipped",
    "reference_kl": "mean KL to the model without the LoRA per latent element; 0 without optim.kl_weight",
    "approx_kl": "mean rho^2/2 per latent element, old against updated policy, while updating",
    "clip_fraction": "share of log ratios beyond the clip range",
    "view_reward_standard": "mean single-view reward of the first (standard) trajectories",
    "view_reward_zmv": "mean single-view reward of the ZMV trajectories",
    "view_reward_again": "mean single-view reward of the second standard trajectories, without ZMV",
    "joint_reward_standard": "mean joint-view reward of the first trajectories",
    "joint_reward_zmv": "mean joint-view reward of the ZMV trajectories",
    "joint_reward_again": "mean joint-view reward of the second standard trajectories, without ZMV",
    "advantage_gap": "mean advantage, first minus second trajectories; negative while ZMV is ahead",
    "lambda": "multiplier of the joint-view constraint after this iteration's dual step",
    "threshold": "self-paced threshold of the joint reward",
    "rollout_seconds": "time for sampling, decoding and scoring",
    "update_seconds": "time for the policy update",
}
OPTIONAL = {
    *(f"{role}_reward_{kind}" for role in ("view", "joint") for kind in ("zmv", "again")),
    "joint_reward_standard",
    "threshold",
}
"""Metrics of some objectives, and of runs with a joint reward."""


class MetricsLog:
    """Appends iterations to `metrics.jsonl`; a line is on disk when `append` returns.

    Args:
        path: the file; its folder exists.
        last_iteration: when a run resumes, later lines belong to iterations that are computed again: they go.
    """

    def __init__(self, path: Path, last_iteration: int = 0) -> None:
        self.path = path
        kept = [record for record in read_metrics(path) if record["iteration"] <= last_iteration]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        temporary.replace(path)

    def append(self, record: Mapping[str, float]) -> None:
        """Write one iteration.

        Raises:
            ValueError: a name that METRICS does not explain, or a missing one.
        """
        names = {name.partition("/")[0] for name in record}
        if wrong := sorted((names - set(METRICS)) | (set(METRICS) - names - OPTIONAL)):
            raise ValueError(f"metrics {wrong} are unknown or missing; see METRICS.")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def means(self, count: int) -> dict[str, float]:
        """Mean of every metric over the last `count` iterations; empty before the first."""
        records = read_metrics(self.path)[-count:]
        names = records[0] if records else {}
        return {name: sum(r[name] for r in records) / len(records) for name in names}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All iterations in a file, none when there is no file; a line torn by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: Mapping[str, float]) -> str:
    return json.dumps(dict(record)) + "\n"
