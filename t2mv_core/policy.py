"""The multiview policy: one denoising step as a Gaussian over the next latents of all views.

Source: docs/method.md, section 3.

    p_θ(x_{t'} | s_t) = Π_v Normal(x_{t'}^v ; μ_θ^v(s_t), σ_t² I)

All is computed in float32: in float16 a log-probability is off by 5e-4, far above the clip range of 1e-4.
`sample` draws actions; `log_prob` scores them in rollout and training alike, so that the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import NoiseSchedule

DDIM_ETA = 1.0
MIN_VARIANCE = 1e-8

Noise = Callable[[torch.Size], Tensor]
"""The source of randomness: takes a shape, returns standard normal numbers on the CPU, float32."""
Timestep = int | Tensor
"""One timestep for all prompts, or one per prompt, [B]; as t' of a DDIM step, -1 is the end."""


@dataclass(frozen=True)
class StepDistribution:
    """Normal(mean, std² I) over the next latents of all views.

    Attributes:
        mean: μ, [B, V, C, H, W], float32.
        std: σ, [B, 1, 1, 1, 1], float32.
        denoised: the step's clean latents (LCM's f, DDIM's x̂_0), [B, V, C, H, W], float32.
    """

    mean: Tensor
    std: Tensor
    denoised: Tensor


def denoise_step(
    schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep, next_timestep: Timestep
) -> StepDistribution:
    """Return the policy's distribution for one step of the schedule's solver.

    Args:
        schedule: alpha-bar and solver.
        noise_pred: ε_θ(x_t, t), [B, V, C, H, W].
        x: x_t, same shape.
        timestep: t.
        next_timestep: t'.
    """
    step = lcm_step if schedule.solver == "lcm" else ddim_step
    return step(schedule, noise_pred.float(), x.float(), timestep, next_timestep)


def predict_clean(schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep) -> Tensor:
    """x̂_0 = (x_t - √(1-ᾱ_t)·ε) / √ᾱ_t, clamped to the schedule's clip range where it has one."""
    alpha_bar = _like(schedule.alpha_bar_at(timestep), x)
    clean = (x - (1.0 - alpha_bar).sqrt() * noise_pred) / alpha_bar.sqrt()
    return clean if schedule.clip_range is None else clean.clamp(-schedule.clip_range, schedule.clip_range)


def consistency_output(schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep) -> Tensor:
    """f = c_skip(t)·x_t + c_out(t)·x̂_0, the consistency model's clean latents (docs/method.md, section 3)."""
    c_skip, c_out = (_like(c, x) for c in schedule.boundary_scalings(timestep))
    return c_skip * x + c_out * predict_clean(schedule, noise_pred, x, timestep)


def clean_latents(schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep) -> Tensor:
    """Return what the solver takes for the clean latents behind x: LCM's f, DDIM's x̂_0."""
    estimate = consistency_output if schedule.solver == "lcm" else predict_clean
    return estimate(schedule, noise_pred, x, timestep)


def lcm_step(
    schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep, next_timestep: Timestep
) -> StepDistribution:
    """LCM policy: μ = √ᾱ_{t'}·f, σ² = 1 - ᾱ_{t'}.

    At the last step t' = t, so that the action is still random and has a density; the picture is decoded
    from f.
    """
    denoised = consistency_output(schedule, noise_pred, x, timestep)
    next_alpha_bar = _like(schedule.alpha_bar_at(next_timestep), x)
    return StepDistribution(next_alpha_bar.sqrt() * denoised, (1.0 - next_alpha_bar).sqrt(), denoised)


def ddim_step(
    schedule: NoiseSchedule, noise_pred: Tensor, x: Tensor, timestep: Timestep, next_timestep: Timestep
) -> StepDistribution:
    """DDIM policy with η = 1; its variance is floored at 1e-8 where it is 0.

        σ² = η² (1-ᾱ')/(1-ᾱ) (1 - ᾱ/ᾱ'),   μ = √ᾱ'·x̂_0 + √(1 - ᾱ' - σ²)·ε

    Source: Song et al., arXiv:2010.02502, Eq. (12) and (16). ε is the one that belongs to the (clamped) x̂_0,
    as in diffusers' `use_clipped_model_output=True`; without a clip range it is the prediction itself.
    """
    alpha_bar = _like(schedule.alpha_bar_at(timestep), x)
    next_alpha_bar = _like(schedule.alpha_bar_at(next_timestep), x)
    denoised = predict_clean(schedule, noise_pred, x, timestep)
    noise = noise_pred
    if schedule.clip_range is not None:
        noise = (x - alpha_bar.sqrt() * denoised) / (1 - alpha_bar).sqrt()
    variance = DDIM_ETA**2 * (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha_bar / next_alpha_bar)
    variance = variance.clamp(min=0.0)
    mean = next_alpha_bar.sqrt() * denoised + (1 - next_alpha_bar - variance).clamp(min=0.0).sqrt() * noise
    return StepDistribution(mean, variance.clamp(min=MIN_VARIANCE).sqrt(), denoised)


def invert_step(
    schedule: NoiseSchedule, noise_pred: Tensor, x_next: Tensor, timestep: Timestep, next_timestep: Timestep
) -> Tensor:
    """Go back deterministically from x_{t'} to x̃_t: the zag (docs/method.md, section 4).

        LCM:  x̃_t = √ᾱ_t·f(x_{t'}, ε, t') + √(1-ᾱ_t)·ε          DDIM:  the same with x̂_0 in place of f

    Args:
        schedule: alpha-bar and solver.
        noise_pred: ε predicted at (x_{t'}, t), the weakly guided one, [B, V, C, H, W].
        x_next: x_{t'}, same shape.
        timestep: t to return to.
        next_timestep: t' of `x_next`.
    """
    noise_pred, x_next = noise_pred.float(), x_next.float()
    alpha_bar = _like(schedule.alpha_bar_at(timestep), x_next)
    denoised = clean_latents(schedule, noise_pred, x_next, next_timestep)
    return alpha_bar.sqrt() * denoised + (1 - alpha_bar).sqrt() * noise_pred


def redraw_step(schedule: NoiseSchedule, denoised: Tensor, timestep: Timestep, noise: Noise) -> Tensor:
    """Return x̃_t = √ᾱ_t·f + √(1-ᾱ_t)·z, z from `noise`: a step's clean latents f under fresh noise."""
    alpha_bar = _like(schedule.alpha_bar_at(timestep), denoised)
    return alpha_bar.sqrt() * denoised + (1 - alpha_bar).sqrt() * noise(denoised.shape).to(denoised)


def sample(distribution: StepDistribution, noise: Noise) -> Tensor:
    """Draw an action x_{t'} = μ + σ·z, z from `noise`, [B, V, C, H, W], float32; `log_prob` scores it."""
    z = noise(distribution.mean.shape).to(distribution.mean)
    return distribution.mean + distribution.std * z


def log_prob(distribution: StepDistribution, action: Tensor) -> Tensor:
    """Return the mean (not sum) over C, H, W of the log-density, [B, V], nats per latent element, float32.

        log p = mean[ -(x - μ)²/(2σ²) - log σ - ½ log 2π ]

    Source: docs/method.md, section 3.

    Raises:
        ValueError: the action's shape is not the distribution's.
    """
    if action.shape != distribution.mean.shape:
        raise ValueError(
            f"The action has shape {tuple(action.shape)}, the distribution {tuple(distribution.mean.shape)}; "
            "score actions with the states they were recorded with."
        )
    std = distribution.std
    error = (action.float() - distribution.mean) / std
    density = -0.5 * error.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
    return density.mean(dim=(-3, -2, -1))


def gaussian_kl(distribution: StepDistribution, reference: StepDistribution) -> Tensor:
    """Return the KL divergence of two steps of equal σ, mean (not sum) over C, H, W, [B, V], in nats.

        KL = mean[ (μ - μ_ref)²/(2σ²) ]

    σ is equal because it depends on the schedule and the timesteps only.
    """
    error = (distribution.mean - reference.mean) / distribution.std
    return 0.5 * error.square().mean(dim=(-3, -2, -1))


def _like(scalar: Tensor, x: Tensor) -> Tensor:
    """Bring a number per prompt (or one for all) to x's device, float32, so that it broadcasts over x."""
    return scalar.to(device=x.device, dtype=torch.float32).reshape(-1, *([1] * (x.ndim - 1)))
