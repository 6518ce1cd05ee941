"""What an iteration leaves in metrics.jsonl; `metrics.METRICS` explains every number."""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from ..algorithm.advantages import RewardTable, joint_gap_record, reward_record
from ..algorithm.constraint import DualVariable
from ..algorithm.learner import UpdateStats
from ..algorithm.objectives import OBJECTIVES, joint_share
from ..config import TrainConfig


def iteration_record(
    config: TrainConfig, table: RewardTable, advantages: Tensor, stats: UpdateStats, dual: DualVariable | None
) -> dict[str, float]:
    """Return the metrics of an iteration, but for its number and its seconds.

    Args:
        config: the run's.
        table: rewards of all trajectories.
        advantages: combined, [B, 2, V].
        stats: of the update.
        dual: the dual variable after its step, of objectives that have one.
    """
    weights, samplers = config.reward, OBJECTIVES[config.objective].samplers
    return {
        **asdict(stats),
        **reward_record("view", table.view, weights.view, samplers),
        **reward_record("joint", table.joint, weights.joint, samplers),
        **joint_gap_record(table.joint, weights.joint, samplers),
        "advantage_gap": float((advantages[:, 0] - advantages[:, 1]).double().mean()),
        **_weight_record(config, dual),
    }


def _weight_record(config: TrainConfig, dual: DualVariable | None) -> dict[str, float]:
    """Return what weighs the joint advantage: the dual variable, or the objective's fixed share."""
    if dual is not None:
        state = {"threshold": dual.threshold, "joint_spread": dual.spread}
        return {"lambda": dual.lambda_, **{k: v for k, v in state.items() if v is not None}}
    fixed = OBJECTIVES[config.objective].fixed_lambda
    return {"joint_share": joint_share(fixed)} if fixed is not None and config.reward.joint else {}
