"""The student starts as its base, and its targets are the base's probability flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from t2mv_core.scheduler_config import schedule_from_config
from training.toybox.stages.lcm import (
    SOLVER_SCHEDULER,
    SOLVER_STEPS,
    create_student,
    flow_step,
    guided_noise,
    is_learned,
    jittered_timesteps,
    solve_chunk,
)
from training.toybox.stages.networks import MultiviewNetworks, SingleViewNetworks


@pytest.fixture(scope="module")
def base() -> SingleViewNetworks:
    torch.manual_seed(0)
    return SingleViewNetworks().eval().requires_grad_(False)


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


def test_a_new_student_predicts_what_its_base_predicts_for_any_guidance(base: SingleViewNetworks) -> None:
    student = create_student(base).eval()
    x, steps = torch.randn(2, 4, 16, 16), torch.tensor([999, 100])
    condition = base.encode(["a red mug", "a blue car"])
    expected = base.predict(x, steps, condition)
    for w in (1.0, 8.0):
        actual = student.predict(x, steps, condition, torch.full((2,), w))
        torch.testing.assert_close(actual, expected)


def test_the_student_never_learns_the_adapter_nor_the_shared_convolutions() -> None:
    names = [name for name, _ in MultiviewNetworks(has_guidance_embedding=True).unet.named_parameters()]
    learned = {name for name in names if is_learned(name)}
    assert not any(".processor." in name for name in learned)
    assert "time_embedding.cond_proj.weight" in learned
    assert "down_blocks.0.resnets.0.conv1.weight" in learned
    assert "mid_block.resnets.0.conv1.weight" not in learned


def test_guidance_of_one_is_the_prompt_alone(
    base: SingleViewNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ε_∅ + w (ε_c - ε_∅): w = 1 gives ε_c, w = 3 with ε_c = 2 and ε_∅ = 1 gives 1 + 3·1 = 4."""
    outputs = torch.cat([torch.full((2, 4, 16, 16), 2.0), torch.full((2, 4, 16, 16), 1.0)])
    monkeypatch.setattr(base, "predict", lambda *rest: outputs)
    noise = guided_noise(base, torch.zeros(2, 4, 16, 16), 500, ["a mug", "a car"], torch.tensor([1.0, 3.0]))
    assert torch.equal(noise[0], torch.full_like(noise[0], 2.0))
    assert torch.equal(noise[1], torch.full_like(noise[1], 4.0))


@pytest.mark.parametrize("has_views", [False, True])
def test_a_solved_chunk_ends_where_its_last_state_leads(base: SingleViewNetworks, has_views: bool) -> None:
    """At w = 1 and its last timestep, x̂_0 of the recorded state is the recorded end; pictures and sets."""
    torch.manual_seed(0)
    networks = MultiviewNetworks().eval().requires_grad_(False) if has_views else base
    clean = torch.randn(2, 6, 4, 16, 16) if has_views else torch.randn(2, 4, 16, 16)
    captions = ["a red mug", "a blue car"]
    solved = solve_chunk(networks, captions, clean, np.random.default_rng(0))
    schedule, last = schedule_from_config(SOLVER_SCHEDULER), int(solved["timesteps"][-1])
    state = torch.from_numpy(solved["states"][-1]).float()
    with torch.no_grad():
        noise = guided_noise(networks, state, last, captions, torch.from_numpy(solved["guidance"]))
    end = flow_step(schedule, noise, state, last, -1)
    torch.testing.assert_close(end, torch.from_numpy(solved["end"]).float(), rtol=0.0, atol=0.02)
    assert solved["states"].shape == (len(solved["timesteps"]), *clean.shape)
