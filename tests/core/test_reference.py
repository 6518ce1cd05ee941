"""Reference features against a plain UNet, and image to multiview against a plain re-computation."""

import copy
from dataclasses import replace

import pytest
import torch

from t2mv_core.bundle import LoraHandle
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.reference import NO_PICTURE, ReferenceFeatures, encode_pictures, encode_reference
from t2mv_core.text import encode_text

MID = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def condition(image_bundle, prompts):
    return encode_text(image_bundle, prompts, "blurry")


@pytest.fixture(scope="module")
def cameras(image_bundle, rig):
    return encode_cameras(image_bundle, rig)


@pytest.fixture(scope="module")
def reference(image_bundle, pictures, condition):
    return encode_reference(image_bundle, pictures, condition)


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_kept_states_are_a_plain_unets(image_bundle, pictures, condition, reference):
    """diffusers' own UNet, without processors of ours: what its first norms give at timestep 0."""
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_config(image_bundle.unet.config).eval()
    state = image_bundle.unet.state_dict()
    plain.load_state_dict({name: x for name, x in state.items() if ".processor." not in name})
    seen = {}
    for name, module in plain.named_modules():
        if name.endswith(".norm1") and "transformer_blocks" in name:
            module.register_forward_hook(lambda *given, name=name: seen.update({name: given[2]}))
    latents = 0.5 * image_bundle.vae.encode(2 * pictures - 1).latent_dist.mode()  # 0.5: the scaling factor
    texts = {"text_embeds": condition.pooled_embeds, "time_ids": condition.time_ids}
    plain(latents, 0, condition.prompt_embeds, added_cond_kwargs=texts)
    assert len(reference) == 2
    assert {name.replace("attn1", "norm1") for name in reference.states} == seen.keys()
    assert len(seen) == 7
    for name, states in reference.states.items():
        torch.testing.assert_close(states, seen[name.replace("attn1", "norm1")], atol=1e-5, rtol=1e-5)


def test_features_belong_to_their_picture_and_prompt_alone(image_bundle, pictures, condition, reference):
    for i in range(2):
        alone = encode_reference(image_bundle, pictures[i : i + 1], condition.select([i]))
        torch.testing.assert_close(alone.states[MID], reference.states[MID][i : i + 1], atol=1e-5, rtol=1e-5)
    other_prompt = encode_reference(image_bundle, pictures, condition.select([1, 1]))
    assert float((other_prompt.states[MID] - reference.states[MID])[0].abs().max()) > 1e-3
    other_picture = encode_reference(image_bundle, pictures.flip(0), condition)
    assert float((other_picture.states[MID] - reference.states[MID])[0].abs().max()) > 1e-3
    assert not any(x.requires_grad for x in reference.states.values())


def test_encoding_leaves_no_hook_behind(make_image_bundle, pictures, prompts):
    bundle = make_image_bundle("lcm")
    condition = encode_text(bundle, prompts)
    encode_reference(bundle, pictures, condition)
    bundle.unet.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_reference(bundle, pictures, condition)
    names = [name for name, module in bundle.unet.named_modules() if module._forward_pre_hooks]
    assert names == ["mid_block"]


def test_loras_act_on_the_features_of_their_bundle_only(make_image_bundle, pictures, prompts):
    bundle = make_image_bundle("ddim")
    condition = encode_text(bundle, prompts)
    before = encode_reference(bundle, pictures, condition).states[MID]
    add_lora(bundle.unet, 2, 2.0)
    with torch.no_grad():
        for parameter in trainable_parameters(bundle.unet):
            parameter.add_(0.3)
    listed = replace(bundle, loras=(LoraHandle("default"),))
    changed = encode_reference(listed, pictures, condition).states[MID]
    assert float((changed - before).abs().max()) > 1e-3
    assert torch.equal(encode_reference(bundle, pictures, condition).states[MID], before)


def test_pictures_that_overflow_in_half_precision_are_encoded_in_float32(image_bundle, pictures):
    vae = copy.deepcopy(image_bundle.vae)
    with torch.no_grad():
        # Latents of a million from weights that float16, which ends at 65504, can hold.
        vae.encoder.conv_norm_out.weight.mul_(1e4)
        vae.encoder.conv_out.weight.mul_(1e3)
    expected, half = encode_pictures(vae, pictures), copy.deepcopy(vae).half()
    encoded = encode_pictures(half, pictures)
    assert half.dtype == torch.float16
    assert bool(encoded.isfinite().all())
    # Weights and pixels were rounded to 10 bits of mantissa, the computation was not.
    assert float((encoded - expected).norm() / expected.norm()) < 1e-2
    vae.quant_conv.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity even in float32: its weights are damaged"):
        encode_pictures(vae, pictures)


def test_pictures_of_other_shapes_and_numbers_are_refused_in_words(image_bundle, pictures, condition):
    with pytest.raises(ValueError, match=r"sides that 2 divides, not \(2, 3, 15, 16\); frame them"):
        encode_reference(image_bundle, pictures[:, :, 1:], condition)
    with pytest.raises(ValueError, match=r"must be \[B, 3, height, width\] .* not \(2, 1, 16, 16\)"):
        encode_reference(image_bundle, pictures[:, :1], condition)
    with pytest.raises(ValueError, match="1 pictures were given for 2 sets; give one each"):
        encode_reference(image_bundle, pictures[:1], condition)


class PlainAttention:
    """All three attentions of one `attn1` by softmax over explicit matrices, view by view."""

    def __init__(self, processor, states, num_views, scale):
        self.processor, self.states, self.num_views, self.scale = processor, states, num_views, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        p, (_, length, width) = self.processor, hidden_states.shape
        rows = torch.arange(length) // round(length**0.5)
        same_row = (rows[:, None] == rows[None]).repeat(1, self.num_views)

        def attend(query, key, value, mask=True):  # [l, c], [m, c], [m, c]
            parts = []
            for q, k, v in zip(*(x.chunk(attn.heads, -1) for x in (query, key, value)), strict=True):
                scores = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(~torch.as_tensor(mask), -torch.inf)
                parts.append(scores.softmax(-1) @ v)
            return torch.cat(parts, -1)

        out = torch.empty_like(hidden_states)
        for n, tokens in enumerate(hidden_states):
            first = n // self.num_views * self.num_views
            views = hidden_states[first : first + self.num_views].reshape(-1, width)
            picture = self.states[first // self.num_views]
            own = attend(attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens))
            across = attend(p.to_q_mv(tokens), p.to_k_mv(views), p.to_v_mv(views), same_row)
            read = attend(p.to_q_ref(tokens), p.to_k_ref(picture), p.to_v_ref(picture))
            out[n] = attn.to_out[0](own) + p.to_out_mv[0](across) + self.scale * p.to_out_ref[0](read)
        return out


@torch.no_grad()
def plain_prediction(bundle, x, condition, cameras, states, scale):
    """One evaluation of sets of 3 views at timestep 500, with w = 4 where guidance is an input."""
    from diffusers.models.attention_processor import AttnProcessor

    unet = copy.deepcopy(bundle.unet)
    processors = {
        name: PlainAttention(processor, states[name.removesuffix(".processor")], 3, scale)
        if "attn1" in name
        else AttnProcessor()
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    embedding = None
    if bundle.has_guidance_embedding:
        half = unet.config["time_cond_proj_dim"] // 2
        angles = 1000.0 * (4.0 - 1.0) * 10000.0 ** (-torch.arange(half) / (half - 1))
        embedding = torch.cat([angles.sin(), angles.cos()]).expand(3 * len(x), -1)
    noise = unet(
        x.flatten(0, 1),
        500,
        condition.prompt_embeds.repeat_interleave(3, 0),
        timestep_cond=embedding,
        added_cond_kwargs={
            "text_embeds": condition.pooled_embeds.repeat_interleave(3, 0),
            "time_ids": condition.time_ids.repeat_interleave(3, 0),
        },
        down_intrablock_additional_residuals=[y.repeat(len(x), 1, 1, 1) for y in cameras.residuals],
    ).sample
    return noise.unflatten(0, (len(x), 3))


def test_prediction_is_the_plain_computation(image_bundle, x, condition, cameras, reference):
    expected = plain_prediction(image_bundle, x, condition, cameras, reference.states, 0.7)
    if not image_bundle.has_guidance_embedding:
        zeros = {name: torch.zeros_like(states) for name, states in reference.states.items()}
        negative = plain_prediction(image_bundle, x, condition.negative(), cameras, zeros, 0.7)
        expected = negative + 4.0 * (expected - negative)
    noise = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference.scaled(0.7))
    torch.testing.assert_close(noise, expected, atol=1e-4, rtol=1e-4)


def test_guidance_in_two_passes_is_guidance_in_one(image_bundle, x, condition, cameras, reference):
    together = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference.scaled(0.7))
    sequential = replace(image_bundle, has_sequential_guidance=True)
    apart = predict_noise(sequential, x, 500, condition, cameras, 4.0, 1.0, reference.scaled(0.7))
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_scale_zero_is_the_text_model_bit_for_bit(
    image_bundle, make_lcm_bundle, make_ddim_bundle, x, condition, cameras, reference
):
    text = make_lcm_bundle() if image_bundle.has_guidance_embedding else make_ddim_bundle()
    state = image_bundle.unet.state_dict()
    text.unet.load_state_dict({name: tensor for name, tensor in state.items() if "_ref." not in name})
    expected = predict_noise(text, x, 500, condition, cameras, 4.0)
    dropped = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference.scaled(0.0))
    assert torch.equal(dropped, expected)
    seen = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference)
    assert float((seen - expected).abs().max()) > 1e-3


def test_no_picture_is_states_of_zeros(image_bundle, x, condition, cameras, reference):
    zeros = ReferenceFeatures({name: torch.zeros_like(y) for name, y in reference.states.items()})
    expected = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, zeros)
    without = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, NO_PICTURE)
    torch.testing.assert_close(without, expected, atol=1e-5, rtol=1e-5)
    dropped = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, NO_PICTURE.scaled(0.0))
    assert float((without - dropped).abs().max()) > 1e-3  # the bias is left


def test_gradients_reach_the_projections_with_and_without_checkpointing(make_image_bundle, pictures, rig, x):
    bundle = make_image_bundle("lcm")
    condition, cameras = encode_text(bundle, ["a mug", "a chair"]), encode_cameras(bundle, rig)
    reference = encode_reference(bundle, pictures, condition)
    weights = {name: p for name, p in bundle.unet.named_parameters() if "_ref." in name}
    bundle.unet.train()
    gradients = []
    for parameter in weights.values():
        parameter.requires_grad_(True)
    for is_checkpointing in (False, True):
        if is_checkpointing:
            bundle.unet.enable_gradient_checkpointing()
        noise = predict_noise(bundle, x, 500, condition, cameras, 4.0, 1.0, reference)
        gradients.append(torch.autograd.grad(noise.square().mean(), list(weights.values())))
    for name, plain, checkpointed in zip(weights, *gradients, strict=True):
        assert float(plain.abs().max()) > 0, name
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


def test_a_task_that_the_model_does_not_do_is_refused_in_words(
    image_bundle, bundle, x, pictures, condition, cameras, reference
):
    with pytest.raises(ValueError, match="tiny draws the views of a picture, and none was given; encode one"):
        predict_noise(image_bundle, x, 500, condition, cameras, 4.0)
    with pytest.raises(
        ValueError, match=r"tiny draws views of a text .* \(mvadapter_i2mv_sdxl.safetensors of"
    ):
        predict_noise(bundle, x, 500, condition, cameras, 4.0, 1.0, reference)
    with pytest.raises(ValueError, match="tiny draws views of a text and cannot see a picture"):
        encode_reference(bundle, pictures, condition)
    with pytest.raises(ValueError, match="1 pictures were given for 2 sets; give one each"):
        predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference.select([0]))


def test_features_of_a_picture_of_another_size_are_read(image_bundle, x, condition, cameras):
    wide = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(9))
    reference = encode_reference(image_bundle, wide, condition)
    assert reference.states[MID].shape == (2, 2 * 3, 32)  # latents of 6 x 10, halved twice, rounded up
    noise = predict_noise(image_bundle, x, 500, condition, cameras, 4.0, 1.0, reference)
    assert bool(noise.isfinite().all())
