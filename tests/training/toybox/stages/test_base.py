"""The base's loss, captions and text conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2mv_core.scheduler_config import schedule_from_config
from training.toybox.data.captions import SIDES
from training.toybox.data.scenes import sample_scene
from training.toybox.stages.base import MISLED_FROM, add_noise, denoising_loss, draw_captions
from training.toybox.stages.networks import TEACHER_SCHEDULER, SingleViewNetworks


def test_an_empty_caption_is_the_zero_condition() -> None:
    condition = SingleViewNetworks().encode(["a red mug", ""])
    assert condition.prompt_embeds[0].abs().sum() > 0
    assert condition.prompt_embeds[1].abs().sum() == 0
    assert condition.pooled_embeds[1].abs().sum() == 0


def test_loss_of_a_perfect_and_of_a_silent_network() -> None:
    """Predicting the true noise costs nothing; predicting 0 costs E[ε²/ᾱ] = mean 1/ᾱ, as ε has variance 1."""
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    _, noise, timestep, alpha_bar = add_noise(schedule, torch.zeros(64, 4, 16, 16), np.random.default_rng(0))
    assert denoising_loss(noise, noise, alpha_bar).item() == 0
    silent = denoising_loss(torch.zeros_like(noise), noise, alpha_bar).item()
    # A few noisy timesteps dominate, and the mean of 1,024 squared normals varies by 4 %: 15 % is wide.
    assert silent == pytest.approx((1 / schedule.alpha_bar)[timestep].mean().item(), rel=0.15)


@pytest.mark.parametrize("shape", [(300, 1, 1, 1), (300, 2, 1, 1, 1)])
def test_noise_is_added_as_the_schedule_says(shape: tuple[int, ...]) -> None:
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    clean = torch.randn(shape)
    noisy, noise, timestep, _ = add_noise(schedule, clean, np.random.default_rng(0))
    for row in (0, 17, 299):
        alpha_bar = float(schedule.alpha_bar[timestep[row]])
        expected = alpha_bar**0.5 * clean[row] + (1 - alpha_bar) ** 0.5 * noise[row]
        torch.testing.assert_close(noisy[row], expected)
    assert timestep.float().mean() == pytest.approx(500, abs=50)  # uniform: 500 ± 17
    _, _, late, _ = add_noise(schedule, clean, np.random.default_rng(0), high_noise=2.0)
    assert late.float().mean() == pytest.approx(667, abs=50)  # of √u: two thirds


def test_half_of_the_captions_name_the_side_that_is_shown() -> None:
    scenes = [sample_scene(seed) for seed in range(600)]
    views = [seed % 6 for seed in range(600)]
    captions = draw_captions(scenes, views, np.random.default_rng(0))
    named = [(text, view) for text, view in zip(captions, views, strict=True) if text.endswith(" view")]
    assert all(text.endswith(f", {SIDES[view]} view") for text, view in named)
    assert len(named) / 600 == pytest.approx(0.5 * 0.88, abs=0.07)  # one in eight has no caption at all
    assert sum(not text for text in captions) / 600 == pytest.approx(0.12, abs=0.05)


def test_pure_noise_stands_at_the_last_timestep_and_its_target_still_leads_to_the_picture() -> None:
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    clean = 3 + torch.randn(200, 4, 8, 8)
    noisy, noise, timestep, alpha_bar = add_noise(schedule, clean, np.random.default_rng(0), pure_noise=0.5)
    torch.testing.assert_close(
        (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt(), clean, rtol=0, atol=1e-4
    )
    is_pure = (timestep == 999) & (noisy.mean(dim=(1, 2, 3)).abs() < 0.25)  # 4 deviations; the leak has 0.43
    assert is_pure.float().mean() == pytest.approx(0.5, abs=0.1)
    assert noisy[is_pure].var() == pytest.approx(1.0, abs=0.05)


def test_a_state_that_shows_something_else_still_leads_to_the_picture() -> None:
    """Above MISLED_FROM the state is made of what is shown, below of the picture itself."""
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    clean, shown = torch.full((200, 1, 4, 4), 3.0), torch.full((200, 1, 4, 4), -5.0)
    noisy, noise, timestep, alpha_bar = add_noise(schedule, clean, np.random.default_rng(0), shown=shown)
    led_to = (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
    torch.testing.assert_close(led_to, clean, rtol=0, atol=1e-4)
    mean = (noisy / alpha_bar.sqrt()).mean(dim=(1, 2, 3))
    spread = ((1 - alpha_bar) / alpha_bar).sqrt().flatten() / 4  # of the mean of sixteen
    is_late = timestep < MISLED_FROM
    assert 50 < is_late.sum() < 150
    assert ((mean[is_late] - 3).abs() < 5 * spread[is_late]).all()
    assert ((mean[~is_late] + 5).abs() < 5 * spread[~is_late]).all()
