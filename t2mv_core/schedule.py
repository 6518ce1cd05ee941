"""The noise schedule: alpha-bar with its SNR shifted for multiview, and which timesteps a solver visits.

Pure facts (method.md, section 2); there is no step counter here, so any state can be scored in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LCM_ORIGINAL_STEPS = 50
LCM_TIMESTEP_SCALING = 10.0
LCM_SIGMA_DATA = 0.5
SNR_SHIFT_SCALE = 8.0
SOLVERS = ("lcm", "ddim", "ddim-trailing")
"""The ways to sample a model: LCM's, DDIM's at SDXL's own timesteps, DDIM's from the last timestep on."""


def scaled_linear_alpha_bar(beta_start: float, beta_end: float, num_train_steps: int) -> Tensor:
    """ᾱ_t = Π (1 - β), β the square of a linear ramp between its ends' roots, [num_train_steps], float64."""
    root = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_train_steps, dtype=torch.float64)
    return torch.cumprod(1.0 - root.square(), dim=0)


def shift_snr(alpha_bar: Tensor, scale: float = SNR_SHIFT_SCALE) -> Tensor:
    """Shift the signal-to-noise ratio towards more noise, fully at the last timestep ("interpolated" shift).

        log SNR'(t) = (1 - t/(T-1))·log SNR(t) + (t/(T-1))·log(SNR(t)/scale),   SNR = ᾱ/(1-ᾱ)

    Source: docs/method.md, section 2. Equal to log SNR(t) - (t/(T-1))·log scale.

    Args:
        alpha_bar: [T] in (0, 1).
        scale: divisor of the SNR at the last timestep, > 0.
    """
    fraction = torch.linspace(0.0, 1.0, len(alpha_bar), dtype=alpha_bar.dtype)
    log_snr = torch.log(alpha_bar) - torch.log1p(-alpha_bar)
    return torch.sigmoid(log_snr - fraction * math.log(scale))


@dataclass(frozen=True)
class NoiseSchedule:
    """What a solver needs to know of the noise schedule.

    Attributes:
        alpha_bar: cumulative alpha ᾱ_t of the (shifted) schedule, [1000], float64.
        solver: "lcm" or "ddim": which policy the model was made for.
        final_alpha_bar: ᾱ after the last DDIM step (next timestep below zero).
        timestep_spacing: DDIM only: "leading" or "trailing".
        steps_offset: added to DDIM's leading timesteps.
        clip_range: predicted x̂_0 is clamped to ±clip_range latent units; None leaves it alone.
    """

    alpha_bar: Tensor = field(repr=False)
    solver: str
    final_alpha_bar: float
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    clip_range: float | None = None

    def __post_init__(self) -> None:
        """Refuse solvers and spacings nobody wrote."""
        if self.solver not in ("lcm", "ddim"):
            raise ValueError(f"solver={self.solver!r} is unknown; use 'lcm' or 'ddim'.")
        if self.timestep_spacing not in ("leading", "trailing"):
            raise ValueError(
                f"timestep_spacing={self.timestep_spacing!r} is unknown; use 'leading' or 'trailing'."
            )

    @property
    def solver_name(self) -> str:
        """The way of sampling as a word of SOLVERS."""
        is_trailing = self.solver == "ddim" and self.timestep_spacing == "trailing"
        return "ddim-trailing" if is_trailing else self.solver

    @property
    def num_train_steps(self) -> int:
        """Number of timesteps the model was trained on."""
        return len(self.alpha_bar)

    def timesteps(self, num_steps: int) -> Tensor:
        """Timesteps visited, noisiest first, [num_steps], int64.

        LCM: of the 50 original timesteps 999, 979, …, 19 those at floor(i·50/N). DDIM: every (1000 // N)-th.

        Raises:
            ValueError: `num_steps` is not between 1 and what the schedule has.
        """
        limit = LCM_ORIGINAL_STEPS if self.solver == "lcm" else self.num_train_steps
        if not 1 <= num_steps <= limit:
            raise ValueError(
                f"num_steps={num_steps} must lie between 1 and {limit} for the {self.solver} solver."
            )
        if self.solver == "lcm":
            stride = self.num_train_steps // LCM_ORIGINAL_STEPS
            original = torch.arange(LCM_ORIGINAL_STEPS, 0, -1) * stride - 1
            picked = [math.floor(i * LCM_ORIGINAL_STEPS / num_steps) for i in range(num_steps)]
            return original[picked]
        stride = self.num_train_steps // num_steps
        if self.timestep_spacing == "trailing":
            ratio = self.num_train_steps / num_steps
            return torch.round(self.num_train_steps - torch.arange(num_steps) * ratio).long() - 1
        leading = torch.arange(num_steps - 1, -1, -1) * stride + self.steps_offset
        return leading.clamp(max=self.num_train_steps - 1)

    def next_timesteps(self, num_steps: int) -> Tensor:
        """The timestep each action belongs to, [num_steps], int64; -1 stands for the end (final ᾱ).

        LCM: the next visited one; at the last step itself, so that the action still has a density (method.md
        section 3). DDIM: t - 1000 // N.
        """
        steps = self.timesteps(num_steps)
        if self.solver == "lcm":
            return torch.cat([steps[1:], steps[-1:]])
        return (steps - self.num_train_steps // num_steps).clamp(min=-1)

    def alpha_bar_at(self, timestep: int | Tensor) -> Tensor:
        """ᾱ at one timestep or at one per prompt, float64, scalar or [B]; below zero the final ᾱ."""
        index = torch.as_tensor(timestep, dtype=torch.long, device="cpu")
        final = torch.tensor(self.final_alpha_bar, dtype=torch.float64)
        return torch.where(index < 0, final, self.alpha_bar[index.clamp(min=0)])

    def boundary_scalings(self, timestep: int | Tensor) -> tuple[Tensor, Tensor]:
        """LCM's (c_skip, c_out) at a timestep: σ²/((10t)²+σ²) and 10t/√((10t)²+σ²), σ = 0.5, float64.

        Source: docs/method.md, section 3; Luo et al., arXiv:2310.04378.
        """
        scaled = torch.as_tensor(timestep, device="cpu").to(torch.float64) * LCM_TIMESTEP_SCALING
        variance = LCM_SIGMA_DATA**2
        return variance / (scaled.square() + variance), scaled / (scaled.square() + variance).sqrt()


def with_solver(schedule: NoiseSchedule, solver: str) -> NoiseSchedule:
    """The same noise, sampled in another way than the model's files say: few-step LoRAs have no such files.

    * "lcm": for LCM-SDXL, LCM-LoRA, DMD2 and Hyper-SD's one-step LoRA (TCD with full noise is the same step).
    * "ddim": η = 1, timesteps as SDXL's own scheduler has them (leading): for models of many steps.
    * "ddim-trailing": η = 1, from timestep 999 in equal strides, which is Euler ancestral with trailing
      ("sgm_uniform") spacing: for SDXL-Turbo, SDXL-Lightning and Hyper-SD's LoRAs of several steps. Their
      authors use η = 0, Turbo's aside; the policy needs η > 0, without noise an action has no density.

    Raises:
        ValueError: another word.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is unknown; use one of {', '.join(SOLVERS)}.")
    if solver == "lcm":
        return replace(schedule, solver="lcm")
    spacing = "trailing" if solver == "ddim-trailing" else "leading"
    return replace(schedule, solver="ddim", timestep_spacing=spacing)


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read a diffusers scheduler configuration (LCM or DDIM-like) and apply the multiview SNR shift.

    The shift is part of MV-Adapter, not of the scheduler's file, hence always applied unless the
    configuration says `"t2mv_snr_shift": 1.0`.

    Raises:
        ValueError: a prediction type, beta schedule or solver this project has no equations for.
    """
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"prediction_type={config['prediction_type']!r} is not supported; use an epsilon model."
        )
    if config.get("beta_schedule", "scaled_linear") != "scaled_linear":
        raise ValueError(f"beta_schedule={config['beta_schedule']!r} is not supported; use 'scaled_linear'.")
    num_train_steps = int(config.get("num_train_timesteps", 1000))
    alpha_bar = shift_snr(
        scaled_linear_alpha_bar(
            config.get("beta_start", 0.00085), config.get("beta_end", 0.012), num_train_steps
        ),
        float(config.get("t2mv_snr_shift", SNR_SHIFT_SCALE)),
    )
    is_lcm = "LCM" in str(config.get("_class_name", ""))
    return NoiseSchedule(
        alpha_bar=alpha_bar,
        solver="lcm" if is_lcm else "ddim",
        final_alpha_bar=1.0 if config.get("set_alpha_to_one", False) else float(alpha_bar[0]),
        timestep_spacing=config.get("timestep_spacing", "leading"),
        steps_offset=int(config.get("steps_offset", 1)),
        clip_range=float(config["clip_sample_range"]) if config.get("clip_sample", False) else None,
    )
