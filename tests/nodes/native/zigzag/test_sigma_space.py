"""The zag in sigma space against the method's own, and against what must hold for every kind of model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from t2mv_pack.nodes.native.zigzag import sigma_space as zigzag
from torch import Tensor

from t2mv_core.policy import invert_step
from t2mv_core.schedule import NoiseSchedule, scaled_linear_alpha_bar, shift_snr

STEPS = [(999, 749), (879, 759), (259, 139), (139, 19), (499, 499)]  # t, t'
FAMILIES = ["noise", "velocity", "flow"]


@pytest.fixture(scope="module")
def level() -> Callable[..., Any]:
    """A noise level of a kind of model, by that kind's definition of its clean latents."""

    def make(family: str, sigma: float, boundaries: tuple[float, float] = (0.0, 1.0)) -> Any:
        scale = 1.0 / math.sqrt(sigma**2 + 1.0)
        if family == "flow":
            return zigzag.NoiseLevel(sigma, 1.0, 1.0, -sigma)
        if family == "velocity":
            return zigzag.NoiseLevel(sigma, scale, scale**2, -sigma * scale)
        c_skip, c_out = boundaries
        return zigzag.NoiseLevel(sigma, scale, c_skip + c_out, -c_out * sigma)

    return make


def draw(seed: int) -> Tensor:
    return torch.randn((1, 2, 4, 5, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(x_vp: Tensor, timestep: int) -> Tensor:
    """Any function will do as a network, as long as it sees latents and time."""
    return torch.sin(1.3 * x_vp + timestep / 300) + 0.2 * x_vp


@pytest.mark.parametrize("solver", ["lcm", "ddim"])
@pytest.mark.parametrize(("timestep", "next_timestep"), STEPS)
def test_the_zag_is_the_methods(
    level: Callable[..., Any], solver: str, timestep: int, next_timestep: int
) -> None:
    alpha_bar = shift_snr(scaled_linear_alpha_bar(0.00085, 0.012, 1000))
    schedule = NoiseSchedule(alpha_bar, solver, 1.0)
    x_vp = draw(0)
    expected = invert_step(schedule, predict(x_vp, timestep), x_vp, timestep, next_timestep)

    def level_at(t: int) -> Any:
        scalings = tuple(float(c) for c in schedule.boundary_scalings(t)) if solver == "lcm" else (0.0, 1.0)
        return level("noise", float(((1 - alpha_bar[t]) / alpha_bar[t]).sqrt()), scalings)

    own, back_to = level_at(next_timestep), level_at(timestep)
    x_ve = x_vp / float(alpha_bar[next_timestep].sqrt())
    shown = zigzag.shown_latents(x_ve, own, back_to)
    output = predict(back_to.input_scale * shown, timestep)  # as ComfyUI asks the network
    denoised = back_to.keep * shown + back_to.take * output
    output = zigzag.network_output(denoised, shown, back_to)
    x, _ = zigzag.invert("noise", output, x_ve, own, back_to)
    # 7e-6 is c_skip at t' = 19, the one number that ComfyUI's LCM weighs otherwise; the core is in float32.
    found = x * float(alpha_bar[timestep].sqrt())
    torch.testing.assert_close(found.float(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_true_output_leads_to_the_same_clean_latents_and_noise_at_the_other_level(
    level: Callable[..., Any], family: str
) -> None:
    x_0, noise = draw(1), draw(2)
    own, back_to = (level(family, sigma) for sigma in (0.3, 0.9))

    def latents(at: Any) -> Tensor:
        return (1 - at.sigma) * x_0 + at.sigma * noise if family == "flow" else x_0 + at.sigma * noise

    # v = √ᾱ·ε - √(1-ᾱ)·x_0 with √ᾱ = c_in and √(1-ᾱ) = σ·c_in; a flow points from x_0 to ε.
    outputs = {
        "noise": noise,
        "velocity": own.input_scale * (noise - own.sigma * x_0),
        "flow": noise - x_0,
    }
    x, clean = zigzag.invert(family, outputs[family], latents(own), own, back_to)
    torch.testing.assert_close(clean, x_0, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(x, latents(back_to), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_is_found_again_in_the_clean_latents(level: Callable[..., Any], family: str) -> None:
    asked, shown, output = level(family, 0.7, (0.1, 0.8)), draw(3), draw(4)
    denoised = asked.keep * shown + asked.take * output
    torch.testing.assert_close(zigzag.network_output(denoised, shown, asked), output)


def test_with_flows_the_zag_is_eulers_step_backwards(level: Callable[..., Any]) -> None:
    own, back_to, x_next, velocity = level("flow", 0.6), level("flow", 1.0), draw(5), draw(6)
    x, _ = zigzag.invert("flow", velocity, x_next, own, back_to)
    torch.testing.assert_close(x, x_next + (1.0 - 0.6) * velocity)


def test_the_network_is_shown_the_later_latents_unchanged(level: Callable[..., Any]) -> None:
    own, back_to, x_next = level("noise", 2.0), level("noise", 14.6), draw(7)
    shown = zigzag.shown_latents(x_next, own, back_to)
    torch.testing.assert_close(back_to.input_scale * shown, own.input_scale * x_next)


def test_without_any_signal_left_a_v_prediction_still_matters(level: Callable[..., Any]) -> None:
    own, back_to, x_next = level("velocity", 2.0), level("velocity", 4518.0), draw(8)
    one, other = (zigzag.invert("velocity", draw(seed), x_next, own, back_to)[0] for seed in (9, 10))
    assert (back_to.input_scale * (one - other)).std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_going_back_from_clean_latents_gives_numbers(level: Callable[..., Any], family: str) -> None:
    x, clean = zigzag.invert(family, draw(11), draw(12), level(family, 0.0), level(family, 0.5))
    assert bool(x.isfinite().all())
    torch.testing.assert_close(clean, draw(12))
