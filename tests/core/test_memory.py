import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.lora.adapters import add_lora, load_lora, save_lora, trainable_parameters
from t2mv_core.memory import MemorySettings, with_float8_storage
from t2mv_core.samplers import sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_guidance_in_two_passes_is_guidance_in_one(ddim_bundle, x, rig, prompts):
    condition, cameras = encode_text(ddim_bundle, prompts, "blurry"), encode_cameras(ddim_bundle, rig)
    sizes = []
    hook = ddim_bundle.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    together = predict_noise(ddim_bundle, x, 500, condition, cameras, 4.0)
    sequential = replace(ddim_bundle, memory=MemorySettings(sequential_guidance=True))
    apart = predict_noise(sequential, x, 500, condition, cameras, 4.0)
    hook.remove()
    assert sizes == [12, 6, 6]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_a_model_with_a_guidance_embedding_keeps_its_one_pass(lcm_bundle, x, rig, prompts):
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    together = predict_noise(lcm_bundle, x, 500, condition, cameras, 4.0)
    sequential = replace(lcm_bundle, memory=MemorySettings(sequential_guidance=True))
    assert torch.equal(predict_noise(sequential, x, 500, condition, cameras, 4.0), together)


def test_encoders_are_not_needed_while_the_unet_works(make_lcm_bundle, rig, prompts, settings):
    """Text and cameras encoded first; then their encoders may lie anywhere, here where nothing computes."""
    bundle = make_lcm_bundle()
    condition, cameras = encode_text(bundle, prompts), encode_cameras(bundle, rig)
    expected = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    for encoder in (bundle.text_encoder, bundle.text_encoder_2, bundle.camera_encoder):
        encoder.to("meta")
    got = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    assert torch.equal(got.denoised, expected.denoised)


def test_text_is_encoded_where_the_encoders_are(make_lcm_bundle, prompts):
    bundle = make_lcm_bundle()
    bundle.unet.to("meta")
    condition = encode_text(bundle, prompts)
    assert condition.prompt_embeds.device.type == "cpu"


def test_eight_bit_storage_halves_the_weights_and_changes_the_given_bundle_not(bundle, x, condition, cameras):
    bundle = replace(bundle, unet=copy.deepcopy(bundle.unet).bfloat16())
    before = predict_noise(bundle, x, 500, condition, cameras, 4.0)
    stored = with_float8_storage(bundle)
    after = predict_noise(stored, x, 500, condition, cameras, 4.0)
    assert (stored.dtype, after.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(predict_noise(bundle, x, 500, condition, cameras, 4.0), before)
    weight = stored.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor.to_q_mv.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert stored.unet.conv_in.weight.dtype == torch.bfloat16
    # Weights are off by 2^-4 of themselves at most (3 bits of mantissa), so the prediction by a few percent.
    error = (after - before).float().norm() / before.float().norm()
    assert 0 < float(error) < 0.1


def test_eight_bit_storage_computes_what_rounded_weights_compute(lcm_bundle, x, rig, prompts):
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    stored = with_float8_storage(lcm_bundle)
    kinds = {name: p.dtype for name, p in stored.unet.named_parameters()}
    rounded = copy.deepcopy(lcm_bundle.unet)
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(parameter.to(kinds[name]).to(parameter.dtype))
    expected = predict_noise(replace(lcm_bundle, unet=rounded), x, 500, condition, cameras, 4.0)
    got = predict_noise(stored, x, 500, condition, cameras, 4.0)
    assert torch.float8_e4m3fn in kinds.values()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_a_lora_acts_on_eight_bit_storage_in_its_own_precision(make_lcm_bundle, x, rig, prompts, tmp_path):
    bundle = make_lcm_bundle()
    add_lora(bundle.unet, 2, 2.0)
    for parameter in trainable_parameters(bundle.unet):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    save_lora(bundle.unet, tmp_path / "lora.safetensors", {})
    plain = make_lcm_bundle()
    condition, cameras = encode_text(plain, prompts), encode_cameras(plain, rig)
    stored = with_float8_storage(plain)  # before the LoRA: a copy of a UNet has the LoRAs attached by then
    before = with_float8_storage(load_lora(plain, tmp_path / "lora.safetensors"))
    after = load_lora(stored, tmp_path / "lora.safetensors")
    assert {p.dtype for p in trainable_parameters(stored.unet, after.loras[0].name)} == {torch.float32}
    silent = predict_noise(replace(before, loras=()), x, 500, condition, cameras, 4.0)
    first = predict_noise(before, x, 500, condition, cameras, 4.0)
    assert float((first - silent).abs().max()) > 1e-3
    torch.testing.assert_close(predict_noise(after, x, 500, condition, cameras, 4.0), first)
