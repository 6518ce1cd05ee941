"""Files as ComfyUI's Extract and Save Lora writes them: matrices, and differences of biases and norms."""

import copy
import gc
import pickle
from dataclasses import replace

import pytest
import torch

from benchmarks.sdxl_files import TINY, create_modules, original_unet
from t2mv_core.bundle import LoraHandle
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.loading import with_float8_storage
from t2mv_core.lora.adapters import (
    activate_loras,
    add_lora,
    attached_loras,
    reactivate_in_backward,
    trainable_parameters,
)
from t2mv_core.lora.files import load_lora
from t2mv_core.unet.attention import install_multiview_attention

RANK = 2


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return create_modules(TINY)["unet"].eval().requires_grad_(False)


@pytest.fixture
def bundle(lcm_bundle, unet):
    copied = copy.deepcopy(unet)
    torch.manual_seed(3)
    install_multiview_attention(copied)
    return replace(lcm_bundle, unet=copied)


@pytest.fixture(scope="module")
def changes(unet):
    """A change of every weight and bias: of low rank where there are matrices; and the matrices."""
    generator = torch.Generator().manual_seed(1)
    differences, pairs = {}, {}
    for name, own in unet.state_dict().items():
        if own.ndim < 2:
            differences[name] = 0.2 * torch.randn(own.shape, generator=generator)
            continue
        sizes = (own.shape[0], RANK, *[1] * (own.ndim - 2)), (RANK, *own.shape[1:])
        up, down = (0.3 * torch.randn(size, generator=generator) for size in sizes)
        pairs[name] = up, down
        differences[name] = (up.flatten(1) @ down.flatten(1)).view(own.shape)
    return differences, pairs


@pytest.fixture
def extracted(changes, tmp_path):
    """The file, with the names of SDXL's original layout."""
    tensors = {}
    for name, difference in changes[0].items():
        stem, _, part = f"diffusion_model.{next(iter(original_unet({name: None}, TINY)))}".rpartition(".")
        if name in changes[1]:
            tensors[f"{stem}.lora_up.weight"], tensors[f"{stem}.lora_down.weight"] = changes[1][name]
        else:
            tensors[stem + {"weight": ".diff", "bias": ".diff_b"}[part]] = difference
    write_safetensors(tensors, tmp_path / "extracted.safetensors", {})
    return tmp_path / "extracted.safetensors"


def run(bundle):
    generator = torch.Generator().manual_seed(2)
    x, text, pooled = (torch.randn(s, generator=generator) for s in ((4, 4, 8, 8), (4, 12, 192), (4, 64)))
    views = {"num_views": 2, "latent_size": (8, 8)}
    added = {"text_embeds": pooled, "time_ids": torch.ones(4, 6)}
    activate_loras(bundle)
    return bundle.unet(x, 500, text, added_cond_kwargs=added, cross_attention_kwargs=views).sample


def compute(bundle):
    with torch.no_grad():
        return run(bundle)


def merged(bundle, differences, strength):
    unet = copy.deepcopy(bundle.unet)
    with torch.no_grad():
        for name, difference in differences.items():
            unet.get_parameter(name).add_(strength * difference)
    return compute(replace(bundle, unet=unet))


def test_every_tensor_of_an_extracted_lora_acts_and_vanishes(bundle, changes, extracted):
    before, expected = compute(bundle), merged(bundle, changes[0], 0.8)
    loaded = load_lora(bundle, extracted, 0.8)
    torch.testing.assert_close(compute(loaded), expected, atol=1e-4, rtol=1e-4)
    assert float((expected - before).abs().max()) > 0.1
    (handle,) = loaded.loras
    modules = {name.rpartition(".")[0] for name in changes[0]}
    assert (handle.num_matched, handle.unmatched) == (len(modules), ())
    assert handle.layout == "differences and kohya"
    assert torch.equal(compute(bundle), before)
    assert torch.equal(compute(load_lora(bundle, extracted, 0.0)), before)
    del loaded, handle
    gc.collect()
    assert torch.equal(compute(bundle), before)
    assert attached_loras(bundle.unet) == []
    assert not any(layer._forward_hooks for layer in bundle.unet.modules())


def test_differences_of_whole_layers_act_alone(bundle, changes, extracted):
    whole = {}
    for name, difference in changes[0].items():
        stem, _, part = name.rpartition(".")
        whole[f"lora_unet_{stem.replace('.', '_')}{'.diff' if part == 'weight' else '.diff_b'}"] = difference
    write_safetensors(whole, extracted, {})
    loaded = load_lora(bundle, extracted)
    torch.testing.assert_close(compute(loaded), merged(bundle, changes[0], 1.0), atol=1e-4, rtol=1e-4)
    twice = load_lora(loaded, extracted, -0.5)
    torch.testing.assert_close(compute(twice), merged(bundle, changes[0], 0.5), atol=1e-4, rtol=1e-4)


def test_norms_in_lycoris_names_act(bundle, changes, extracted):
    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    chosen = {f"{norm}.weight": ".w_norm", f"{norm}.bias": ".b_norm"}
    stem = f"lora_unet_{norm.replace('.', '_')}"
    write_safetensors({stem + end: changes[0][name] for name, end in chosen.items()}, extracted, {})
    expected = merged(bundle, {name: changes[0][name] for name in chosen}, 1.0)
    torch.testing.assert_close(compute(load_lora(bundle, extracted)), expected, atol=1e-4, rtol=1e-4)


def test_a_copy_of_the_unet_keeps_them(bundle, extracted):
    without, loaded = compute(bundle), load_lora(bundle, extracted)
    expected = compute(loaded)
    assert torch.equal(compute(replace(loaded, unet=pickle.loads(pickle.dumps(loaded.unet)))), expected)
    stored = with_float8_storage(load_lora(bundle, extracted))
    assert (compute(stored) - expected).norm() < 0.3 * (without - expected).norm()


def test_gradients_of_another_lora_go_through_them_also_when_recomputed(bundle, extracted):
    bundle.unet.requires_grad_(False)
    add_lora(bundle.unet, 2, 2.0, "policy")
    learning = trainable_parameters(bundle.unet, "policy")
    with torch.no_grad():
        for parameter in learning:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    loaded = load_lora(bundle, extracted)
    assert sum(parameter.requires_grad for parameter in loaded.unet.parameters()) == len(learning)
    acting = replace(loaded, loras=(*loaded.loras, LoraHandle("policy")))
    expected = torch.autograd.grad(run(acting).square().sum(), learning)
    bundle.unet.enable_gradient_checkpointing()
    bundle.unet.train()
    output = run(acting)
    reactivate_in_backward(acting, output)
    compute(replace(bundle, loras=()))  # silences all of them in between
    for gradient, plain in zip(torch.autograd.grad(output.square().sum(), learning), expected, strict=True):
        torch.testing.assert_close(gradient, plain, atol=1e-4, rtol=1e-4)


def test_a_difference_of_another_shape_is_refused_and_leaves_no_trace(bundle, extracted):
    before = compute(bundle)
    tensors, _ = read_safetensors(extracted)
    name = next(key for key in tensors if key.endswith(".diff_b"))
    write_safetensors({**tensors, name: torch.ones(7)}, extracted, {})
    with pytest.raises(ValueError, match=r"the difference of .*bias.* has shape \(7,\), this model needs"):
        load_lora(bundle, extracted)
    assert attached_loras(bundle.unet) == []
    assert torch.equal(compute(bundle), before)
