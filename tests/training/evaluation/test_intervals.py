"""Bootstrap intervals over prompts."""

import math

import pytest
import torch

from training.evaluation.intervals import Interval, bootstrap, bootstrap_two_way


def test_the_interval_matches_the_normal_approximation():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, 3, generator=generator)
    interval = bootstrap(values)
    means = values.double().mean(dim=1)
    half = 1.96 * float(means.std()) / math.sqrt(400)
    assert interval.mean == pytest.approx(float(means.mean()))
    assert interval.low == pytest.approx(interval.mean - half, abs=0.15 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.15 * half)


def test_seeds_of_a_prompt_are_not_independent_samples():
    prompts = torch.randn(30, 1, generator=torch.Generator().manual_seed(1))
    repeated = bootstrap(prompts.expand(30, 10))
    assert (repeated.low, repeated.high) == pytest.approx((bootstrap(prompts).low, bootstrap(prompts).high))


def test_prompts_without_a_value_are_left_out():
    interval = bootstrap(torch.tensor([[1.0], [math.nan], [1.0]]))
    assert interval == Interval(1.0, 1.0, 1.0, 2)
    with pytest.raises(ValueError, match="No prompt has a value"):
        bootstrap(torch.full((3, 2), math.nan))


@pytest.mark.parametrize("measure", [bootstrap, bootstrap_two_way])
def test_a_single_prompt_has_no_interval_and_shows_nothing(measure):
    interval = measure(torch.tensor([[1.0, 2.0, 3.0]]))
    assert interval == Interval(2.0, None, None, 1)
    assert not interval.excludes_zero
    assert interval.in_words("+") == "+2.0000 [one prompt: no interval]"


def test_a_difference_is_there_when_zero_lies_outside():
    assert Interval(0.2, 0.1, 0.3, 9).excludes_zero
    assert Interval(-0.2, -0.3, -0.1, 9).excludes_zero
    assert not Interval(0.1, -0.1, 0.3, 9).excludes_zero
    assert not Interval(0.04, 1.5e-18, 0.09, 71).excludes_zero  # a zero, but for rounding


def test_a_flat_list_is_refused():
    with pytest.raises(ValueError, match=r"pass \[prompts, seeds\]"):
        bootstrap(torch.zeros(5))
