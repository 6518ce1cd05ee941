from dataclasses import replace

import pytest
import torch

from t2mv_core.trajectory import SeededNoise, Trajectory, concat

SHAPE = torch.Size((2, 3, 4, 5, 6))  # B, V, C, H, W


def make_trajectory(num_prompts=3, num_steps=2, seed=0, timesteps=(999, 499)):
    generator = torch.Generator().manual_seed(seed)
    states, actions = torch.randn(2, num_prompts, 2, num_steps, 1, 2, 2, generator=generator).unbind(0)
    log_probs = torch.randn(num_prompts, 2, num_steps, generator=generator)
    denoised = torch.randn(num_prompts, 2, 1, 2, 2, generator=generator)
    steps = torch.tensor(timesteps)
    return Trajectory(states, actions, log_probs, steps, torch.cat([steps[1:], steps[-1:]]), denoised)


def tensors_of(trajectory):
    return [trajectory.states, trajectory.actions, trajectory.log_probs, trajectory.denoised]


def test_concat_joins_prompts_in_order():
    parts = [make_trajectory(num_prompts=count, seed=count) for count in (1, 2)]
    joined = concat(parts)
    for whole, *pieces in zip(*map(tensors_of, [joined, *parts]), strict=True):
        assert torch.equal(whole, torch.cat(pieces))
    assert torch.equal(joined.timesteps, parts[0].timesteps)


def test_concat_refuses_other_timesteps_and_nothing():
    with pytest.raises(ValueError, match="different timesteps"):
        concat([make_trajectory(), make_trajectory(timesteps=(999, 479))])
    first = make_trajectory()
    with pytest.raises(ValueError, match="different next_timesteps"):  # as another solver's
        concat([first, replace(first, next_timesteps=torch.tensor([499, -1]))])
    with pytest.raises(ValueError, match="at least one"):
        concat([])


@pytest.mark.parametrize("part", ["actions", "log_probs", "denoised", "timesteps", "next_timesteps"])
def test_parts_that_do_not_belong_together_are_refused(part):
    trajectory = make_trajectory()
    with pytest.raises(ValueError, match="parts disagree"):
        replace(trajectory, **{part: getattr(trajectory, part)[:1]})


def test_seeded_noise_is_standard_normal_and_repeats():
    first, second = SeededNoise([1, 2]), SeededNoise([1, 2])
    draws = [first(SHAPE), first(SHAPE)]
    assert torch.equal(draws[0], second(SHAPE))
    assert torch.equal(draws[1], second(SHAPE))
    assert not torch.equal(*draws)
    many = SeededNoise([7])(torch.Size((1, 100_000)))
    # Standard errors: 1/sqrt(1e5) = 0.003 of the mean, 0.002 of the standard deviation.
    assert abs(float(many.mean())) < 0.015
    assert abs(float(many.std()) - 1.0) < 0.015


def test_a_prompts_noise_does_not_depend_on_its_batch():
    both, alone = SeededNoise([5, 9]), SeededNoise([9])
    for _ in range(3):
        assert torch.equal(both(SHAPE)[1:], alone(torch.Size((1, *SHAPE[1:]))))


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, -1])
def test_any_seed_a_user_can_type_works(seed):
    noise, again = (SeededNoise([seed])(torch.Size((1, 2))) for _ in range(2))
    assert bool(noise.isfinite().all())
    assert torch.equal(noise, again)


def test_seeded_noise_refuses_another_number_of_prompts():
    with pytest.raises(ValueError, match="Noise for 2 prompts was asked of 3 seeds"):
        SeededNoise([1, 2, 3])(SHAPE)
