"""The student starts as its teacher, and its targets are the teacher's probability flow."""

import numpy as np
import torch
from diffusers import DDIMScheduler

from t2mv_core.denoiser import call_unet
from t2mv_core.scheduler_config import schedule_from_config
from training.toybox.stages import distil as distil_stage
from training.toybox.stages.distil import (
    SOLVER_SCHEDULER,
    SOLVER_STEPS,
    create_student,
    flow_step,
    guided_noise,
    jittered_timesteps,
)
from training.toybox.stages.unet import Networks


def test_flow_step_is_deterministic_ddim_with_clipping() -> None:
    schedule = schedule_from_config(SOLVER_SCHEDULER)
    reference = DDIMScheduler(clip_sample=True, clip_sample_range=3.0, timestep_spacing="trailing")
    reference.alphas_cumprod = schedule.alpha_bar.float()
    reference.set_timesteps(10)
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    for timestep in (999, 599, 199):
        expected = reference.step(noise, timestep, x, eta=0.0, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(
            flow_step(schedule, noise, x, timestep, timestep - 100), expected, rtol=1e-4, atol=1e-4
        )


def test_jittered_timesteps_fall_from_the_noisiest_through_every_part() -> None:
    schedule = schedule_from_config(SOLVER_SCHEDULER)
    for seed in range(20):
        steps = jittered_timesteps(schedule, np.random.default_rng(seed))
        assert steps[0] == 999
        assert len(steps) == SOLVER_STEPS
        assert all(a > b for a, b in zip(steps, steps[1:], strict=False))
        assert 0 <= steps[-1] < 999 / SOLVER_STEPS


def test_a_new_student_predicts_what_its_teacher_predicts_for_any_guidance() -> None:
    torch.manual_seed(0)
    teacher = Networks().eval()
    student = create_student(teacher).eval()
    x, steps = torch.randn(2, 6, 4, 16, 16), torch.tensor([999, 100])
    condition, cameras = teacher.encode(["a red mug", "a blue car"]), teacher.cameras()
    expected = call_unet(teacher.unet, x, steps, condition, cameras)
    for w in (1.0, 8.0):
        actual = call_unet(student.unet, x, steps, condition, cameras, guidance=torch.full((2,), w))
        torch.testing.assert_close(actual, expected)


def test_guidance_of_one_is_the_prompt_alone(monkeypatch) -> None:  # noqa: ANN001
    """ε_∅ + w (ε_c - ε_∅): w = 1 gives ε_c, w = 3 with ε_c = 2 and ε_∅ = 1 gives 1 + 3·1 = 4."""
    teacher = Networks().eval()
    outputs = torch.cat([torch.full((2, 6, 4, 16, 16), 2.0), torch.full((2, 6, 4, 16, 16), 1.0)])
    monkeypatch.setattr(distil_stage, "call_unet", lambda *rest: outputs)
    noise = guided_noise(
        teacher, torch.zeros(2, 6, 4, 16, 16), 500, ["a mug", "a car"], torch.tensor([1.0, 3.0])
    )
    assert torch.equal(noise[0], torch.full_like(noise[0], 2.0))
    assert torch.equal(noise[1], torch.full_like(noise[1], 4.0))
