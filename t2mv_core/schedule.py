"""The noise schedule: alpha-bar with its SNR shifted for multiview, and the timesteps a solver visits.

Pure facts (docs/method.md, section 2); there is no step counter, so any state can be scored in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

LCM_SIGMA_DATA = 0.5
SNR_SHIFT_SCALE = 8.0
SOLVERS = ("lcm", "ddim", "ddim-trailing")
"""LCM; DDIM at SDXL's leading timesteps; DDIM at trailing ones, which begin with the last timestep."""
SPACINGS = ("leading", "trailing")


def scaled_linear_alpha_bar(beta_start: float, beta_end: float, num_train_steps: int) -> Tensor:
    """Return ᾱ_t = Π (1 - β), √β linear between the roots of its ends, [num_train_steps], float64."""
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
    """The facts about noise and timesteps that a solver needs.

    Attributes:
        alpha_bar: cumulative alpha ᾱ_t of the (shifted) schedule, [1000], float64.
        solver: "lcm" or "ddim".
        final_alpha_bar: ᾱ after the last DDIM step (next timestep below zero).
        timestep_spacing: DDIM only: "leading" or "trailing".
        steps_offset: added to DDIM's leading timesteps.
        clip_range: predicted x̂_0 is clamped to ±clip_range latent units; None leaves it alone.
        original_steps: LCM only: number of timesteps its distillation knew, from which the visited are taken.
        timestep_scaling: LCM only: factor of t in the boundary scalings.
        notices: what its file says that has no effect, in sentences.
    """

    alpha_bar: Tensor = field(repr=False)
    solver: str
    final_alpha_bar: float
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    clip_range: float | None = None
    original_steps: int = 50
    timestep_scaling: float = 10.0
    notices: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no solver can follow."""
        if self.solver not in ("lcm", "ddim"):
            raise ValueError(f"solver={self.solver!r} is unknown; use 'lcm' or 'ddim'.")
        if self.timestep_spacing not in SPACINGS:
            raise ValueError(
                f"timestep_spacing={self.timestep_spacing!r} is not supported; use 'leading' or 'trailing', "
                "or choose a solver, which has a spacing of its own."
            )
        if self.solver == "lcm" and not 1 <= self.original_steps <= self.num_train_steps:
            raise ValueError(
                f"original_inference_steps={self.original_steps} must lie between 1 and "
                f"num_train_timesteps={self.num_train_steps}; LCM models have 50."
            )

    @property
    def solver_name(self) -> str:
        """The solver and its spacing as a word of SOLVERS."""
        is_trailing = self.solver == "ddim" and self.timestep_spacing == "trailing"
        return "ddim-trailing" if is_trailing else self.solver

    @property
    def num_train_steps(self) -> int:
        """Number of timesteps the model was trained on."""
        return len(self.alpha_bar)

    def timesteps(self, num_steps: int) -> Tensor:
        """Return the timesteps visited, noisiest first, [num_steps], int64.

        LCM: of the 50 original timesteps 999, 979, …, 19 those at floor(i·50/N). DDIM: every (1000 // N)-th.

        Raises:
            ValueError: `num_steps` is not between 1 and what the schedule has.
        """
        limit = self.original_steps if self.solver == "lcm" else self.num_train_steps
        if not 1 <= num_steps <= limit:
            raise ValueError(
                f"num_steps={num_steps} must lie between 1 and {limit} for the {self.solver} solver."
            )
        if self.solver == "lcm":
            original = torch.arange(limit, 0, -1) * (self.num_train_steps // limit) - 1
            return original[torch.arange(num_steps) * limit // num_steps]
        if self.timestep_spacing == "trailing":
            ratio = self.num_train_steps / num_steps
            return torch.round(self.num_train_steps - torch.arange(num_steps) * ratio).long() - 1
        stride = self.num_train_steps // num_steps
        leading = torch.arange(num_steps - 1, -1, -1) * stride + self.steps_offset
        return leading.clamp(max=self.num_train_steps - 1)

    def next_timesteps(self, num_steps: int) -> Tensor:
        """Return the timestep each action belongs to, [num_steps], int64; -1 is the end (final ᾱ).

        LCM: the next one visited, for the last step t itself, so that the action still has a density
        (docs/method.md, section 3). DDIM: t - 1000 // N.
        """
        steps = self.timesteps(num_steps)
        if self.solver == "lcm":
            return torch.cat([steps[1:], steps[-1:]])
        return (steps - self.num_train_steps // num_steps).clamp(min=-1)

    def alpha_bar_at(self, timestep: int | Tensor) -> Tensor:
        """Return ᾱ at one timestep or at one per prompt, float64, scalar or [B]; below zero the final ᾱ."""
        index = torch.as_tensor(timestep, dtype=torch.long, device="cpu")
        final = torch.tensor(self.final_alpha_bar, dtype=torch.float64)
        return torch.where(index < 0, final, self.alpha_bar[index.clamp(min=0)])

    def boundary_scalings(self, timestep: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return LCM's c_skip = σ²/((st)²+σ²) and c_out = st/√((st)²+σ²), σ = 0.5, s = 10, float64.

        Source: docs/method.md, section 3; Luo et al., arXiv:2310.04378. s is the schedule's timestep_scaling.
        """
        scaled = torch.as_tensor(timestep, device="cpu").to(torch.float64) * self.timestep_scaling
        variance = LCM_SIGMA_DATA**2
        return variance / (scaled.square() + variance), scaled / (scaled.square() + variance).sqrt()


def with_solver(schedule: NoiseSchedule, solver: str) -> NoiseSchedule:
    """Return the same noise schedule with another solver, which few-step LoRAs need.

    * "lcm": for LCM-SDXL, LCM-LoRA, DMD2 and Hyper-SD's one-step LoRA (TCD with full noise is the same step).
    * "ddim": η = 1, the leading timesteps of SDXL's scheduler: for models of many steps.
    * "ddim-trailing": η = 1, from timestep 999 in equal strides, which is Euler ancestral with trailing
      ("sgm_uniform") spacing: for SDXL-Turbo, SDXL-Lightning and Hyper-SD's LoRAs of several steps. Their
      authors use η = 0, Turbo's aside; the policy needs η > 0, without noise an action has no density.

    Raises:
        ValueError: the solver is unknown.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is unknown; use one of {', '.join(SOLVERS)}.")
    if solver == "lcm":
        return replace(schedule, solver="lcm")
    spacing = "trailing" if solver == "ddim-trailing" else "leading"
    return replace(schedule, solver="ddim", timestep_spacing=spacing)
