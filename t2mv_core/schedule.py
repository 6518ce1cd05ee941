"""The noise schedule: alpha-bar with its SNR shifted for multiview, and the timesteps a solver visits.

Pure facts (docs/method.md, section 2); there is no step counter, so any state can be scored in any order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

LCM_SIGMA_DATA = 0.5
SNR_SHIFT_SCALE = 8.0
SOLVERS = ("lcm", "ddim", "ddim-trailing")
"""LCM; DDIM at SDXL's leading timesteps; DDIM at trailing ones, which begin with the last timestep."""
_CLASSES = re.compile(
    r"((DDIM|DDPM)(Parallel)?|PNDM|LMSDiscrete|Euler(Ancestral)?Discrete|HeunDiscrete|KDPM2(Ancestral)?Discrete|"
    r"DPMSolver(Multistep|Singlestep|SDE)|DEISMultistep|UniPCMultistep|SASolver|LCM)Scheduler"
)
"""Schedulers of models that can be sampled with DDIM or LCM as well."""
_FOREIGN = {
    "FlowMatch": "a flow-matching model's (Flux, Stable Diffusion 3)",
    "EDM": "an EDM model's (Playground 2.5)",
}
"""Beginning of the class of a scheduler for models that our equations do not cover, and whose it is."""
_TRAINED = {
    "prediction_type": "epsilon", "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": False,
    "thresholding": False,
}  # fmt: skip
"""Keys that say how a model was trained, each with the only value that our equations cover.

With zero terminal SNR ᾱ is 0 at the last timestep, where x̂_0 cannot be computed from ε."""
_SAMPLED = {
    "use_dynamic_shifting": False, "use_karras_sigmas": False, "use_lu_lambdas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False,
    "interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero",
}  # fmt: skip
"""Keys that change which noise levels are visited or what is done there, each with the value we follow."""
_OBEYED = {
    "num_train_timesteps", "beta_start", "beta_end", "trained_betas", "timestep_spacing", "steps_offset",
    "set_alpha_to_one", "clip_sample", "clip_sample_range", "original_inference_steps", "timestep_scaling",
    "t2mv_snr_shift",
}  # fmt: skip
_NUMBERS = _OBEYED - {"trained_betas", "timestep_spacing", "set_alpha_to_one", "clip_sample"}
_WITHOUT_EFFECT = {
    # Only with a key of _SAMPLED or `thresholding`.
    "sigma_min", "sigma_max", "flow_shift", "time_shift_type", "shift_terminal", "dynamic_thresholding_ratio",
    "sample_max_value", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
    # How exactly another solver takes the same steps.
    "solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "predict_x0",
    "solver_p", "disable_corrector", "variance_type", "lambda_min_clipped", "skip_prk_steps",
    "predictor_order", "corrector_order", "tau_func", "noise_sampler_seed",
}  # fmt: skip
"""Keys that do not change which noise levels our solvers visit."""
_SPACINGS = ("leading", "trailing")


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
        if self.timestep_spacing not in _SPACINGS:
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


def schedule_from_config(config: Mapping[str, Any], solver: str | None = None) -> NoiseSchedule:
    """Read a diffusers scheduler configuration and apply the multiview SNR shift.

    An LCM scheduler gives the solver "lcm", every other one "ddim"; a missing or null key is SDXL's. The
    shift belongs to MV-Adapter, not to the file; `"t2mv_snr_shift": 1.0` in the file turns it off.

    Args:
        config: of the scheduler's file.
        solver: a word of SOLVERS in place of the file's; what the file says of sampling then does not matter.

    Raises:
        ValueError: a key whose value this project has no equations for, or an unknown solver.
    """
    config = {key: value for key, value in config.items() if value is not None}
    _refuse_foreign(config, is_sampled_as_the_file_says=solver is None)
    _refuse_no_numbers(config)
    spacing, notices = str(config.get("timestep_spacing", "leading")), list[str]()
    if spacing not in _SPACINGS and (solver or "LCM" in str(config.get("_class_name", ""))):
        notices.append(f"The scheduler's timestep_spacing={spacing!r} has no effect: the solver has its own.")
        spacing = "leading"
    if (name := str(config.get("_class_name", ""))) and not _CLASSES.fullmatch(name):
        notices.append(f"The scheduler {name} is not known; the solver {solver} has its place.")
    alpha_bar = shift_snr(_trained_alpha_bar(config), float(config.get("t2mv_snr_shift", SNR_SHIFT_SCALE)))
    if not bool(((alpha_bar > 0) & (alpha_bar < 1)).all()):
        raise ValueError("The scheduler's betas must be greater than 0 and less than 1.")
    clip_range = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None
    schedule = NoiseSchedule(
        alpha_bar=alpha_bar,
        solver="lcm" if "LCM" in str(config.get("_class_name", "")) else "ddim",
        final_alpha_bar=1.0 if config.get("set_alpha_to_one", False) else float(alpha_bar[0]),
        timestep_spacing=spacing,
        steps_offset=int(config.get("steps_offset", 1)),
        clip_range=clip_range,
        original_steps=int(config.get("original_inference_steps", 50)),
        timestep_scaling=float(config.get("timestep_scaling", 10.0)),
        notices=(*notices, *_unknown_keys(config)),
    )
    return schedule if solver is None else with_solver(schedule, solver)


def _unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """Name in a sentence the keys that are not known to have no effect, if there are any."""
    known = {*_TRAINED, *_SAMPLED, *_OBEYED, *_WITHOUT_EFFECT}
    strange = [key for key, value in config.items() if key not in known and key[:1] != "_" and value]
    return [f"T2MV does not know the scheduler's {', '.join(strange)}, and does without."] if strange else []


def _refuse_foreign(config: Mapping[str, Any], is_sampled_as_the_file_says: bool) -> None:
    """Raise a ValueError for a scheduler, or a value of a key, that our equations do not cover."""
    name = str(config.get("_class_name", ""))
    if whose := next((whose for start, whose in _FOREIGN.items() if name.startswith(start)), None):
        raise ValueError(f"{name} is {whose}; use an epsilon model such as SDXL.")
    if name and is_sampled_as_the_file_says and not _CLASSES.fullmatch(name):
        raise ValueError(
            f"The scheduler {name} is not supported; choose a solver, 'lcm' for TCDScheduler, if the model "
            "is an epsilon model such as SDXL."
        )
    tables = [(_TRAINED, "use an epsilon model trained with {key}={value}")]
    if is_sampled_as_the_file_says:
        tables.append((_SAMPLED, "choose a solver, or set it to {value} in the scheduler_config.json"))
    for table, cure in tables:
        for key, value in table.items():
            is_unread = key == "beta_schedule" and "trained_betas" in config
            if config.get(key, value) != value and not is_unread:
                advice = cure.format(key=key, value=json.dumps(value))
                raise ValueError(f"The scheduler's {key}={config[key]!r} is not supported; {advice}.")


def _refuse_no_numbers(config: Mapping[str, Any]) -> None:
    """Raise a ValueError where something else stands for a number, or one that none of them can be."""
    for key in sorted(_NUMBERS & config.keys()):
        value, is_above_zero = config[key], key in ("num_train_timesteps", "t2mv_snr_shift")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or (is_above_zero and value == 0):
            words = "greater than 0" if is_above_zero else "of at least 0"
            raise ValueError(f"The scheduler's {key}={value!r} must be a number {words}.")


def _trained_alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """Return ᾱ_t before the shift, [num_train_timesteps], float64."""
    num_steps = int(config.get("num_train_timesteps", 1000))
    if "trained_betas" not in config:
        start, end = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
        return scaled_linear_alpha_bar(start, end, num_steps)
    try:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    except (TypeError, ValueError):
        betas = torch.empty(0)
    if betas.shape != (num_steps,) or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(
            f"trained_betas of the scheduler has {betas.numel()} numbers; it needs num_train_timesteps="
            f"{num_steps} of them, between 0 and 1."
        )
    return torch.cumprod(1.0 - betas, dim=0)
