"""The short way of a LoRA layer: peft's own forward is the oracle."""

import copy
import gc
import weakref

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from t2mv_core.lora.linear import AddedProduct, take_short_way


def make_layer(dtype=torch.float32, **options):
    """peft's layer on a frozen linear one, LoRA in float32, away from zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, dtype=dtype))
    config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["0"], init_lora_weights=False, **options)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    return model[0].train()


def run(layer, x, has_autocast):
    """Output, and gradients of the input and the LoRA."""
    with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        out = layer(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return out, torch.autograd.grad(out.float().square().sum(), wanted)


@pytest.mark.parametrize(
    ("dtype", "has_autocast", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.bfloat16, False, 2e-2),
        (torch.float32, True, 3e-2),
        (torch.bfloat16, True, 3e-2),
    ],
)
def test_values_and_gradients_are_pefts(dtype, has_autocast, tolerance):
    layer = make_layer(dtype)
    layer.cast_input_dtype_enabled = not has_autocast
    x = torch.randn(2, 3, 6, dtype=dtype, requires_grad=True)
    expected, expected_gradients = run(layer, x, has_autocast)
    take_short_way(layer)
    found, gradients = run(layer, x, has_autocast)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(gradient, reference, atol=tolerance * scale, rtol=tolerance)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        assert torch.equal(layer(x), found)


def test_gradients_are_those_of_the_formula():
    y, x, down, up = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 5), (4, 6), (2, 6), (5, 2))
    )
    assert torch.autograd.gradcheck(
        lambda y, *rest: AddedProduct.apply(y * 1.0, *rest, 1.5), (y, x, down, up)
    )


def test_a_silent_layer_is_the_base_layer():
    layer, x = make_layer(), torch.randn(3, 6)
    take_short_way(layer)
    layer._disable_adapters = True
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("has_autocast", [False, True])
def test_several_loras_add_up_as_in_peft_and_a_new_one_changes_no_bit(has_autocast):
    layer, x = make_layer(), torch.randn(2, 3, 6, requires_grad=True)
    layer.cast_input_dtype_enabled = not has_autocast
    take_short_way(layer)
    alone, _ = run(layer, x, has_autocast)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), nn.Sequential(layer), adapter_name="new")
    layer._active_adapter = ["default", "new"]
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert torch.equal(run(layer, x, has_autocast)[0], alone)
    nn.init.normal_(layer.lora_B["new"].weight)
    found, gradients = run(layer, x, has_autocast)
    layer.forward = type(layer).forward.__get__(layer)
    expected, expected_gradients = run(layer, x, has_autocast)
    tolerance = 3e-2 if has_autocast else 1e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert len(gradients) == 5  # of the input, and of two LoRAs
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        scale = float(reference.abs().max())
        torch.testing.assert_close(gradient, reference, atol=tolerance * scale, rtol=tolerance)


def test_what_is_not_plain_goes_pefts_way():
    layer, x = make_layer(lora_dropout=0.5), torch.randn(400, 6)
    take_short_way(layer)
    assert not torch.equal(layer(x), layer(x))  # dropout is drawn anew
    layer.eval()
    layer.merge()
    expected = x @ layer.base_layer.weight.T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 6), (0, 6), (2, 0, 6)])
def test_inputs_of_any_shape(shape):
    layer, x = make_layer(), torch.randn(shape)
    expected = layer(x)
    take_short_way(layer)
    torch.testing.assert_close(layer(x), expected)


def test_a_layer_is_freed_with_its_last_user_and_copied_as_a_whole():
    layer, x = make_layer(), torch.randn(3, 6)
    take_short_way(layer)
    take_short_way(layer)  # with each further LoRA
    expected, other = layer(x), copy.deepcopy(layer)
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    assert torch.equal(other(x), expected)
    held = weakref.ref(layer.base_layer.weight)
    gc.disable()  # a cycle would wait for it, with gigabytes
    try:
        del layer
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_a_lora_of_zeros_behind_another_changes_no_bit(dtypes):
    """The reference of a training on base LoRAs is then the policy at its start, to the last bit."""
    base, own = dtypes
    model = nn.Sequential(nn.Linear(6, 5, dtype=base))
    for name in ("base", "trained"):
        config = LoraConfig(r=2, lora_alpha=3.0, target_modules=["0"], init_lora_weights=False)
        inject_adapter_in_model(config, model, adapter_name=name)
    layer, x = model[0], torch.randn(7, 6, dtype=base)
    layer.lora_A["trained"].to(own), layer.lora_B["trained"].to(own)
    layer._active_adapter = ["base", "trained"]
    expected = layer(x)
    take_short_way(layer)
    tolerance = 1e-5 if base == torch.float32 else 2e-2
    torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=tolerance)
    torch.nn.init.zeros_(layer.lora_B["trained"].weight)
    both = layer(x)
    layer._active_adapter = ["base"]
    assert torch.equal(layer(x), both)


def test_a_lora_less_precise_than_its_layer_does_not_round_it():
    layer, x = make_layer(), torch.randn(7, 6)
    for part in (layer.lora_A, layer.lora_B):
        part.to(torch.bfloat16)
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    take_short_way(layer)
    assert torch.equal(layer(x), layer.base_layer(x))
