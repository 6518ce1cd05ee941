"""From the rewards of an iteration to the advantages its update learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from t2mv_core.rewards.base import hardly_differ

from .objectives import combine_advantages, normalize_advantages
from .rollout import Rollout


@dataclass(frozen=True)
class RewardTable:
    """The rewards of all trajectories of an iteration, over all processes, on the CPU.

    Attributes:
        prompts: what the B rows are of, in the order of their slots: sentences, or names of pictures.
        view: single-view rewards by name, [B, K, V] each, K trajectories per prompt.
        joint: joint-view rewards by name, [B, K] each; empty without joint rewards.
    """

    prompts: tuple[str, ...]
    view: dict[str, Tensor]
    joint: dict[str, Tensor]


def gather_rewards(rollout: Rollout, prompts: Sequence[str], accelerator: Accelerator) -> RewardTable:
    """Return the rewards of all processes, each of which samples every n-th slot, in the order of the slots.

    Args:
        rollout: this process's share.
        prompts: of all slots of the iteration.
        accelerator: the processes.
    """
    count, processes = len(prompts), accelerator.num_processes
    slots = [slot for process in range(processes) for slot in range(process, count, processes)]
    order = torch.tensor(slots).argsort()

    def gather(kind: str) -> dict[str, Tensor]:
        scores = [getattr(scored.scores, kind) for scored in rollout.sets]
        local = {name: torch.stack([score[name] for score in scores], dim=1) for name in scores[0]}
        return {k: accelerator.gather(r.to(accelerator.device)).cpu()[order] for k, r in local.items()}

    return RewardTable(tuple(prompts), gather("view"), gather("joint"))


def equal_rewards(table: RewardTable) -> list[str]:
    """Return the rewards that differ by rounding only, which normalizing would blow up to advantages."""
    rewards = table.view | table.joint
    return [name for name, values in rewards.items() if hardly_differ(values.flatten().tolist())]


def reward_record(
    role: str, rewards: Mapping[str, Tensor], weights: Mapping[str, float], samplers: Sequence[str]
) -> dict[str, float]:
    """Return mean rewards of both trajectories for the metrics, with several rewards each one's as well.

    Args:
        role: "view" or "joint".
        rewards: by name, [B, 2, ...] each; an empty table gives no metrics.
        weights: of the rewards.
        samplers: of the two trajectories; a second one of the same sampler is called "again".
    """
    if not rewards:
        return {}
    first, second = samplers
    kinds = (first, second if second != first else "again")
    by_suffix = {"": weighted_mean(rewards, weights)}
    if len(rewards) > 1:
        by_suffix |= {f"/{name}": values for name, values in rewards.items()}
    return {
        f"{role}_reward_{kind}{suffix}": float(values[:, number].double().mean())
        for suffix, values in by_suffix.items()
        for number, kind in enumerate(kinds)
    }


def joint_gap_record(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], samplers: Sequence[str]
) -> dict[str, float]:
    """Return how far ZMV is ahead of standard sampling in joint reward, for the metrics.

        joint_gap = mean over prompts of R_joint(ZMV) - R_joint(standard)

    Source: docs/method.md, section 10. It shrinks as the policy takes the zigzag in.

    Args:
        rewards: joint rewards by name, [B, 2] each.
        weights: of the rewards.
        samplers: of the two trajectories.

    Returns:
        Empty without joint rewards, and where a prompt's trajectories are of one sampler.
    """
    if not rewards or set(samplers) != {"standard", "zmv"}:
        return {}
    values = weighted_mean(rewards, weights).double()
    gaps = values[:, samplers.index("zmv")] - values[:, samplers.index("standard")]
    return {"joint_gap": float(gaps.mean())}


def weighted_mean(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return Σ w_k·R_k / Σ w_k over the names of `weights`."""
    total = sum(weights.values())
    return torch.stack([values[name] * (weight / total) for name, weight in weights.items()]).sum(dim=0)


def iteration_advantages(
    table: RewardTable,
    view_weights: Mapping[str, float],
    joint_weights: Mapping[str, float],
    lambda_: float,
    is_per_prompt: bool = False,
) -> Tensor:
    """Return the advantage of every view of every trajectory.

        A = (A_view + λ·A_joint)/(1 + λ),   A_view = Σ w_k·normalize(R_k) / Σ w_k, A_joint likewise

    Source: docs/method.md, sections 5 and 6. Each reward is normalized before the sum, so that a weight means
    the same whatever a reward's range is. Rewards that differ by rounding only give advantages of 0.

    Args:
        table: rewards of the iteration.
        view_weights: weight > 0 of each view reward.
        joint_weights: of each joint reward; without any, λ has nothing to weigh.
        lambda_: multiplier of the joint advantage, >= 0.
        is_per_prompt: compare a trajectory with those of the same prompt, not with all.

    Returns:
        [B, K, V], float32.
    """
    groups, equal = table.prompts if is_per_prompt else None, equal_rewards(table)

    def advantages(name: str, rewards: Tensor) -> Tensor:
        return torch.zeros_like(rewards) if name in equal else normalize_advantages(rewards, groups)

    view = weighted_mean({k: advantages(k, r) for k, r in table.view.items()}, view_weights)
    if not joint_weights:
        return view
    joint = weighted_mean({k: advantages(k, r) for k, r in table.joint.items()}, joint_weights)
    return combine_advantages(view.flatten(0, 1), joint.flatten(), lambda_).unflatten(0, view.shape[:2])
