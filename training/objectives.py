"""What a policy update optimises: pure functions of rewards and log-probabilities; the objectives.

ρ = log π_θ(action | state) - log π_old(action | state), one number per view and step, where log π is the
*mean* of the Gaussian log-density over the latent's channels and pixels (METHOD.md section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-8  # METHOD.md section 5


@dataclass(frozen=True)
class Objective:
    """Which two trajectories a prompt gets, and how the two rewards become one advantage.

    Attributes:
        samplers: names of the two samplers of `t2mv_core.samplers`, compared by `zigal_loss`; first minus
            second.
        fixed_lambda: multiplier of the joint advantage; None takes the dual variable's, `math.inf` means the
            joint reward alone.
        summary: one line for people.
    """

    samplers: tuple[str, str]
    fixed_lambda: float | None
    summary: str


OBJECTIVES: dict[str, Objective] = {
    "mvc_zigal": Objective(
        ("standard", "zmv"), None, "fidelity subject to the self-paced joint-view constraint"
    ),
    "zigal_view": Objective(("standard", "zmv"), 0.0, "zigzag advantage in the single-view reward alone"),
    "zigal_joint": Objective(
        ("standard", "zmv"), math.inf, "zigzag advantage in the joint-view reward alone"
    ),
    "zigal_weighted": Objective(
        ("standard", "zmv"), 1.0, "zigzag advantage in the mean of both, fixed weights"
    ),
    "reward_difference": Objective(
        ("standard", "standard"), None, "mvc_zigal's loss on two standard samples"
    ),
}


def normalize_advantages(rewards: Tensor, population: Tensor) -> Tensor:
    """Advantages of rewards against all trajectories of the iteration.

        A = (R - mean) / (std + 1e-8)

    Source: METHOD.md section 5. In float64: with nearly equal rewards, float32 rounding of the mean would
    be blown up to advantages of order one.

    Args:
        rewards: any shape, the trajectories to be judged.
        population: any shape, the rewards of *all* trajectories: both samplers, all processes.

    Returns:
        Float32, shape of `rewards`. The standard deviation is the population's (divides by n).
    """
    reference = population.to(torch.float64)
    deviation = reference.std(correction=0)
    return ((rewards.to(torch.float64) - reference.mean()) / (deviation + ADVANTAGE_EPSILON)).to(
        torch.float32
    )


def combine_advantages(view_advantage: Tensor, joint_advantage: Tensor, lambda_: float) -> Tensor:
    """The Lagrangian's advantage per view.

        A = (A_view + λ·A_joint) / (1 + λ)

    Source: METHOD.md section 6; λ = ∞ is taken as its limit, A_joint.

    Args:
        view_advantage: [B, V].
        joint_advantage: [B], repeated to the views of its set.
        lambda_: multiplier, >= 0.

    Returns:
        [B, V].

    Raises:
        ValueError: shapes that do not belong together, or a negative or undefined multiplier.
    """
    if view_advantage.ndim != 2 or joint_advantage.shape != view_advantage.shape[:1]:
        raise ValueError(
            f"view advantages {list(view_advantage.shape)} and joint advantages "
            f"{list(joint_advantage.shape)} do not belong together; pass [B, V] and [B]."
        )
    if not lambda_ >= 0:
        raise ValueError(f"lambda={lambda_} must be zero or positive.")
    joint_share = 1.0 if math.isinf(lambda_) else lambda_ / (1.0 + lambda_)
    return (1.0 - joint_share) * view_advantage + joint_share * joint_advantage[:, None]


def zigal_loss(log_ratio: Tensor, zmv_log_ratio: Tensor, advantage_gap: Tensor, clip_range: float) -> Tensor:
    """Clipped MV-ZigAL regression loss of one denoising step.

        L = mean max((ρ - ρ_zmv - A)², (clip(ρ) - clip(ρ_zmv) - A)²),   clip(ρ) = min(max(ρ, -c), c)

    Source: METHOD.md section 5. log π is a mean over C, H, W, not a sum.

    Args:
        log_ratio: ρ on the standard trajectories, [B, V], nats per latent element.
        zmv_log_ratio: ρ on the ZMV trajectories, [B, V].
        advantage_gap: A, standard minus ZMV, [B, V], normalized; constant for the gradient.
        clip_range: c, bound on |ρ|, > 0.

    Returns:
        Scalar mean over B and V; lower is better.

    Raises:
        ValueError: the three tensors differ in shape, or the clip range is not positive.
    """
    if not log_ratio.shape == zmv_log_ratio.shape == advantage_gap.shape:
        raise ValueError(
            f"log ratios {list(log_ratio.shape)}, {list(zmv_log_ratio.shape)} and advantage gaps "
            f"{list(advantage_gap.shape)} differ in shape; all three are [B, V]."
        )
    if not clip_range > 0:
        raise ValueError(f"clip_range={clip_range} must be positive; the published value is 1e-4.")
    target = advantage_gap.detach()
    error = log_ratio - zmv_log_ratio - target
    clipped = log_ratio.clamp(-clip_range, clip_range) - zmv_log_ratio.clamp(-clip_range, clip_range) - target
    return torch.maximum(error.square(), clipped.square()).mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Second-order estimate of KL(old, new) per latent element: mean ρ²/2; scalar without graph."""
    return 0.5 * log_ratio.detach().square().mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Share of log ratios beyond the clip range, in [0, 1]; scalar without graph."""
    return (log_ratio.detach().abs() > clip_range).to(torch.float32).mean()
