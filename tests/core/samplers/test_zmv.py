from dataclasses import replace

import pytest
import torch

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.policy import denoise_step, invert_step
from t2mv_core.samplers import SamplingSettings, count_evaluations, sample_standard, sample_zmv
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise

SHAPE = torch.Size((2, 3, 4, 8, 8))


def draw_noise(count):
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def test_without_zigzag_steps_it_is_standard_sampling_bit_for_bit(bundle, condition, cameras, settings):
    settings = replace(settings, zigzag_steps=0)
    standard = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    zmv = sample_zmv(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    for name in ("states", "actions", "log_probs", "timesteps", "next_timesteps", "denoised"):
        assert torch.equal(getattr(zmv, name), getattr(standard, name)), name


@pytest.mark.parametrize("repeats", [1, 2])
def test_zigzag_step_by_hand(bundle, condition, cameras, repeats, replay):
    settings = SamplingSettings(
        num_steps=2,
        guidance_scale=5.0,
        view_scale=1.2,
        zigzag_repeats=repeats,
        inverse_guidance_scale=2.0,
        inverse_view_scale=0.5,
    )
    noise = draw_noise(3 + repeats)
    trajectory = sample_zmv(bundle, condition, cameras, replay(noise), settings)
    x, inner = noise[0], iter(noise[1:])
    t, t_next = int(trajectory.timesteps[0]), int(trajectory.next_timesteps[0])

    def zig(x):
        noise_pred = predict_noise(bundle, x, t, condition, cameras, 5.0, 1.2)
        return denoise_step(bundle.schedule, noise_pred, x, t, t_next)

    for _ in range(repeats):
        step = zig(x)
        x_next = step.mean + step.std * next(inner)
        weak = predict_noise(bundle, x_next, t, condition, cameras, 2.0, 0.5)  # asked at (x_{t'}, t)
        x = invert_step(bundle.schedule, weak, x_next, t, t_next)
    last = zig(x)
    action = last.mean + last.std * next(inner)
    # Recorded: the inverted state and the result of the last zig.
    torch.testing.assert_close(trajectory.states[:, :, 0], x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trajectory.actions[:, :, 0], action, atol=1e-5, rtol=1e-5)
    assert torch.equal(trajectory.states[:, :, 1], trajectory.actions[:, :, 0])


def test_a_zag_under_ddim_shows_the_clean_latents_of_ddim(ddim_bundle, rig, prompts, replay):
    condition, cameras = encode_text(ddim_bundle, prompts), encode_cameras(ddim_bundle, rig)
    events, noise, schedule = [], draw_noise(4), ddim_bundle.schedule
    settings = SamplingSettings(num_steps=2, guidance_scale=1.0, inverse_guidance_scale=1.0)
    trajectory = sample_zmv(ddim_bundle, condition, cameras, replay(noise), settings, events.append)
    t, t_next = int(trajectory.timesteps[0]), int(trajectory.next_timesteps[0])
    step = denoise_step(
        schedule, predict_noise(ddim_bundle, noise[0], t, condition, cameras, 1.0), noise[0], t, t_next
    )
    x_next = step.mean + step.std * noise[1]
    weak = predict_noise(ddim_bundle, x_next, t, condition, cameras, 1.0)
    alpha_bar = schedule.alpha_bar_at(t_next)
    clean = (x_next - (1 - alpha_bar).sqrt() * weak) / alpha_bar.sqrt()
    clean = clean.clamp(-schedule.clip_range, schedule.clip_range)
    shown = next(event.denoised for event in events if event.kind == "zag")
    torch.testing.assert_close(shown, clean, atol=1e-4, rtol=1e-4)


def test_steps_after_the_zigzag_are_ordinary(bundle, condition, cameras, replay):
    settings = SamplingSettings(num_steps=3, guidance_scale=4.0, zigzag_steps=1)
    noise = draw_noise(5)
    zmv = sample_zmv(bundle, condition, cameras, replay(noise), settings)
    x = zmv.actions[:, :, 0]
    for step in (1, 2):
        t, t_next = int(zmv.timesteps[step]), int(zmv.next_timesteps[step])
        noise_pred = predict_noise(bundle, x, t, condition, cameras, 4.0)
        distribution = denoise_step(bundle.schedule, noise_pred, x, t, t_next)
        x = distribution.mean + distribution.std * noise[step + 2]
        assert torch.equal(zmv.actions[:, :, step], x)


@pytest.mark.parametrize(
    ("num_steps", "zigzag_steps", "repeats", "kinds"),
    [
        (2, 0, 1, ["zig", "zig"]),
        (2, 1, 1, ["zig", "zag", "zig", "zig"]),
        (2, 2, 1, ["zig", "zag", "zig"] * 2),
        (2, 1, 2, ["zig", "zag", "zig", "zag", "zig", "zig"]),
    ],
)
def test_two_more_evaluations_per_zigzag_step_and_repeat(
    lcm_bundle, rig, prompts, num_steps, zigzag_steps, repeats, kinds
):
    settings = SamplingSettings(num_steps=num_steps, zigzag_steps=zigzag_steps, zigzag_repeats=repeats)
    events = []
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    sample_zmv(lcm_bundle, condition, cameras, SeededNoise([1, 2]), settings, events.append)
    assert [event.kind for event in events] == kinds
    assert count_evaluations("zmv", settings) == len(kinds)
    if "zag" in kinds:
        assert events[0].timestep == events[1].timestep == events[2].timestep == 999


def without_cameras(bundle, x, timestep, condition):
    """Predict the noise at guidance 1 by a UNet that gets no camera features at all; V = 3."""
    width = bundle.unet.config["time_cond_proj_dim"]
    embedding = None if width is None else torch.cat([torch.zeros(width // 2), torch.ones(width // 2)])
    noise = bundle.unet(
        x.flatten(0, 1),
        torch.full((6,), timestep),
        encoder_hidden_states=condition.prompt_embeds,
        timestep_cond=None if embedding is None else embedding.expand(6, -1),  # sin 0 and cos 0: w = 1
        added_cond_kwargs={
            "text_embeds": condition.pooled_embeds.repeat_interleave(3, dim=0),
            "time_ids": condition.time_ids.repeat_interleave(3, dim=0),
        },
        cross_attention_kwargs={"num_views": 3, "latent_size": (8, 8)},
    ).sample
    return noise.unflatten(0, (2, 3))


@torch.no_grad()
def test_a_zag_at_view_scale_0_is_that_of_a_unet_without_cameras(bundle, condition, cameras, replay):
    settings = SamplingSettings(num_steps=2, guidance_scale=5.0, inverse_view_scale=0.0)
    noise = draw_noise(4)
    state = sample_zmv(bundle, condition, cameras, replay(noise), settings).states[:, :, 0]
    t, t_next = (int(steps[0]) for steps in (bundle.schedule.timesteps(2), bundle.schedule.next_timesteps(2)))
    zig = denoise_step(
        bundle.schedule, predict_noise(bundle, noise[0], t, condition, cameras, 5.0), noise[0], t, t_next
    )
    x_next = zig.mean + zig.std * noise[1]
    expected = invert_step(bundle.schedule, without_cameras(bundle, x_next, t, condition), x_next, t, t_next)
    torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)
    with_cameras = sample_zmv(
        bundle, condition, cameras, replay(noise), replace(settings, inverse_view_scale=1.0)
    )
    assert float((with_cameras.states[:, :, 0] - expected).abs().max()) > 1e-3


@pytest.mark.parametrize(("inverse_guidance", "zag_size"), [(1.0, 6), (2.0, 12)])
def test_zag_at_guidance_one_needs_no_second_pass(ddim_bundle, rig, prompts, inverse_guidance, zag_size):
    condition, cameras = encode_text(ddim_bundle, prompts), encode_cameras(ddim_bundle, rig)
    settings = SamplingSettings(num_steps=2, guidance_scale=4.0, inverse_guidance_scale=inverse_guidance)
    sizes = []
    hook = ddim_bundle.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    sample_zmv(ddim_bundle, condition, cameras, SeededNoise([1, 2]), settings)
    hook.remove()
    assert sizes == [12, zag_size, 12, 12]  # 2 prompts x 3 views, twice with classifier-free guidance
