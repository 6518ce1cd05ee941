"""What a policy update optimises: pure functions of rewards and log-probabilities; the objectives.

ρ = log π_θ(action | state) - log π_old(action | state), one number per view and step, where log π is the
*mean* of the Gaussian log-density over the latent's channels and pixels (docs/method.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ADVANTAGE_EPSILON = 1e-8  # docs/method.md, section 5

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""(log ratios [K, B, V], advantages [K, B, V], clip range) -> scalar; K trajectories per prompt."""


def normalize_advantages(rewards: Tensor, groups: Sequence[int] | None = None) -> Tensor:
    """Advantages of rewards against all trajectories of the iteration, or against their own prompt's.

        A = (R - mean) / (std + 1e-8)

    Source: docs/method.md, section 5. With `groups` the mean is the group's, and the deviation is that of all
    R - mean(group) together: the trajectories of one prompt are too few for a deviation of their own.
    In float64: with nearly equal rewards, float32 rounding of the mean would be blown up to advantages of
    order one.

    Args:
        rewards: [B, ...], *all* trajectories of the iteration: all samplers, all processes.
        groups: which prompt each of the B rows belongs to; None compares all rows with each other.

    Returns:
        Float32, shape of `rewards`. The standard deviation is the population's (divides by n).
    """
    exact = rewards.to(torch.float64)
    if groups is None:
        centred = exact - exact.mean()
    else:
        member = torch.tensor(groups, device=rewards.device)
        means = {group: exact[member == group].mean() for group in set(groups)}
        centred = exact - torch.stack([means[group] for group in groups]).reshape(-1, *[1] * (exact.ndim - 1))
    deviation = centred.square().mean().sqrt()
    return (centred / (deviation + ADVANTAGE_EPSILON)).to(torch.float32)


def combine_advantages(view_advantage: Tensor, joint_advantage: Tensor, lambda_: float) -> Tensor:
    """The Lagrangian's advantage per view.

        A = (A_view + λ·A_joint) / (1 + λ)

    Source: docs/method.md, section 6; λ = ∞ is taken as its limit, A_joint.

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
    share = joint_share(lambda_)
    return (1.0 - share) * view_advantage + share * joint_advantage[:, None]


def joint_share(lambda_: float) -> float:
    """Return λ/(1 + λ), the share of the joint advantage, in [0, 1]."""
    return 1.0 if math.isinf(lambda_) else lambda_ / (1.0 + lambda_)


def zigal_loss(log_ratio: Tensor, zmv_log_ratio: Tensor, advantage_gap: Tensor, clip_range: float) -> Tensor:
    """Clipped MV-ZigAL regression loss of one denoising step.

        L = mean max((ρ - ρ_zmv - A)², (clip(ρ) - clip(ρ_zmv) - A)²),   clip(ρ) = min(max(ρ, -c), c)

    Source: docs/method.md, section 5. log π is a mean over C, H, W, not a sum.

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


def zigal_pair_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """`zigal_loss` of the pair of trajectories of each prompt: log ratios and advantages [2, B, V]."""
    first, second = log_ratios
    return zigal_loss(first, second, advantages[0] - advantages[1], clip_range)


def ppo_clip_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Clipped policy gradient of one denoising step.

        L = -mean min(A·exp(ρ), A·clip(exp(ρ), 1 - c, 1 + c))

    Source: PPO, arXiv:1707.06347, Eq. (7); on denoising steps: DDPO, arXiv:2305.13301, Eq. (8).
    ρ is a mean over C, H, W as everywhere here, so c bounds the change per latent element.

    Args:
        log_ratios: ρ, any shape, such as [K, B, V]; nats per latent element.
        advantages: A, same shape, normalized; constant for the gradient.
        clip_range: c, > 0.

    Returns:
        Scalar mean; lower is better.

    Raises:
        ValueError: the two tensors differ in shape, or the clip range is not positive.
    """
    if log_ratios.shape != advantages.shape:
        raise ValueError(
            f"log ratios {list(log_ratios.shape)} and advantages {list(advantages.shape)} differ in shape; "
            "both are [K, B, V]."
        )
    if not clip_range > 0:
        raise ValueError(f"clip_range={clip_range} must be positive; the published value is 1e-4.")
    ratio, gain = log_ratios.exp(), advantages.detach()
    return -torch.minimum(gain * ratio, gain * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)).mean()


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Second-order estimate of KL(old, new) per latent element: mean ρ²/2; scalar without graph."""
    return 0.5 * log_ratio.detach().square().mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Share of log ratios beyond the clip range, in [0, 1]; scalar without graph."""
    return (log_ratio.detach().abs() > clip_range).to(torch.float32).mean()


@dataclass(frozen=True)
class Objective:
    """Which two trajectories a prompt gets, how rewards become one advantage, and what is minimised.

    Attributes:
        samplers: names of the two samplers of `t2mv_core.samplers`.
        loss: of log ratios and advantages of the trajectories.
        fixed_lambda: multiplier of the joint advantage; None takes the dual variable's, `math.inf` means the
            joint reward alone.
        summary: one line for people.
        has_fixed_threshold: the constraint's threshold stays where it starts instead of following the reward.
    """

    samplers: tuple[str, str]
    loss: Loss
    fixed_lambda: float | None
    summary: str
    has_fixed_threshold: bool = False


_ZIGZAG, _STANDARD = ("standard", "zmv"), ("standard", "standard")

OBJECTIVES: dict[str, Objective] = {
    "mvc_zigal": Objective(
        _ZIGZAG, zigal_pair_loss, None, "fidelity subject to the self-paced joint-view constraint"
    ),
    "mvc_zigal_fixed_threshold": Objective(
        _ZIGZAG, zigal_pair_loss, None, "the same with a threshold that stays where it starts", True
    ),
    "zigal_view": Objective(
        _ZIGZAG, zigal_pair_loss, 0.0, "zigzag advantage in the single-view reward alone"
    ),
    "zigal_joint": Objective(
        _ZIGZAG, zigal_pair_loss, math.inf, "zigzag advantage in the joint-view reward alone"
    ),
    "zigal_weighted": Objective(
        _ZIGZAG, zigal_pair_loss, 1.0, "zigzag advantage in the mean of both, fixed weights"
    ),
    "reward_difference": Objective(
        _STANDARD, zigal_pair_loss, None, "mvc_zigal's loss on two standard samples"
    ),
    "ppo": Objective(_STANDARD, ppo_clip_loss, None, "clipped policy gradient on two standard samples"),
}
