"""The moving average of the LoRA; trackers by name."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from training.models.policy import available_trackers, averaged, make_average


def test_trackers_are_known_and_installed():
    assert available_trackers([]) == []
    with pytest.raises(ValueError, match="'tensorbord', which accelerate does not know"):
        available_trackers(["tensorbord"])
    with pytest.raises(ValueError, match="'aim', which is not installed"):
        available_trackers(["aim"])


def make_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([0.1, -0.0, float("nan"), 1e-45])), nn.Parameter(torch.full((2,), 3.0))]


def test_the_average_copies_first_and_then_follows_ever_more_slowly():
    """d = 0 in step 1, min(decay, n / (9 + n)) in step n."""
    (parameter,) = parameters = [nn.Parameter(torch.zeros(2))]
    average = make_average(0.2, parameters)
    for value, expected in (
        (1.0, 1.0),
        (2.0, 20 / 11),  # d = 2/11: 1·2/11 + 2·9/11
        (0.0, 4 / 11),  # 3/12 exceeds the decay, d = 0.2: 20/11·0.2
    ):
        with torch.no_grad():
            parameter.fill_(value)
        average.step(parameters)
        assert average.shadow_params[0].tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("is_failing", [False, True])
def test_the_average_is_lent_and_the_trained_values_come_back_bit_for_bit(is_failing):
    parameters = make_parameters()
    average = make_average(0.9, parameters)
    with torch.no_grad():
        parameters[1].fill_(4.0)
    bits = [parameter.detach().clone().view(torch.int32) for parameter in parameters]

    def borrow():
        with averaged(average, parameters):
            assert parameters[1].tolist() == [3.0, 3.0]
            with torch.no_grad():
                parameters[0].fill_(7.0)  # whatever happens in between is undone
            if is_failing:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if is_failing else nullcontext():
        borrow()
    assert all(torch.equal(p.detach().view(torch.int32), b) for p, b in zip(parameters, bits, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


def test_without_an_average_the_parameters_stay():
    parameters = make_parameters()
    with averaged(None, parameters):
        assert parameters[1].tolist() == [3.0, 3.0]
