"""Scheduler files: what is followed, what is refused by name, what a named solver overrides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2mv_core import schedule as schedule_module
from t2mv_core.schedule import (
    scaled_linear_alpha_bar,
    shift_snr,
)
from t2mv_core.scheduler_config import schedule_from_config

SDXL = {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": False, "timestep_spacing": "leading"}
LCM = {"_class_name": "LCMScheduler", "set_alpha_to_one": False}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def alpha_bar():
    return scaled_linear_alpha_bar(0.00085, 0.012, 1000)


def test_sdxl_configuration_is_read(alpha_bar):
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }
    schedule = schedule_from_config(config)
    assert (schedule.solver, schedule.timestep_spacing, schedule.steps_offset) == ("ddim", "leading", 1)
    assert schedule.clip_range is None
    torch.testing.assert_close(schedule.alpha_bar, shift_snr(alpha_bar, 8.0))
    assert schedule.final_alpha_bar == float(schedule.alpha_bar[0])


def test_configuration_chooses_solver_clip_and_end():
    config = {
        "_class_name": "LCMScheduler",
        "clip_sample": True,
        "clip_sample_range": 3,
        "set_alpha_to_one": True,
    }
    schedule = schedule_from_config({**config, "t2mv_snr_shift": 1.0})
    assert (schedule.solver, schedule.clip_range, schedule.final_alpha_bar) == ("lcm", 3.0, 1.0)
    torch.testing.assert_close(schedule.alpha_bar, scaled_linear_alpha_bar(0.00085, 0.012, 1000))


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"beta_schedule": "linear"},
        {"rescale_betas_zero_snr": True},
        {"timestep_spacing": "linspace"},
        {"thresholding": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_flow_sigmas": True},
        {"use_dynamic_shifting": True},
        {"interpolation_type": "log_linear"},
        {"timestep_type": "continuous"},
        {"final_sigmas_type": "sigma_min"},
        {"_class_name": "FlowMatchLCMScheduler"},
        {"_class_name": "EDMDPMSolverMultistepScheduler"},
        {"_class_name": "TCDScheduler"},
        {"_class_name": "CosineDPMSolverMultistepScheduler"},
    ],
    ids=lambda config: "=".join(map(str, *config.items())),
)
def test_what_we_have_no_equations_for_is_refused_with_a_cure(config):
    ((key, value),) = config.items()
    said = value if key == "_class_name" else f"{key}={value!r}"
    with pytest.raises(ValueError, match=f"{said} .*; (use|choose a solver,) "):
        schedule_from_config(config)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "LCMScheduler"])
def test_a_scheduler_of_diffusers_with_sdxls_values_is_read_as_before(name):
    import diffusers

    config = getattr(diffusers, name).from_config({**SDXL, **BETAS, "steps_offset": 1}).config
    assert {"prediction_type", "rescale_betas_zero_snr", "trained_betas"} <= config.keys()
    schedule = schedule_from_config(config)
    short = schedule_from_config(LCM if name == "LCMScheduler" else SDXL)
    assert torch.equal(schedule.alpha_bar, short.alpha_bar)
    assert replace(schedule, alpha_bar=short.alpha_bar) == short


@pytest.mark.parametrize(("part", "solver"), [("model", "lcm"), ("teacher", "ddim-trailing")])
def test_the_toyboxs_files_are_read(part, solver):
    path = Path(schedule_module.__file__).parent / "toybox" / part / "scheduler" / "scheduler_config.json"
    schedule = schedule_from_config(json.loads(path.read_text(encoding="utf-8")))
    assert (schedule.solver_name, schedule.clip_range) == (solver, None)
    shift = {"t2mv_snr_shift": 8 * (16 / 96) ** 2}  # the leak of 96 x 96 latents, at 16 x 16
    expected = schedule_from_config({**SDXL, **shift}).alpha_bar
    torch.testing.assert_close(schedule.alpha_bar, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("key", ["thresholding", "trained_betas", "original_inference_steps", "clip_sample"])
def test_a_key_that_is_null_is_as_if_missing(key):
    assert schedule_from_config({key: None}).clip_range is None


def test_trained_betas_are_the_noise():
    from diffusers import LCMScheduler

    betas = torch.linspace(0.001, 0.02, 500, dtype=torch.float64).tolist()
    config = {**LCM, "trained_betas": betas, "num_train_timesteps": 500, "beta_schedule": "linear"}
    schedule = schedule_from_config({**config, "t2mv_snr_shift": 1.0})
    theirs = LCMScheduler(trained_betas=betas, num_train_timesteps=500)
    torch.testing.assert_close(schedule.alpha_bar.float(), theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)
    theirs.set_timesteps(4)
    assert schedule.timesteps(4).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("betas", [[0.1, 0.2], [0.1, 0.2, 1.0], [0.1, 0.2, 0.3, 0.4], []])
def test_unusable_trained_betas_are_refused(betas):
    with pytest.raises(ValueError, match=f"has {len(betas)} numbers; it needs num_train_timesteps=3 of them"):
        schedule_from_config({"trained_betas": betas, "num_train_timesteps": 3})


@pytest.mark.parametrize(
    "config",
    [
        {"beta_start": float("nan")},
        {"beta_start": "0.00085"},
        {"beta_end": 1.5},
        {"beta_start": 0, "beta_end": 0},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 3, "trained_betas": ["0.1", "0.2", "0.3"]},
        {"steps_offset": -1},
        {"steps_offset": True},
        {"t2mv_snr_shift": 0},
        {"clip_sample": True, "clip_sample_range": []},
    ],
    ids=str,
)
def test_numbers_that_are_none_or_impossible_are_refused(config):
    with pytest.raises(ValueError, match="scheduler"):
        schedule_from_config({**LCM, **config})


def test_a_scheduler_that_is_not_known_gives_way_to_a_named_solver_with_a_word():
    schedule = schedule_from_config({"_class_name": "TCDScheduler"}, "lcm")
    assert (schedule.solver, schedule.original_steps) == ("lcm", 50)
    assert schedule.notices == ("The scheduler TCDScheduler is not known; T2MV samples with lcm instead.",)
    assert schedule_from_config(SDXL, "lcm").notices == ()


def test_a_chosen_solver_overrides_what_the_file_says_of_sampling():
    config = {**SDXL, "use_karras_sigmas": True, "timestep_type": "continuous"}
    with pytest.raises(ValueError, match="choose a solver"):
        schedule_from_config(config)
    chosen, plain = schedule_from_config(config, "ddim-trailing"), schedule_from_config(SDXL, "ddim-trailing")
    assert chosen.solver_name == "ddim-trailing"
    assert torch.equal(chosen.alpha_bar, plain.alpha_bar)
    with pytest.raises(ValueError, match="prediction_type='v_prediction'"):
        schedule_from_config({**SDXL, "prediction_type": "v_prediction"}, "lcm")
