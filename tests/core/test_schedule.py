"""The noise schedule: its SNR shift, the timesteps of each solver, LCM's scalings."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.policy import denoise_step
from t2mv_core.schedule import (
    SOLVERS,
    NoiseSchedule,
    scaled_linear_alpha_bar,
    shift_snr,
    with_solver,
)
from t2mv_core.scheduler_config import schedule_from_config


@pytest.fixture(scope="module")
def alpha_bar():
    return scaled_linear_alpha_bar(0.00085, 0.012, 1000)


def make_schedule(alpha_bar, solver="lcm", **others):
    return NoiseSchedule(alpha_bar, solver, float(alpha_bar[0]), **others)


def test_alpha_bar_is_diffusers(alpha_bar):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(alpha_bar.float(), theirs, atol=1e-6, rtol=1e-5)


def test_snr_shift_is_the_interpolation_of_method_section_2(alpha_bar):
    shifted = shift_snr(alpha_bar, 8.0)
    snr = (alpha_bar / (1 - alpha_bar)).numpy()
    new_snr = (shifted / (1 - shifted)).numpy()
    t = np.arange(1000) / 999
    expected = np.exp((1 - t) * np.log(snr) + t * np.log(snr / 8))
    np.testing.assert_allclose(new_snr, expected, rtol=1e-9)
    # Untouched at t = 0, exactly an eighth at t = 999.
    assert new_snr[0] == pytest.approx(snr[0], rel=1e-9)
    assert new_snr[-1] == pytest.approx(snr[-1] / 8, rel=1e-9)


def test_shifted_alpha_bar_falls(alpha_bar):
    assert bool((shift_snr(alpha_bar).diff() < 0).all())


@pytest.mark.parametrize("num_steps", range(1, 51))
def test_lcm_timesteps_are_diffusers(alpha_bar, num_steps):
    from diffusers import LCMScheduler

    theirs = LCMScheduler(original_inference_steps=50)
    theirs.set_timesteps(num_steps)
    assert make_schedule(alpha_bar).timesteps(num_steps).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_timesteps_are_diffusers(alpha_bar, spacing):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    ours = make_schedule(alpha_bar, "ddim", timestep_spacing=spacing)
    for num_steps in [*range(1, 101), 125, 200, 250, 333, 499, 500]:
        theirs.set_timesteps(num_steps)
        # [:N]: for some N numpy.arange's rounding gives diffusers one timestep too many, -1 at the end.
        difference = (ours.timesteps(num_steps) - theirs.timesteps[:num_steps]).tolist()
        # Trailing rounds 1000 - i·1000/N. Where that ends in exactly .5 (N = 48, i = 3: 937.5) diffusers'
        # result depends on the rounding errors of numpy.arange, ours is the even neighbour: one apart.
        ties = [
            spacing == "trailing" and 2000 * i % num_steps == 0 < 1000 * i % num_steps
            for i in range(num_steps)
        ]
        assert all(gap == 0 or (tie and abs(gap) == 1) for gap, tie in zip(difference, ties, strict=True)), (
            num_steps
        )


def test_lcm_next_timestep_of_the_last_step_is_itself(alpha_bar):
    assert make_schedule(alpha_bar).next_timesteps(4).tolist() == [759, 499, 259, 259]


def test_ddim_next_timestep_is_one_stride_below(alpha_bar):
    # N = 4, leading: 751, 501, 251, 1, stride 250; 1 - 250 < 0 is the end.
    schedule = make_schedule(alpha_bar, "ddim")
    assert schedule.timesteps(4).tolist() == [751, 501, 251, 1]
    assert schedule.next_timesteps(4).tolist() == [501, 251, 1, -1]


@given(num_steps=st.integers(1, 1000), solver=st.sampled_from(["lcm", "ddim"]), trailing=st.booleans())
@settings(max_examples=60, deadline=None)
def test_timesteps_fall_and_stay_in_range(num_steps, solver, trailing):
    num_steps = min(num_steps, 50) if solver == "lcm" else num_steps
    alpha_bar = torch.linspace(0.999, 0.001, 1000, dtype=torch.float64)
    schedule = make_schedule(alpha_bar, solver, timestep_spacing="trailing" if trailing else "leading")
    steps, following = schedule.timesteps(num_steps), schedule.next_timesteps(num_steps)
    assert len(steps) == len(following) == num_steps
    assert bool((steps.diff() <= 0).all())
    assert 0 <= int(steps.min()) <= int(steps.max()) <= 999
    assert bool((following <= steps).all())
    assert int(following.min()) >= -1


def test_alpha_bar_at_takes_numbers_tensors_and_the_end(alpha_bar):
    schedule = NoiseSchedule(alpha_bar, "ddim", final_alpha_bar=1.0)
    assert float(schedule.alpha_bar_at(10)) == float(alpha_bar[10])
    expected = torch.stack([alpha_bar[999], torch.tensor(1.0, dtype=torch.float64), alpha_bar[0]])
    assert torch.equal(schedule.alpha_bar_at(torch.tensor([999, -1, 0])), expected)


def test_boundary_scalings(alpha_bar):
    # c_skip = 0.25/((10t)² + 0.25), c_out = 10t/sqrt((10t)² + 0.25): (1, 0) at 0; at 19, (10t)² = 36100.
    c_skip, c_out = make_schedule(alpha_bar).boundary_scalings(torch.tensor([0, 19]))
    assert c_skip.tolist() == pytest.approx([1.0, 0.25 / 36100.25], rel=1e-12)
    assert c_out.tolist() == pytest.approx([0.0, 190.0 / math.sqrt(36100.25)], rel=1e-12)


@pytest.mark.parametrize(("solver", "num_steps"), [("lcm", 0), ("lcm", 51), ("ddim", -3), ("ddim", 1001)])
def test_step_counts_nobody_can_follow_are_refused(alpha_bar, solver, num_steps):
    with pytest.raises(ValueError, match=f"num_steps={num_steps} must lie between 1 and"):
        make_schedule(alpha_bar, solver).timesteps(num_steps)


def test_unknown_solver_and_spacing_are_refused(alpha_bar):
    with pytest.raises(ValueError, match="use 'lcm' or 'ddim'"):
        make_schedule(alpha_bar, "euler")
    with pytest.raises(ValueError, match="use 'leading' or 'trailing'"):
        make_schedule(alpha_bar, timestep_spacing="linspace")


@pytest.mark.parametrize("original_steps", [10, 20, 33, 100])
def test_lcm_visits_timesteps_of_its_original_ones(original_steps):
    from diffusers import LCMScheduler

    schedule = schedule_from_config({**LCM, "original_inference_steps": original_steps})
    theirs = LCMScheduler(original_inference_steps=original_steps)
    for num_steps in range(1, original_steps + 1):
        theirs.set_timesteps(num_steps)
        assert schedule.timesteps(num_steps).tolist() == theirs.timesteps.tolist()
    with pytest.raises(ValueError, match=f"must lie between 1 and {original_steps} for the lcm solver"):
        schedule.timesteps(original_steps + 1)


@pytest.mark.parametrize("original_steps", [0, 1001])
def test_original_steps_that_are_not_among_the_trained_are_refused(original_steps):
    with pytest.raises(ValueError, match=f"original_inference_steps={original_steps} must lie between 1 and"):
        schedule_from_config({**LCM, "original_inference_steps": original_steps})


@pytest.mark.parametrize("scaling", [0.05, 10.0])
def test_lcm_scales_its_timesteps(scaling):
    from diffusers import LCMScheduler

    theirs = LCMScheduler(timestep_scaling=scaling).get_scalings_for_boundary_condition_discrete(19)
    ours = schedule_from_config({**LCM, "timestep_scaling": scaling}).boundary_scalings(19)
    assert [float(c) for c in ours] == pytest.approx(theirs, rel=1e-9)


SDXL = {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": False, "timestep_spacing": "leading"}
LCM = {"_class_name": "LCMScheduler", "set_alpha_to_one": False}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def believed(x, timestep):
    """Some model: neither linear nor the same at each timestep."""
    return torch.sin(x + timestep / 300) + 0.3 * x


def follow(schedule, num_steps, x, noises):
    """Our trajectory: the clean latents of the last step, which are what is decoded."""
    steps = zip(schedule.timesteps(num_steps), schedule.next_timesteps(num_steps), noises, strict=True)
    for timestep, next_timestep, noise in steps:
        step = denoise_step(schedule, believed(x, int(timestep)), x, int(timestep), int(next_timestep))
        x = step.mean + step.std * noise
    return step.denoised


def follow_diffusers(scheduler, schedule, num_steps, x):
    """Theirs on the same noise schedule; returns the clean latents and the noise it drew for each step."""
    scheduler.alphas_cumprod = schedule.alpha_bar.float()
    scheduler.set_timesteps(num_steps)
    x, noises = x * float(scheduler.init_noise_sigma), []
    for number, timestep in enumerate(scheduler.timesteps):
        asked = scheduler.scale_model_input(x, timestep)
        generator = torch.Generator().manual_seed(number)
        noises.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(number)))
        eta = {"eta": 1.0} if type(scheduler).__name__ == "DDIMScheduler" else {}
        result = scheduler.step(believed(asked, int(timestep)), timestep, x, generator=generator, **eta)
        x = result.prev_sample
        clean = result.denoised if "denoised" in result else result.pred_original_sample
    return clean, noises


def diffusers_scheduler(solver):
    from diffusers import DDIMScheduler, LCMScheduler

    if solver == "lcm":
        return LCMScheduler(**BETAS)
    spacing = "trailing" if solver == "ddim-trailing" else "leading"
    return DDIMScheduler(
        **BETAS, timestep_spacing=spacing, steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )


@pytest.mark.parametrize("config", [SDXL, LCM], ids=["sdxl", "lcm"])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_chosen_solver_is_diffusers_whatever_the_files_said(solver, num_steps, config):
    schedule = with_solver(schedule_from_config(config), solver)
    assert schedule.solver_name == solver
    x = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(9))
    expected, noises = follow_diffusers(diffusers_scheduler(solver), schedule, num_steps, x)
    found = follow(schedule, num_steps, x, noises)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_trailing_ddim_with_noise_is_euler_ancestral(num_steps):
    from diffusers import EulerAncestralDiscreteScheduler

    schedule = with_solver(schedule_from_config(SDXL), "ddim-trailing")
    theirs = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    # Their x is ours divided by √ᾱ, ours at the start standard normal; and they end at σ = 0, as f does.
    first = float(schedule.alpha_bar[999])
    x = torch.randn(1, 2, 4, 5, 5, generator=torch.Generator().manual_seed(9))
    theirs.alphas_cumprod = schedule.alpha_bar.float()
    theirs.set_timesteps(num_steps)
    start = x / first**0.5 / float(theirs.init_noise_sigma)
    expected, noises = follow_diffusers(theirs, schedule, num_steps, start)
    found = follow(schedule, num_steps, x, noises)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_sampling_as_before_changes_nothing_and_unknown_words_are_refused(alpha_bar):
    for config in (SDXL, LCM, {**SDXL, "timestep_spacing": "trailing"}):
        schedule = schedule_from_config(config)
        assert with_solver(schedule, schedule.solver_name) == schedule
    with pytest.raises(ValueError, match="'euler' is unknown; use one of lcm, ddim, ddim-trailing"):
        with_solver(make_schedule(alpha_bar), "euler")
