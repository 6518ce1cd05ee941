"""The benchmark's ways of zigzagging against the samplers they are compared with."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.denoiser import encode_cameras
from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SAMPLERS, SamplingSettings, count_evaluations
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise
from training.experiments.zigzag_ways import Walk, Way, quiet, renoise, sample, zag

FOUR = SamplingSettings(num_steps=4, guidance_scale=5.0, zigzag_steps=2)


@pytest.fixture(scope="module")
def parts():
    bundle = load_bundle("toybox")
    with torch.no_grad():
        return bundle, encode_text(bundle, ["a red mug"]), encode_cameras(bundle, DEFAULT_RIG)


@torch.no_grad()
@pytest.mark.parametrize(("sampler", "at"), [("standard", ()), ("zmv", (0, 1))])
def test_the_walk_is_the_sampler(parts, sampler, at):
    walk = Walk(*parts, FOUR, SeededNoise([7]))
    ours = sample(walk, Way("", FOUR, at, zag))
    theirs = SAMPLERS[sampler](*parts, SeededNoise([7]), FOUR)
    assert torch.equal(ours, theirs.denoised)
    assert walk.num_evaluations == count_evaluations(sampler, FOUR)


@torch.no_grad()
def test_a_quiet_zigzag_without_a_gap_changes_little(parts):
    """With (w_inv, s_inv) = (w, s) and no fresh noise, x̃ is close to x; with fresh noise it is another x."""
    bundle = parts[0]
    settings = SamplingSettings(num_steps=4, guidance_scale=5.0, inverse_guidance_scale=5.0)
    walk = Walk(*parts, settings, SeededNoise([7]))
    x = walk.noise(torch.Size((1, 6, bundle.latent_channels, bundle.latent_px, bundle.latent_px)))
    distribution, noise_pred = walk.zig(x, 0)
    distances = [
        float((way(walk, 0, distribution, noise_pred) - x).norm() / x.norm()) for way in (quiet, zag, renoise)
    ]
    assert distances[0] < 0.2
    assert all(distance > 1.0 for distance in distances[1:])
    assert walk.num_evaluations == 3


@torch.no_grad()
def test_guidance_in_two_passes_costs_two_evaluations_a_set():
    """The teacher's way; the bundled student has its guidance as an input."""
    bundle = load_bundle("toybox-teacher")
    condition, cameras = encode_text(bundle, ["a red mug"]), encode_cameras(bundle, DEFAULT_RIG)
    for guidance, count in ((1.0, 1), (3.0, 2)):
        walk = Walk(bundle, condition, cameras, FOUR, SeededNoise([7]))
        x = walk.noise(torch.Size((1, 6, bundle.latent_channels, bundle.latent_px, bundle.latent_px)))
        walk.predict(x, 0, guidance, 1.0)
        assert walk.num_evaluations == count
