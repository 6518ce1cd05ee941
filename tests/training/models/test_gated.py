"""Gated feed-forward layers: diffusers' values and gradients, less kept."""

import pytest
import torch
from diffusers.models.activations import GEGLU

from training.models.gated import GatedGelu, keep_less_of_gated_layers


def kept_elements(layer, x) -> int:
    """Elements of the storages that autograd keeps for the backward pass, weights aside."""
    sizes, weights = {}, {p.untyped_storage().data_ptr() for p in layer.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(x)
    assert out.requires_grad
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


@pytest.mark.parametrize("has_autocast", [False, True])
def test_values_and_gradients_are_diffusers(has_autocast):
    torch.manual_seed(0)
    layer = GEGLU(6, 8).requires_grad_(False)
    x = torch.randn(3, 4, 6, requires_grad=True)
    found = []
    for is_changed in (False, True):
        if is_changed:
            assert keep_less_of_gated_layers(layer) == 1
        with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
            out = layer(x)
        found.append((out, torch.autograd.grad(out.float().square().sum(), x)[0]))
    assert torch.equal(found[0][0], found[1][0])
    tolerance = 2e-2 if has_autocast else 1e-6
    torch.testing.assert_close(found[1][1], found[0][1], rtol=tolerance, atol=tolerance)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        assert torch.equal(layer(x), found[0][0])


def test_the_gradient_is_that_of_the_formula():
    both = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GatedGelu.apply, (both,))


def test_the_product_of_the_gate_is_not_kept():
    layer = GEGLU(6, 8).requires_grad_(False)
    x = torch.randn(5, 6, requires_grad=True)
    before = kept_elements(layer, x)
    keep_less_of_gated_layers(layer)
    assert (before, kept_elements(layer, x)) == (5 * 24, 5 * 16)
