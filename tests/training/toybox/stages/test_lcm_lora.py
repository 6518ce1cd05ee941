"""The distillation LoRA: what it is trained on, and that it is written as it is used."""

import numpy as np
import pytest
import torch

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora
from t2mv_core.lora.files import load_lora, lora_state_dict
from t2mv_core.policy import consistency_output
from t2mv_core.text import encode_text
from training.toybox.stages.lcm import SOLVER_STEPS
from training.toybox.stages.lcm_lora import (
    BATCH_PAIRS,
    NAME,
    RANK,
    TARGET_MODULES,
    consistency_loss,
    draw_pairs,
    visited_timesteps,
    write_lora,
)

LCM_TIMESTEPS = [999, 759, 499, 259]


@pytest.fixture
def teacher() -> ModelBundle:
    return load_bundle("toybox-teacher")


def test_trajectories_pass_the_timesteps_of_four_lcm_steps(teacher: ModelBundle) -> None:
    for seed in range(20):
        steps = visited_timesteps(teacher.schedule, np.random.default_rng(seed))
        assert len(steps) == SOLVER_STEPS
        assert set(LCM_TIMESTEPS) <= set(steps)
        assert all(a > b for a, b in zip(steps, steps[1:], strict=False))


def test_pairs_are_points_with_their_own_ends_and_half_of_them_where_lcm_looks() -> None:
    """State = 100·row + step, end = row: whatever is drawn must fit together."""
    steps = np.array([999, 900, 759, 700, 499, 400, 259, 100])
    rows = np.arange(3, dtype=np.float32)
    states = np.broadcast_to(
        (100 * rows[None] + np.arange(8)[:, None])[..., None, None, None, None], (8, 3, 1, 1, 1, 1)
    )
    shard = {
        "states": states.astype(np.float16),
        "end": rows[:, None, None, None, None].astype(np.float16),
        "timesteps": steps,
        "captions": np.array(["a", "b", "c"]),
    }
    seen = []
    for seed in range(50):
        drawn, ends, timesteps, captions = draw_pairs([shard], LCM_TIMESTEPS, np.random.default_rng(seed))
        assert len(drawn) == BATCH_PAIRS
        for state, end, timestep, caption in zip(drawn, ends, timesteps.tolist(), captions, strict=True):
            row, step = divmod(int(state), 100)
            assert (row, caption, timestep) == (int(end), "abc"[row], steps[step])
        seen += timesteps.tolist()
    # Half on purpose, and of the other half again every second one.
    assert np.isin(seen, LCM_TIMESTEPS).mean() == pytest.approx(0.75, abs=0.08)


def test_the_loss_is_zero_where_the_model_knows_the_end_and_a_pseudo_huber_elsewhere(
    teacher: ModelBundle,
) -> None:
    student, cameras = teacher.with_solver("lcm"), encode_cameras(teacher, DEFAULT_RIG)
    x = torch.randn(1, 6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    steps, captions = torch.tensor([759]), ["a red mug"]
    with torch.no_grad():
        noise = predict_noise(student, x, steps, encode_text(student, captions), cameras, 1.0)
        known = consistency_output(student.schedule, noise, x, steps)
        assert consistency_loss(student, cameras, x, known, steps, captions) < 0.03  # bf16 against fp32
        # Off by 1 everywhere: sqrt(1 + 0.03²) - 0.03.
        wrong = consistency_loss(student, cameras, x, known + 1.0, steps, captions)
    assert float(wrong) == pytest.approx(0.97, abs=0.02)


def test_the_written_lora_acts_as_the_trained_one(teacher: ModelBundle, tmp_path) -> None:  # noqa: ANN001
    add_lora(teacher.unet, RANK, RANK, NAME, targets=TARGET_MODULES)
    for tensor in lora_state_dict(teacher.unet, NAME).values():
        tensor.data = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).half().float()
    write_lora(teacher, tmp_path / "lcm_lora.safetensors")
    loaded = load_lora(teacher, tmp_path / "lcm_lora.safetensors")
    written = lora_state_dict(teacher.unet, loaded.loras[0].name)
    assert written.keys() == lora_state_dict(teacher.unet, NAME).keys()
    for key, tensor in lora_state_dict(teacher.unet, NAME).items():
        assert torch.equal(written[key], tensor)
    assert not any("processor" in key for key in written)  # the multiview attention stays as it is
