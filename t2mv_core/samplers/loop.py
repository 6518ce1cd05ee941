"""The parts that samplers share: zig, zag and act, which record states and actions and report progress."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..bundle import ModelBundle
from ..denoiser import CameraFeatures, check_reference, predict_noise
from ..policy import (
    Noise,
    StepDistribution,
    clean_latents,
    denoise_step,
    invert_step,
    log_prob,
    redraw_step,
    sample,
)
from ..text import TextCondition
from ..trajectory import Trajectory
from ..unet.reference_attention import ReferenceFeatures
from .settings import OnStep, SamplingSettings, StepEvent


class StepLoop:
    """The state of one trajectory in the making; a sampler is the order in which it calls zig, zag, act."""

    def __init__(
        self,
        bundle: ModelBundle,
        condition: TextCondition,
        cameras: CameraFeatures,
        settings: SamplingSettings,
        num_evaluations: int,
        on_step: OnStep | None,
        reference: ReferenceFeatures | None,
    ) -> None:
        """Look up the timesteps and prepare an empty record."""
        check_reference(bundle, reference, len(condition))
        self._bundle, self._condition, self._cameras, self._settings = bundle, condition, cameras, settings
        self._reference = reference
        self._timesteps = bundle.schedule.timesteps(settings.num_steps)
        self._next_timesteps = bundle.schedule.next_timesteps(settings.num_steps)
        self._num_evaluations, self._on_step, self._evaluations = num_evaluations, on_step, 0
        self._states: list[Tensor] = []
        self._actions: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._denoised: Tensor

    def initial_latents(self, noise: Noise) -> Tensor:
        """Draw x_T: standard normal, [B, V, C, H, W], float32 on the bundle's device."""
        bundle = self._bundle
        size = (bundle.latent_channels, bundle.latent_px, bundle.latent_px)
        x = noise(torch.Size((len(self._condition), self._cameras.num_views, *size)))
        return self._rounded(x.to(bundle.device))

    def timesteps(self, step: int) -> tuple[int, int]:
        """Return t and t' of a step."""
        return int(self._timesteps[step]), int(self._next_timesteps[step])

    def zig(self, x: Tensor, step: int) -> StepDistribution:
        """Denoise: return the policy's distribution at a step, with the full guidance and view scale."""
        settings, (timestep, next_timestep) = self._settings, self.timesteps(step)
        noise_pred = self._predict(
            x, timestep, settings.guidance_scale, settings.view_scale, settings.ref_scale
        )
        distribution = denoise_step(self._bundle.schedule, noise_pred, x, timestep, next_timestep)
        self._report("zig", timestep, distribution.denoised)
        return distribution

    def zag(self, x_next: Tensor, step: int) -> Tensor:
        """Invert: return x̃_t, from x_{t'} with the weaker guidance and view scale."""
        settings, schedule = self._settings, self._bundle.schedule
        timestep, next_timestep = self.timesteps(step)
        weak = (
            settings.inverse_guidance_scale,
            settings.inverse_view_scale,
            min(settings.inverse_ref_scale, settings.ref_scale),
        )
        noise_pred = self._predict(x_next, timestep, *weak)
        inverted = invert_step(schedule, noise_pred, x_next, timestep, next_timestep)
        if self._on_step is not None:
            self._report("zag", timestep, clean_latents(schedule, noise_pred, x_next, next_timestep))
        return self._rounded(inverted)

    def redraw(self, distribution: StepDistribution, step: int, noise: Noise) -> Tensor:
        """Return √ᾱ_t·f + √(1-ᾱ_t)·z: the zig's picture under fresh noise z, [B, V, C, H, W]."""
        timestep = int(self._timesteps[step])
        return self._rounded(redraw_step(self._bundle.schedule, distribution.denoised, timestep, noise))

    def act_and_record(self, x: Tensor, distribution: StepDistribution, noise: Noise) -> Tensor:
        """Sample the action of a step and record it with its state; return the action."""
        action = self._rounded(sample(distribution, noise))
        dtype = self._settings.state_dtype
        self._states.append(x.to(dtype))
        self._actions.append(action.to(dtype))
        # Of the rounded action: scoring the record again must find the same number.
        self._log_probs.append(log_prob(distribution, action))
        self._denoised = distribution.denoised
        return action

    def trajectory(self) -> Trajectory:
        """Return the record of all steps."""
        return Trajectory(
            states=torch.stack(self._states, dim=2),
            actions=torch.stack(self._actions, dim=2),
            log_probs=torch.stack(self._log_probs, dim=2),
            timesteps=self._timesteps,
            next_timesteps=self._next_timesteps,
            denoised=self._denoised,
        )

    @torch.no_grad()
    def _predict(
        self, x: Tensor, timestep: int, guidance_scale: float, view_scale: float, ref_scale: float
    ) -> Tensor:
        reference = None if self._reference is None else self._reference.scaled(ref_scale)
        inputs = (self._condition, self._cameras, guidance_scale, view_scale, reference)
        noise_pred = predict_noise(self._bundle, x, timestep, *inputs)
        if not bool(noise_pred.isfinite().all()):
            raise ValueError(
                f"The UNet's prediction at timestep {timestep} holds NaN or infinity; the weights are "
                f"damaged or the precision {self._bundle.dtype} is too low for them. Load the model in "
                "bfloat16 or float32."
            )
        return noise_pred.float()

    def _rounded(self, x: Tensor) -> Tensor:
        """Return float32 numbers that `state_dtype` can hold, so that the record is what acted."""
        return x.to(self._settings.state_dtype).to(x.dtype)

    def _report(self, kind: Literal["zig", "zag"], timestep: int, denoised: Tensor) -> None:
        self._evaluations += 1
        if self._on_step is not None:
            self._on_step(StepEvent(self._evaluations, self._num_evaluations, kind, timestep, denoised))
