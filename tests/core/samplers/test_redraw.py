from dataclasses import replace

import pytest
import torch

from t2mv_core.denoiser import predict_noise
from t2mv_core.policy import denoise_step
from t2mv_core.samplers import SamplingSettings, count_evaluations, sample_redraw, sample_standard
from t2mv_core.trajectory import SeededNoise

SHAPE = torch.Size((2, 3, 4, 8, 8))


def test_without_zigzag_steps_it_is_standard_sampling_bit_for_bit(bundle, condition, cameras, settings):
    settings = replace(settings, zigzag_steps=0)
    standard = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    redrawn = sample_redraw(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    for name in ("states", "actions", "log_probs", "denoised"):
        assert torch.equal(getattr(redrawn, name), getattr(standard, name)), name


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_step_by_hand(bundle, condition, cameras, repeats, replay):
    """x̃_t = √ᾱ·f + √(1-ᾱ)·z, z drawn; recorded are x̃_t and the result of the last zig."""
    settings = SamplingSettings(num_steps=2, guidance_scale=5.0, zigzag_repeats=repeats)
    noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(3 + repeats)]
    trajectory = sample_redraw(bundle, condition, cameras, replay(noise), settings)
    t, t_next = int(trajectory.timesteps[0]), int(trajectory.next_timesteps[0])
    alpha_bar = bundle.schedule.alpha_bar[t].float()
    x = noise[0]

    def zig(x):
        noise_pred = predict_noise(bundle, x, t, condition, cameras, 5.0)
        return denoise_step(bundle.schedule, noise_pred, x, t, t_next)

    for fresh in noise[1 : 1 + repeats]:
        x = alpha_bar.sqrt() * zig(x).denoised + (1 - alpha_bar).sqrt() * fresh
    last = zig(x)
    action = last.mean + last.std * noise[1 + repeats]
    torch.testing.assert_close(trajectory.states[:, :, 0], x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trajectory.actions[:, :, 0], action, atol=1e-5, rtol=1e-5)


def test_it_counts_what_it_asks(bundle, condition, cameras):
    settings = SamplingSettings(num_steps=4, zigzag_steps=2, zigzag_repeats=2)
    kinds = []
    noise = SeededNoise([1, 2])
    sample_redraw(bundle, condition, cameras, noise, settings, lambda event: kinds.append(event.kind))
    assert kinds == ["zig"] * 8
    assert count_evaluations("redraw", settings) == 8
