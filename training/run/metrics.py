"""The record of a run: one JSON line per iteration, or per evaluation.

Where a role has several rewards, "view_reward_standard" is their weighted mean and each is logged apart as
"view_reward_standard/<name>".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from t2mv_core.formats.atomic import replaced

METRICS = {
    "iteration": "number of the iteration, from 1",
    "loss": "mean loss of the objective over all pairs of the iteration, the KL aside",
    "grad_norm": "mean norm of the gradient before it is clipped",
    "reference_kl": "mean KL to the model without the LoRA per latent element; 0 without optim.kl_weight",
    "approx_kl": "estimated KL of the old to the updated policy per latent element, while updating",
    "clip_fraction": "share of log ratios beyond the clip range",
    "view_reward_standard": "mean single-view reward of the standard trajectories",
    "view_reward_zmv": "mean single-view reward of the ZMV trajectories",
    "view_reward_redraw": "mean single-view reward of trajectories whose zag is fresh noise",
    "view_reward_again": "mean single-view reward of the second trajectories, where both are of one sampler",
    "joint_reward_standard": "mean joint-view reward of the standard trajectories",
    "joint_reward_zmv": "mean joint-view reward of the ZMV trajectories",
    "joint_reward_redraw": "mean joint-view reward of trajectories whose zag is fresh noise",
    "joint_reward_again": "mean joint-view reward of the second trajectories, where both are of one sampler",
    "joint_gap": "mean joint-view reward of the ZMV minus that of the standard trajectories of the prompts",
    "advantage_gap": "mean advantage, first minus second trajectories; negative while ZMV is ahead",
    "lambda": "weight of the joint advantage where the view advantage weighs 1, after the dual step",
    "threshold": "self-paced threshold of the joint reward: lambda rises while the mean of all is below it",
    "joint_spread": "running deviation of the joint reward over trajectories; lambda's steps count in it",
    "joint_share": "fixed share of the joint advantage, of objectives without a constraint",
    "rollout_seconds": "time for sampling, decoding and scoring",
    "update_seconds": "time for the policy update",
}
OPTIONAL = {
    "view_reward_standard", "view_reward_zmv", "view_reward_redraw", "view_reward_again",
    "joint_reward_standard", "joint_reward_zmv", "joint_reward_redraw", "joint_reward_again", "joint_gap",
    "lambda", "threshold", "joint_spread", "joint_share",
}  # fmt: skip
"""Metrics of some objectives, and of runs with a joint reward."""


def check_names(record: Mapping[str, float]) -> None:
    """Raise ValueError when an iteration has a metric that METRICS does not explain, or lacks one."""
    names = {name.partition("/")[0] for name in record}
    if wrong := sorted((names - set(METRICS)) | (set(METRICS) - names - OPTIONAL)):
        raise ValueError(f"metrics {wrong} are unknown or missing; see METRICS.")


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Add a line to a file in an existing folder, and flush it to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_records(path: Path, last_iteration: int) -> None:
    """Drop what a run will compute again that goes on after `last_iteration`, everything when that is 0."""
    if path.is_file():
        kept = [r for r in read_metrics(path) if last_iteration and r["iteration"] <= last_iteration]
        with replaced(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return all records of a file, none when there is no file; a line torn by a kill ends them."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
