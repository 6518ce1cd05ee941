"""Samplers of image to multiview: how much the picture counts where, and which models take one."""

import pytest
import torch

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.policy import denoise_step, log_prob
from t2mv_core.reference import encode_reference
from t2mv_core.samplers import SAMPLERS, SamplingSettings, loop, sample_zmv
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

SETTINGS = SamplingSettings(num_steps=2, guidance_scale=3.0, ref_scale=0.8, inverse_ref_scale=0.3)


@pytest.fixture(scope="module")
def inputs(image_bundle, prompts, pictures, rig):
    condition = encode_text(image_bundle, prompts, "blurry")
    return condition, encode_cameras(image_bundle, rig), encode_reference(image_bundle, pictures, condition)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_recorded_step_is_scored_again_with_the_picture(image_bundle, inputs, sampler):
    condition, cameras, reference = inputs
    sample, noise = SAMPLERS[sampler], SeededNoise([1, 2])
    trajectory = sample(image_bundle, condition, cameras, noise, SETTINGS, reference=reference)
    for step in range(2):
        t, t_next = int(trajectory.timesteps[step]), int(trajectory.next_timesteps[step])
        x = trajectory.states[:, :, step]
        scaled = reference.scaled(0.8)
        noise_pred = predict_noise(image_bundle, x, t, condition, cameras, 3.0, 1.0, scaled)
        distribution = denoise_step(image_bundle.schedule, noise_pred, x, t, t_next)
        scored = log_prob(distribution, trajectory.actions[:, :, step])
        torch.testing.assert_close(scored, trajectory.log_probs[:, :, step], atol=1e-5, rtol=0)


def test_the_zag_has_a_scale_of_its_own(image_bundle, inputs, monkeypatch):
    condition, cameras, reference = inputs
    scales = []

    def note(*arguments):
        scales.append(arguments[-1].scale)
        return predict_noise(*arguments)

    monkeypatch.setattr(loop, "predict_noise", note)
    sample_zmv(image_bundle, condition, cameras, SeededNoise([1, 2]), SETTINGS, reference=reference)
    assert scales == pytest.approx([0.8, 0.3, 0.8, 0.8])  # zig, zag, zig; then the ordinary step


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_task_that_the_model_does_not_do_is_refused_before_any_noise_is_drawn(
    image_bundle, bundle, inputs, sampler
):
    condition, cameras, reference = inputs

    def noise(shape):
        raise AssertionError("noise was drawn")

    sample = SAMPLERS[sampler]
    with pytest.raises(ValueError, match="draws the views of a picture, and none was given"):
        sample(image_bundle, condition, cameras, noise, SETTINGS)
    with pytest.raises(ValueError, match="draws views of a text and cannot see a picture"):
        sample(bundle, condition, cameras, noise, SETTINGS, reference=reference)
