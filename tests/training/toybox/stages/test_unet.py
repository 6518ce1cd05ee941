"""The teacher's loss and text conditions."""

import numpy as np
import pytest
import torch

from t2mv_core.scheduler_config import schedule_from_config
from training.toybox.stages import unet as unet_stage
from training.toybox.stages.unet import TEACHER_SCHEDULER, Networks, denoising_loss


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks().eval()


def test_an_empty_caption_is_the_zero_condition(networks: Networks) -> None:
    condition = networks.encode(["a red mug", ""])
    assert condition.prompt_embeds[0].abs().sum() > 0
    assert condition.prompt_embeds[1].abs().sum() == 0
    assert condition.pooled_embeds[1].abs().sum() == 0


def test_loss_of_a_perfect_and_of_a_silent_network(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicting the true noise costs nothing; predicting 0 costs E[ε²/ᾱ] = mean 1/ᾱ, as ε has variance 1."""
    schedule = schedule_from_config(TEACHER_SCHEDULER)
    clean = torch.zeros(64, 6, 4, 16, 16)
    alpha_bar = schedule.alpha_bar.float()
    condition, cameras = networks.encode(["a"] * 64), networks.cameras()

    def perfect(unet, noisy, timestep, condition, cameras):  # noqa: ANN001, ANN202
        return noisy / (1 - alpha_bar[timestep]).sqrt()[:, None, None, None, None]

    monkeypatch.setattr(unet_stage, "call_unet", perfect)
    loss = denoising_loss(networks, schedule, clean, condition, cameras, np.random.default_rng(0))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)

    monkeypatch.setattr(unet_stage, "call_unet", lambda unet, noisy, *rest: torch.zeros_like(noisy))
    loss = denoising_loss(networks, schedule, clean, condition, cameras, np.random.default_rng(0))
    timesteps = np.random.default_rng(0).integers(1000, size=64)
    # A few noisy timesteps dominate, and the mean of 6,144 squared normals varies by 1.8 %: 5 % is wide.
    assert loss.item() == pytest.approx((1 / schedule.alpha_bar)[timesteps].mean().item(), rel=0.05)


def test_updates_see_two_three_or_all_views_and_the_last_ones_all() -> None:
    drawn = [unet_stage.draw_views(update, 100, 6, np.random.default_rng(update)) for update in range(100)]
    assert {len(views) for views in drawn[:85]} == {2, 3, 6}
    assert all(views == list(range(6)) for views in drawn[85:])
    assert all(len(set(views)) == len(views) and set(views) <= set(range(6)) for views in drawn)
