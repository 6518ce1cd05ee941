"""The benchmark's ways of zigzagging against the samplers they are compared with."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.loading import load_bundle
from t2mv_core.policy import denoise_step, invert_step
from t2mv_core.samplers import SAMPLERS, SamplingSettings
from t2mv_core.samplers.loop import StepLoop
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise
from training.experiments.zigzag import draw
from training.experiments.zigzag_ways import Way, Zig, direct, renoise, reuse, sample, zag

FOUR = SamplingSettings(num_steps=4, guidance_scale=5.0, zigzag_steps=2)


@pytest.fixture(scope="module")
def parts():
    bundle = load_bundle("toybox")
    with torch.no_grad():
        return bundle, encode_text(bundle, ["a red mug"]), encode_cameras(bundle, DEFAULT_RIG)


@pytest.mark.parametrize(
    ("sampler", "at", "back"), [("standard", (), zag), ("zmv", (0, 1), zag), ("redraw", (0, 1), renoise)]
)
def test_a_way_is_the_sampler_of_its_name(parts, sampler, at, back):
    ours = sample(*parts, SeededNoise([7]), Way("", FOUR, at, back))
    theirs = SAMPLERS[sampler](*parts, SeededNoise([7]), FOUR)
    assert torch.equal(ours, theirs.denoised)


@torch.no_grad()
def test_reuse_inverts_with_the_prediction_of_the_zig(parts):
    bundle, condition, cameras = parts
    loop, noise = StepLoop(bundle, condition, cameras, FOUR, 0, None, None), SeededNoise([7])
    x = loop.initial_latents(noise)
    ours = reuse(loop, bundle.schedule, Zig(x, loop.zig(x, 0), 0), noise)

    timestep, next_timestep = loop.timesteps(0)
    noise_pred = predict_noise(bundle, x, timestep, condition, cameras, 5.0, 1.0)
    distribution = denoise_step(bundle.schedule, noise_pred, x, timestep, next_timestep)
    again = SeededNoise([7])
    again(x.shape)  # x_T
    x_next = distribution.mean + distribution.std * again(x.shape)
    expected = invert_step(bundle.schedule, noise_pred, x_next, timestep, next_timestep)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("way", "model", "count"),
    [
        (Way("", FOUR), "toybox", 4),
        (Way("", FOUR, (0, 1)), "toybox", 8),
        (Way("", FOUR, (0,), direct), "toybox", 5),
        # Guidance in two passes; the bundled student has it as an input.
        (Way("", FOUR), "toybox-teacher", 8),
    ],
)
def test_evaluations_are_counted_per_set(way, model, count):
    (_, images, evaluations), *_ = draw(way, load_bundle(model), ["a red mug", "a blue car"], seed=1)
    assert images.shape[:2] == (2, 6)
    assert evaluations == 2 * count
