from dataclasses import replace

import pytest
import torch

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.policy import denoise_step, log_prob
from t2mv_core.samplers import SAMPLERS, SamplingSettings, count_evaluations, sample_standard
from t2mv_core.trajectory import SeededNoise

SHAPE = torch.Size((2, 3, 4, 8, 8))


def score(bundle, trajectory, condition, cameras, settings, step, rows=slice(None)):
    """Log-probability of a recorded step, from its state, action and the weights alone."""
    timestep, next_timestep = int(trajectory.timesteps[step]), int(trajectory.next_timesteps[step])
    x = trajectory.states[rows, :, step]
    noise_pred = predict_noise(
        bundle, x, timestep, condition, cameras, settings.guidance_scale, settings.view_scale
    )
    distribution = denoise_step(bundle.schedule, noise_pred, x, timestep, next_timestep)
    return log_prob(distribution, trajectory.actions[rows, :, step])


def test_trajectory_is_the_process(bundle, condition, cameras, settings, replay):
    recorded = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    trajectory = sample_standard(bundle, condition, cameras, replay(recorded), settings)
    assert trajectory.states.shape == (2, 3, 3, 4, 8, 8)  # B, V, T, C, H, W
    assert torch.equal(trajectory.timesteps, bundle.schedule.timesteps(3))
    assert torch.equal(trajectory.next_timesteps, bundle.schedule.next_timesteps(3))
    assert torch.equal(trajectory.states[:, :, 0], recorded[0])
    x = recorded[0]
    for step in range(3):
        assert torch.equal(trajectory.states[:, :, step], x)
        t, t_next = int(trajectory.timesteps[step]), int(trajectory.next_timesteps[step])
        noise_pred = predict_noise(bundle, x, t, condition, cameras, settings.guidance_scale)
        distribution = denoise_step(bundle.schedule, noise_pred, x, t, t_next)
        x = distribution.mean + distribution.std * recorded[step + 1]
        assert torch.equal(trajectory.actions[:, :, step], x)
    assert torch.equal(trajectory.denoised, distribution.denoised)  # what is decoded: f, not the last action


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_replaying_states_and_actions_gives_the_recorded_log_probs(
    bundle, condition, cameras, settings, sampler
):
    trajectory = SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings)
    for step in (2, 0, 1):  # in any order
        replayed = score(bundle, trajectory, condition, cameras, settings, step)
        torch.testing.assert_close(replayed, trajectory.log_probs[:, :, step], atol=1e-5, rtol=0)
        alone = score(bundle, trajectory, condition.select([1]), cameras, settings, step, slice(1, None))
        torch.testing.assert_close(alone, trajectory.log_probs[1:, :, step], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_states_kept_in_half_the_memory_replay_to_the_same_log_probs(
    bundle, condition, cameras, settings, sampler
):
    half = replace(settings, state_dtype=torch.bfloat16)
    trajectory = SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), half)
    assert trajectory.states.dtype == trajectory.actions.dtype == torch.bfloat16
    assert trajectory.log_probs.dtype == trajectory.denoised.dtype == torch.float32
    for step in range(3):
        replayed = score(bundle, trajectory, condition, cameras, half, step)
        torch.testing.assert_close(replayed, trajectory.log_probs[:, :, step], atol=1e-5, rtol=0)
    # what acted is what is recorded, the first state included
    recorded = torch.stack([SeededNoise([seed])(torch.Size((1, *SHAPE[1:])))[0] for seed in (1, 2)])
    if sampler == "standard":
        assert torch.equal(trajectory.states[:, :, 0], recorded.bfloat16())
        assert torch.equal(trajectory.states[:, :, 1:], trajectory.actions[:, :, :-1])
    # close to what the whole precision gives
    whole = SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings)
    assert whole.states.dtype == torch.float32
    assert (trajectory.denoised - whole.denoised).square().mean() < 1e-2 * whole.denoised.square().mean()


def test_states_have_one_of_two_dtypes():
    assert SamplingSettings().state_dtype == torch.float32
    with pytest.raises(
        ValueError, match=r"state_dtype=torch.float16 must be torch.float32 or torch.bfloat16"
    ):
        SamplingSettings(state_dtype=torch.float16)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_batch_of_prompts_is_the_prompts_one_by_one(bundle, condition, cameras, settings, sampler):
    batch = SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([5, 6]), settings)
    for i, seed in enumerate((5, 6)):
        alone = SAMPLERS[sampler](bundle, condition.select([i]), cameras, SeededNoise([seed]), settings)
        for name in ("states", "actions", "denoised"):
            whole, part = getattr(batch, name)[i], getattr(alone, name)[0]
            torch.testing.assert_close(part, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_same_noise_gives_the_same_trajectory_bit_for_bit(bundle, condition, cameras, settings, sampler):
    first, second = (
        SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings) for _ in range(2)
    )
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.log_probs, second.log_probs)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_permuting_views_with_their_cameras_and_noise_permutes_the_trajectory(
    lcm_bundle, rig, prompts, sampler, replay
):
    from t2mv_core.text import encode_text

    condition, order = encode_text(lcm_bundle, prompts), [1, 2, 0]
    settings = SamplingSettings(num_steps=2, guidance_scale=4.0)
    count = 4  # x_T, the two actions, the zigzag's inner one
    noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    sample = SAMPLERS[sampler]
    straight = sample(lcm_bundle, condition, encode_cameras(lcm_bundle, rig), replay(noise), settings)
    cameras = encode_cameras(lcm_bundle, rig.subset(order))
    permuted_noise = replay([tensor[:, order] for tensor in noise])
    permuted = sample(lcm_bundle, condition, cameras, permuted_noise, settings)
    torch.testing.assert_close(permuted.actions, straight.actions[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(permuted.log_probs, straight.log_probs[:, order], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_evaluation_is_told(bundle, condition, cameras, settings, sampler):
    events = []
    SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings, events.append)
    total = count_evaluations(sampler, settings)
    assert [event.index for event in events] == list(range(1, total + 1))
    assert {event.total for event in events} == {total}
    assert all(event.denoised.shape == SHAPE for event in events)
    assert events[-1].timestep == int(bundle.schedule.timesteps(3)[-1])


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_raising_from_the_callback_cancels_at_once(bundle, condition, cameras, settings, sampler):
    class CancelledError(Exception):
        pass

    told = []

    def cancel(event):
        told.append(event.index)
        if event.index == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings, cancel)
    assert told == [1, 2]
    SAMPLERS[sampler](bundle, condition, cameras, SeededNoise([1, 2]), settings)  # the next run works


def test_zigzag_settings_are_ignored(bundle, condition, cameras):
    settings = [
        SamplingSettings(num_steps=2, zigzag_steps=k, inverse_guidance_scale=w) for k, w in ((0, 1), (2, 3))
    ]
    first, second = (sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), s) for s in settings)
    assert torch.equal(first.actions, second.actions)
    assert [count_evaluations("standard", s) for s in settings] == [2, 2]


def test_broken_weights_are_an_error_in_words_not_a_black_picture(make_lcm_bundle, rig, prompts):
    from t2mv_core.text import encode_text

    bundle = make_lcm_bundle()
    bundle.unet.conv_out.bias[0] = float("nan")
    condition, cameras = encode_text(bundle, prompts), encode_cameras(bundle, rig)
    with pytest.raises(ValueError, match="prediction at timestep 999 holds NaN or infinity"):
        sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), SamplingSettings(num_steps=1))


def test_wrong_numbers_of_seeds_and_steps_are_refused_in_words(lcm_bundle, rig, prompts):
    from t2mv_core.text import encode_text

    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    with pytest.raises(ValueError, match="Noise for 2 prompts was asked of 1 seeds"):
        sample_standard(lcm_bundle, condition, cameras, SeededNoise([1]), SamplingSettings())
    with pytest.raises(ValueError, match="num_steps=51 must lie between 1 and 50 for the lcm solver"):
        sample_standard(lcm_bundle, condition, cameras, SeededNoise([1, 2]), SamplingSettings(num_steps=51))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_steps": 0, "zigzag_steps": 0}, "num_steps=0 must be at least 1"),
        ({"num_steps": -1, "zigzag_steps": 0}, "num_steps=-1 must be at least 1"),
        ({"num_steps": 2, "zigzag_steps": 3}, "zigzag_steps=3 must lie between 0 and num_steps=2"),
        ({"zigzag_steps": -1}, "zigzag_steps=-1 must lie between"),
        ({"zigzag_repeats": 0}, "zigzag_repeats=0 must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan must be a finite number"),
        ({"view_scale": float("inf")}, "view_scale=inf must be a finite number"),
        ({"inverse_guidance_scale": -0.5}, "inverse_guidance_scale=-0.5 must be"),
        ({"inverse_view_scale": -1.0}, "inverse_view_scale=-1.0 must be"),
        ({"ref_scale": -0.1}, "ref_scale=-0.1 must be a finite number of at least 0"),
        ({"inverse_ref_scale": float("inf")}, "inverse_ref_scale=inf must be"),
    ],
)
def test_impossible_settings_are_refused_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        SamplingSettings(**arguments)
