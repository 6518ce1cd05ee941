"""Objectives: advantages from rewards, losses from log-probabilities, and the table that combines them.

ρ = log π_θ(action | state) - log π_old(action | state), one number per view and step, where log π is the
*mean* of the Gaussian log-density over the latent's channels and pixels (docs/method.md, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ADVANTAGE_EPSILON = 1e-8  # docs/method.md, section 5

Loss = Callable[[Tensor, Tensor, float], Tensor]
"""(log ratios [K, B, V], advantages [K, B, V], clip range or β) -> scalar; K trajectories per prompt.

Log ratios are ρ, or those to the reference where `Objective.uses_reference`; only these losses take β.
"""


def normalize_advantages(rewards: Tensor, groups: Sequence[Hashable] | None = None) -> Tensor:
    """Return the advantages of rewards over all trajectories of the iteration, or over those of one prompt.

        A = (R - mean) / (std + 1e-8)

    Source: docs/method.md, section 5. With `groups` the mean is the group's, and the deviation is that of all
    R - mean(group) together: one prompt has too few trajectories for a deviation.
    In float64: with nearly equal rewards, rounding the mean to float32 would give advantages of order one.

    Args:
        rewards: [B, ...], *all* trajectories of the iteration: all samplers, all processes.
        groups: the prompt of each of the B rows; None compares all rows with each other.

    Returns:
        Float32, shape of `rewards`. The standard deviation is the population's (divides by n).
    """
    exact = rewards.to(torch.float64)
    if groups is None:
        centred = exact - exact.mean()
    else:
        rows = {group: [row for row, other in enumerate(groups) if other == group] for group in set(groups)}
        means = torch.stack([exact[rows[group]].mean() for group in groups])
        centred = exact - means.reshape(-1, *[1] * (exact.ndim - 1))
    deviation = centred.square().mean().sqrt()
    return (centred / (deviation + ADVANTAGE_EPSILON)).to(torch.float32)


def combine_advantages(view_advantage: Tensor, joint_advantage: Tensor, lambda_: float) -> Tensor:
    """Return the Lagrangian's advantage per view.

        A = (A_view + λ·A_joint) / (1 + λ)

    Source: docs/method.md, section 6; λ = ∞ is taken as its limit, A_joint.

    Args:
        view_advantage: [B, V].
        joint_advantage: [B], repeated to the views of its set.
        lambda_: multiplier, >= 0.

    Returns:
        [B, V].

    Raises:
        ValueError: the shapes do not belong together, or the multiplier is negative or undefined.
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


def zigal_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return the clipped MV-ZigAL regression loss of one denoising step.

        L = mean max((ρ_1 - ρ_2 - A)², (clip ρ_1 - clip ρ_2 - A)²)
        A = A_1 - A_2,   clip ρ = min(max(ρ, -c), c)

    Source: docs/method.md, section 5. 1 is a prompt's standard trajectory, 2 its ZMV one (or another standard
    one).

    Args:
        log_ratios: ρ_1 and ρ_2, [2, B, V], nats per latent element.
        advantages: A_1 and A_2, same shape, normalized; constant for the gradient.
        clip_range: c, > 0.

    Returns:
        Scalar mean over B and V; lower is better.

    Raises:
        ValueError: the tensors differ in shape, or the clip range is not positive.
    """
    _check_loss(log_ratios, advantages, clip_range)
    first, second = log_ratios
    gap = (advantages[0] - advantages[1]).detach()
    error = first - second - gap
    clipped = first.clamp(-clip_range, clip_range) - second.clamp(-clip_range, clip_range) - gap
    return torch.maximum(error.square(), clipped.square()).mean()


def ppo_clip_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return the clipped policy-gradient loss of one denoising step.

        L = -mean min(A·exp(ρ), A·clip(exp(ρ), 1 - c, 1 + c))

    Source: PPO, arXiv:1707.06347, Eq. (7); on denoising steps: DDPO, arXiv:2305.13301, Eq. (8).
    ρ is a mean over C, H, W as everywhere here, so c bounds the change per latent element.
    Arguments, result and errors as of `zigal_loss`, for any number of trajectories.
    """
    _check_loss(log_ratios, advantages, clip_range)
    ratio, gain = log_ratios.exp(), advantages.detach()
    return -torch.minimum(gain * ratio, gain * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)).mean()


def mv_pg_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Return the plain policy-gradient loss of one denoising step, for all views as one action.

        L = -mean Σ_v A^v·ρ^v,   so ∇L = -mean A_joint·Σ_v ∇log π_θ^v

    where A^v = A_joint in every view: the objectives with this loss weigh the joint reward only.

    Source: MV-PG and, on zigzag trajectories, MV-ZigPG of arXiv:2505.20107v2; docs/method.md, section 10.
    There is no importance ratio: the gradient is exact in an iteration's first update and lags behind the
    policy in later ones. `ppo_clip_loss` corrects and bounds that.

    Args:
        log_ratios: ρ, [K, B, V], any number of trajectories.
        advantages: A, same shape; constant for the gradient.
        clip_range: not used; nothing is clipped.

    Returns:
        Scalar, mean over K and B of the sum over V; lower is better, its value alone means nothing.

    Raises:
        ValueError: as `zigal_loss`.
    """
    _check_loss(log_ratios, advantages, clip_range)
    return -(advantages.detach() * log_ratios).sum(dim=-1).mean()


def mv_dpo_loss(log_ratios: Tensor, advantages: Tensor, beta: float) -> Tensor:
    """Return the preference loss of one denoising step on pairs of samples of a prompt.

        L = -mean log sigmoid(β·(Δ_better - Δ_worse)),   Δ = Σ_v (log π_θ^v - log π_ref^v)

    The trajectory with the higher advantage is the better one; the objective's advantage is the joint
    reward's. A pair of equals gives no gradient. The views' sum is the log ratio of their joint action,
    because the policy factorizes over views (docs/method.md, section 3).

    Source: MV-DPO of arXiv:2505.20107v2; docs/method.md, section 10. On single pictures: DPO,
    arXiv:2305.18290, Eq. (7); per denoising step: D3PO, arXiv:2311.13231.

    Args:
        log_ratios: log π_θ - log π_ref of both samples, [2, B, V], nats per latent element. π_ref is the
            policy without the LoRA.
        advantages: same shape; only the sign of the difference of their means over V counts.
        beta: β > 0, strength of the tie to the reference, in the inverse unit of the log ratios.

    Returns:
        Scalar mean over B; log 2 where both samples are alike.

    Raises:
        ValueError: the tensors differ in shape, or β is not positive.
    """
    _check_loss(log_ratios, advantages, beta, "dpo_beta")
    first, second = log_ratios.sum(dim=-1)
    preference = (advantages[0] - advantages[1]).detach().mean(dim=-1).sign()
    return -logsigmoid(beta * preference * (first - second)).mean()


def _check_loss(log_ratios: Tensor, advantages: Tensor, bound: float, name: str = "clip_range") -> None:
    if log_ratios.shape != advantages.shape:
        raise ValueError(
            f"log ratios {list(log_ratios.shape)} and advantages {list(advantages.shape)} differ in shape; "
            "both are [K, B, V]."
        )
    if not bound > 0:
        raise ValueError(f"{name}={bound} must be positive; see optim.{name}.")


def approximate_kl(log_ratio: Tensor, num_elements: int) -> Tensor:
    """Return the second-order estimate D·mean(ρ²)/2 of KL(old, new) per latent element; no graph.

    Args:
        log_ratio: ρ, a mean over a view's latent elements.
        num_elements: D, their number: a view's whole log ratio is D·ρ, and its KL is near (D·ρ)²/2.
    """
    return 0.5 * num_elements * log_ratio.detach().square().mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Return the share of log ratios beyond the clip range, in [0, 1]; no graph."""
    return (log_ratio.detach().abs() > clip_range).to(torch.float32).mean()


@dataclass(frozen=True)
class Objective:
    """A prompt's two trajectories, the weight of their joint reward, and the loss.

    Attributes:
        samplers: names of the two samplers of `t2mv_core.samplers`.
        loss: of log ratios and advantages of the trajectories.
        fixed_lambda: multiplier of the joint advantage, `math.inf` for the joint reward alone; None takes the
            dual variable's.
        has_fixed_threshold: the constraint's threshold stays where it starts instead of following the reward.
        has_equal_rates: λ falls as fast while the constraint holds as it rises while it is violated.
        has_own_noise: the second trajectory starts from initial noise of its own, not from the first one's.
        uses_reference: the loss takes log ratios to the policy without the LoRA, not to the one that acted,
            and β for the clip range.
    """

    samplers: tuple[str, str]
    loss: Loss
    fixed_lambda: float | None = None
    has_fixed_threshold: bool = False
    has_equal_rates: bool = False
    has_own_noise: bool = False
    uses_reference: bool = False

    @property
    def uses_dual(self) -> bool:
        """Whether the dual variable gives the multiplier; else nothing may step or report it."""
        return self.fixed_lambda is None


_ZIGZAG, _STANDARD, _TWO_ZIGZAGS = ("standard", "zmv"), ("standard", "standard"), ("zmv", "zmv")

OBJECTIVES: dict[str, Objective] = {
    "mvc_zigal": Objective(_ZIGZAG, zigal_loss),
    "mvc_zigal_fixed_threshold": Objective(_ZIGZAG, zigal_loss, has_fixed_threshold=True),
    "mvc_zigal_equal_rates": Objective(_ZIGZAG, zigal_loss, has_equal_rates=True),
    "zigal_view": Objective(_ZIGZAG, zigal_loss, fixed_lambda=0.0),
    "zigal_joint": Objective(_ZIGZAG, zigal_loss, fixed_lambda=math.inf),
    "zigal_weighted": Objective(_ZIGZAG, zigal_loss, fixed_lambda=1.0),
    "reward_difference": Objective(_STANDARD, zigal_loss),
    "reward_difference_own_noise": Objective(_STANDARD, zigal_loss, has_own_noise=True),
    "mvc_zigal_redraw": Objective(("standard", "redraw"), zigal_loss),
    "ppo": Objective(_STANDARD, ppo_clip_loss),
    "mv_pg": Objective(_STANDARD, mv_pg_loss, fixed_lambda=math.inf),
    "mv_zigpg": Objective(_TWO_ZIGZAGS, mv_pg_loss, fixed_lambda=math.inf),
    "mv_dpo": Objective(_STANDARD, mv_dpo_loss, fixed_lambda=math.inf, uses_reference=True),
}
"""The method, docs/method.md, section 6, with its ablations, the baselines of section 10, and two controls:
what zigzag pairs owe to initial noise of their own, and what to the inversion."""
