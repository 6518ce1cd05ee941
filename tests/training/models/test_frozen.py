"""Frozen convolutions: torch's values and gradients, without the inputs."""

import pytest
import torch
from torch import nn

from training.models.frozen import keep_no_inputs_of_frozen_convolutions


def saved_elements(work) -> int:
    """Elements that autograd keeps for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        work()
    return sum(sizes)


@pytest.mark.parametrize("has_autocast", [False, True])
@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2}])
def test_values_and_gradients_are_torchs(geometry, has_autocast):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, **geometry).requires_grad_(False)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    found = []
    for is_changed in (False, True):
        if is_changed:
            assert keep_no_inputs_of_frozen_convolutions(convolution) == 1
        with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
            out = convolution(x)
        (gradient,) = torch.autograd.grad(out.float().square().sum(), x)
        found.append((out, gradient))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-5)


def test_inputs_are_not_kept():
    convolution = nn.Conv2d(4, 6, 3).requires_grad_(False)
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    before = saved_elements(lambda: convolution(x))
    keep_no_inputs_of_frozen_convolutions(convolution)
    assert before - saved_elements(lambda: convolution(x)) >= x.numel()


def test_convolutions_in_training_are_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, padding="same").requires_grad_(False))
    assert keep_no_inputs_of_frozen_convolutions(model) == 0
    model(torch.randn(1, 4, 8, 8)).sum().backward()
    assert model[0].weight.grad.abs().max() > 0
