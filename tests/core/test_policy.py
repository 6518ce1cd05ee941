import pytest
import torch

from t2mv_core.policy import (
    StepDistribution,
    consistency_output,
    denoise_step,
    gaussian_kl,
    invert_step,
    log_prob,
    predict_clean,
    sample,
)
from t2mv_core.schedule import NoiseSchedule, scaled_linear_alpha_bar, shift_snr
from t2mv_core.trajectory import SeededNoise

SHAPE = (2, 3, 4, 5, 6)  # B, V, C, H, W
CLIP_RANGES = [None, 3.0, 1.0]


def make_schedule(solver, clip_range=None, final_alpha_bar=None, spacing="leading"):
    alpha_bar = shift_snr(scaled_linear_alpha_bar(0.00085, 0.012, 1000))
    final = float(alpha_bar[0]) if final_alpha_bar is None else final_alpha_bar
    return NoiseSchedule(alpha_bar, solver, final, timestep_spacing=spacing, clip_range=clip_range)


def draw(seed, scale=1.0):
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def make_distribution(seed=0):
    std = torch.tensor([0.3, 1e-4]).reshape(2, 1, 1, 1, 1)
    return StepDistribution(draw(seed), std, draw(seed + 1))


def test_log_prob_is_the_mean_of_torchs_normal():
    distribution = make_distribution()
    action = distribution.mean + distribution.std * draw(2)
    normal = torch.distributions.Normal(distribution.mean.double(), distribution.std.double())
    expected = normal.log_prob(action.double()).mean(dim=(2, 3, 4))
    torch.testing.assert_close(log_prob(distribution, action).double(), expected, atol=1e-4, rtol=1e-5)


def test_log_prob_gradient_is_the_gaussian_score():
    # d/dmu of mean[-(x - mu)²/(2 sigma²)] = (x - mu)/sigma² / (C·H·W).
    mean = draw(0).requires_grad_()
    std = torch.full((2, 1, 1, 1, 1), 0.5)
    action = draw(1)
    log_prob(StepDistribution(mean, std, mean), action).sum().backward()
    expected = (action - mean.detach()) / 0.25 / (4 * 5 * 6)
    torch.testing.assert_close(mean.grad, expected, atol=1e-6, rtol=1e-5)


def test_gaussian_kl_is_the_mean_of_torchs():
    ours = make_distribution()
    theirs = StepDistribution(ours.mean + 0.1 * ours.std * draw(3), ours.std, draw(4))
    normals = [torch.distributions.Normal(d.mean.double(), d.std.double()) for d in (ours, theirs)]
    expected = torch.distributions.kl_divergence(*normals).mean(dim=(2, 3, 4))
    found = gaussian_kl(ours, theirs)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=1e-5)
    assert not gaussian_kl(ours, ours).any()


def test_gaussian_kl_by_hand():
    # 0.3 apart at sigma = 0.3 is half a nat in every element; 2e-4 apart at 1e-4 is 2 nats; either way round
    std = make_distribution().std
    means = torch.zeros(SHAPE), torch.tensor([0.3, 2e-4]).reshape(2, 1, 1, 1, 1).expand(SHAPE)
    ours, theirs = (StepDistribution(mean, std, mean) for mean in means)
    expected = torch.tensor([[0.5] * 3, [2.0] * 3])
    torch.testing.assert_close(gaussian_kl(ours, theirs), expected)
    torch.testing.assert_close(gaussian_kl(theirs, ours), expected)


def test_an_action_is_mean_plus_std_times_noise(replay):
    distribution, noise = make_distribution(), draw(7)
    action = sample(distribution, replay([noise]))
    assert torch.equal(action, distribution.mean + distribution.std * noise)


def test_an_action_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="score actions with the states"):
        log_prob(make_distribution(), torch.zeros(1))


def lcm_scheduler(schedule, num_steps):
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(
        clip_sample=schedule.clip_range is not None, clip_sample_range=schedule.clip_range or 1.0
    )
    scheduler.alphas_cumprod = schedule.alpha_bar.float()
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.fixture
def constant_noise(monkeypatch):
    """Makes diffusers' LCM scheduler draw a constant instead of random numbers."""
    from diffusers.schedulers import scheduling_lcm

    def replace(value):
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda shape, **_: torch.full(shape, value))

    return replace


@pytest.mark.parametrize("clip_range", CLIP_RANGES)
@pytest.mark.parametrize("num_steps", [1, 4, 8])
def test_lcm_step_is_diffusers(clip_range, num_steps, constant_noise):
    schedule = make_schedule("lcm", clip_range)
    steps, following = schedule.timesteps(num_steps), schedule.next_timesteps(num_steps)
    for index in range(num_steps):
        noise_pred, x = draw(index), draw(100 + index)
        step = denoise_step(schedule, noise_pred, x, int(steps[index]), int(following[index]))
        means = {}
        for value in (0.0, 1.0):  # their sample is mean + std·noise
            constant_noise(value)
            theirs = lcm_scheduler(schedule, num_steps)
            theirs._step_index = index
            means[value], denoised = theirs.step(noise_pred, int(steps[index]), x, return_dict=False)
        torch.testing.assert_close(step.denoised, denoised, atol=1e-4, rtol=1e-5)
        if index < num_steps - 1:
            torch.testing.assert_close(step.mean, means[0.0], atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(step.std.expand(SHAPE), means[1.0] - means[0.0], atol=1e-5, rtol=1e-4)
        else:
            # diffusers ends with f itself. Here the last action stays random, around sqrt(alpha_bar_t)·f
            # (t' = t, docs/method.md, section 3); the picture is decoded from f.
            alpha_bar = schedule.alpha_bar[steps[index]].float()
            torch.testing.assert_close(means[0.0], denoised)
            torch.testing.assert_close(step.mean, alpha_bar.sqrt() * denoised, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(
                step.std.flatten(), (1 - alpha_bar).sqrt().expand(1), atol=1e-6, rtol=1e-5
            )


@pytest.mark.parametrize("clip_range", CLIP_RANGES)
@pytest.mark.parametrize("final_alpha_bar", [None, 1.0], ids=["final is alpha_bar[0]", "final is one"])
@pytest.mark.parametrize(("spacing", "num_steps"), [("leading", 5), ("leading", 16), ("trailing", 7)])
def test_ddim_step_is_diffusers(clip_range, final_alpha_bar, spacing, num_steps):
    from diffusers import DDIMScheduler

    schedule = make_schedule("ddim", clip_range, final_alpha_bar, spacing)
    theirs = DDIMScheduler(
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=final_alpha_bar is not None,
        clip_sample=clip_range is not None,
        clip_sample_range=clip_range or 1.0,
    )
    theirs.alphas_cumprod = schedule.alpha_bar.float()
    theirs.final_alpha_cumprod = torch.tensor(schedule.final_alpha_bar)
    theirs.set_timesteps(num_steps)
    for index, (t, t_next) in enumerate(
        zip(schedule.timesteps(num_steps).tolist(), schedule.next_timesteps(num_steps).tolist(), strict=True)
    ):
        noise_pred, x = draw(index), draw(100 + index)
        step = denoise_step(schedule, noise_pred, x, t, t_next)
        options = {"eta": 1.0, "use_clipped_model_output": clip_range is not None, "return_dict": False}
        mean, denoised = theirs.step(noise_pred, t, x, variance_noise=torch.zeros(SHAPE), **options)
        raised, _ = theirs.step(noise_pred, t, x, variance_noise=torch.ones(SHAPE), **options)
        torch.testing.assert_close(step.denoised, denoised, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(step.mean, mean, atol=1e-4, rtol=1e-5)
        if final_alpha_bar == 1.0 and t_next < 0:
            assert step.std.flatten().tolist() == pytest.approx([1e-4])  # their 0, floored: sqrt(1e-8)
        else:
            torch.testing.assert_close(step.std.expand(SHAPE), raised - mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("solver", "t", "t_next"), [("lcm", 999, 499), ("lcm", 259, 259), ("ddim", 751, 501)]
)
def test_inversion_undoes_a_step_when_the_true_noise_is_given(solver, t, t_next):
    schedule = make_schedule(solver)
    clean, noise = draw(0), draw(1)
    alpha_bar, next_alpha_bar = schedule.alpha_bar[t].float(), schedule.alpha_bar[t_next].float()
    x_next = next_alpha_bar.sqrt() * clean + (1 - next_alpha_bar).sqrt() * noise
    # LCM: with the true noise x̂_0 is clean; c_skip(259) = 4e-8 and c_out = 1 - 2e-8 leave it so.
    expected = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(
        invert_step(schedule, noise, x_next, t, t_next), expected, atol=1e-5, rtol=1e-5
    )


def test_inversion_of_an_lcm_step_keeps_the_clean_latents_and_takes_the_injected_noise(replay):
    schedule = make_schedule("lcm")
    x, noise_pred, injected = draw(0), draw(1), draw(2)
    step = denoise_step(schedule, noise_pred, x, 759, 499)
    x_next = sample(step, replay([injected]))
    # The step made x' = sqrt(a')·f + sqrt(1 - a')·z; told the true z, the zag puts f and z together at t.
    alpha_bar = schedule.alpha_bar[759].float()
    expected = alpha_bar.sqrt() * step.denoised + (1 - alpha_bar).sqrt() * injected
    torch.testing.assert_close(
        invert_step(schedule, injected, x_next, 759, 499), expected, atol=1e-4, rtol=1e-5
    )


def test_inversion_from_the_last_ddim_step_uses_the_final_alpha_bar():
    schedule = make_schedule("ddim", final_alpha_bar=1.0)
    clean, noise = draw(0), draw(1)  # at alpha_bar = 1 the latents are the clean ones
    alpha_bar = schedule.alpha_bar[1].float()
    expected = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(invert_step(schedule, noise, clean, 1, -1), expected, atol=1e-5, rtol=1e-5)


def test_lcm_inversion_follows_the_equation_of_method_section_4():
    schedule = make_schedule("lcm", clip_range=1.0)
    x_next, noise = draw(0), draw(1)
    a, b = float(schedule.alpha_bar[139]), float(schedule.alpha_bar[19])
    clean = ((x_next.double() - (1 - b) ** 0.5 * noise.double()) / b**0.5).clamp(-1, 1)
    c_skip, c_out = 0.25 / (190**2 + 0.25), 190 / (190**2 + 0.25) ** 0.5
    expected = a**0.5 * (c_skip * x_next.double() + c_out * clean) + (1 - a) ** 0.5 * noise.double()
    inverted = invert_step(schedule, noise, x_next, 139, 19)
    torch.testing.assert_close(inverted.double(), expected, atol=1e-5, rtol=1e-5)


def test_true_noise_gives_the_true_clean_latents():
    schedule = make_schedule("lcm")
    clean, noise = draw(0), draw(1)
    for t in (999, 500, 19):
        alpha_bar = schedule.alpha_bar[t].float()
        x = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
        # At t = 999 the division by sqrt(alpha_bar) = 0.02 blows float32 rounding of x up to 1e-5.
        torch.testing.assert_close(predict_clean(schedule, noise, x, t), clean, atol=1e-4, rtol=0)


def test_consistency_output_at_time_zero_is_the_input():
    # The boundary condition of consistency models: f(x, 0) = x whatever is predicted.
    x = draw(0)
    torch.testing.assert_close(consistency_output(make_schedule("lcm"), draw(1), x, 0), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", ["lcm", "ddim"])
def test_timesteps_may_differ_between_prompts(solver):
    schedule = make_schedule(solver, clip_range=3.0)
    noise_pred, x = draw(0), draw(1)
    t, t_next = torch.tensor([999, 259]), torch.tensor([499, 259 if solver == "lcm" else -1])
    both = denoise_step(schedule, noise_pred, x, t, t_next)
    inverted = invert_step(schedule, noise_pred, x, t, t_next.clamp(min=0))
    for i in range(2):
        rows = slice(i, i + 1)
        alone = denoise_step(schedule, noise_pred[rows], x[rows], int(t[i]), int(t_next[i]))
        assert torch.equal(both.mean[rows], alone.mean)
        assert torch.equal(both.std[rows], alone.std)
        assert torch.equal(both.denoised[rows], alone.denoised)
        expected = invert_step(schedule, noise_pred[rows], x[rows], int(t[i]), max(int(t_next[i]), 0))
        assert torch.equal(inverted[rows], expected)


@pytest.mark.parametrize("solver", ["lcm", "ddim"])
def test_half_precision_inputs_are_computed_in_float32(solver):
    schedule = make_schedule(solver)
    step = denoise_step(schedule, draw(0).half(), draw(1).half(), 999, 499)
    assert (step.mean.dtype, step.std.dtype, step.denoised.dtype) == (torch.float32,) * 3
    action = sample(step, SeededNoise([1, 2]))
    score = log_prob(step, action.half())
    assert (action.dtype, score.dtype) == (torch.float32, torch.float32)
    assert score.shape == SHAPE[:2]
