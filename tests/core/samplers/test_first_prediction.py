"""Samplers from the same initial noise share their first evaluation."""

import pytest
import torch

from t2mv_core.samplers import FirstPrediction, sample_standard, sample_zmv
from t2mv_core.trajectory import SeededNoise


@pytest.fixture
def calls(bundle):
    """One entry per UNet evaluation."""
    made = []
    hook = bundle.unet.register_forward_pre_hook(lambda *_: made.append(0))
    yield made
    hook.remove()


def test_the_second_sampler_makes_one_evaluation_less_and_the_same_trajectory(
    bundle, condition, cameras, settings, calls
):
    arguments = (bundle, condition, cameras)
    alone = sample_zmv(*arguments, SeededNoise([1, 2]), settings)
    num_alone, first = len(calls), FirstPrediction()
    sample_standard(*arguments, SeededNoise([1, 2]), settings, first=first)
    calls.clear()
    events = []
    shared = sample_zmv(*arguments, SeededNoise([1, 2]), settings, events.append, first)
    assert len(calls) == num_alone - 1
    assert [event.index for event in events] == list(
        range(1, num_alone + 1)
    )  # progress counts it all the same
    for name in ("states", "actions", "log_probs", "denoised"):
        assert torch.equal(getattr(shared, name), getattr(alone, name)), name


def test_other_initial_noise_is_predicted_anew(bundle, condition, cameras, settings):
    arguments, first = (bundle, condition, cameras), FirstPrediction()
    sample_standard(*arguments, SeededNoise([1, 2]), settings, first=first)
    shared = sample_standard(*arguments, SeededNoise([1, 3]), settings, first=first)
    alone = sample_standard(*arguments, SeededNoise([1, 3]), settings)
    assert torch.equal(shared.states, alone.states)
    assert torch.equal(shared.denoised, alone.denoised)
