"""A model's scheduler file: each key is followed, without effect, refused by name, or named in a notice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .schedule import (
    SNR_SHIFT_SCALE,
    SPACINGS,
    NoiseSchedule,
    scaled_linear_alpha_bar,
    shift_snr,
    with_solver,
)

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


def schedule_from_config(config: Mapping[str, Any], solver: str | None = None) -> NoiseSchedule:
    """Read a diffusers scheduler configuration and apply the multiview SNR shift.

    An LCM scheduler gives the solver "lcm", every other one "ddim"; a missing or null key is SDXL's. The
    shift belongs to MV-Adapter, not to the file; `"t2mv_snr_shift": 1.0` in the file turns it off.

    Args:
        config: of the scheduler's file.
        solver: a word of SOLVERS in place of the file's; spacing and sigmas of the file then do not matter,
            its clipping, offset and last ᾱ do.

    Raises:
        ValueError: a key whose value this project has no equations for, or an unknown solver.
    """
    config = {key: value for key, value in config.items() if value is not None}
    _refuse_foreign(config, is_sampled_as_the_file_says=solver is None)
    _refuse_no_numbers(config)
    spacing, notices = str(config.get("timestep_spacing", "leading")), list[str]()
    if spacing not in SPACINGS and (solver or "LCM" in str(config.get("_class_name", ""))):
        notices.append(f"The scheduler's timestep_spacing={spacing!r} has no effect: the solver has its own.")
        spacing = "leading"
    if (name := str(config.get("_class_name", ""))) and not _CLASSES.fullmatch(name):
        notices.append(f"The scheduler {name} is not known; T2MV samples with {solver} instead.")
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
    return [f"T2MV does not know the scheduler's {', '.join(strange)}, and ignores it."] if strange else []


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
