"""Image to multiview at SDXL's size: the kept states counted, one layer of each width re-computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.full_size import create_unet, draw_condition
from benchmarks.measuring import flash_attention_on_meta, measure_live
from t2mv_core.denoiser import CameraFeatures, call_unet
from t2mv_core.reference import compute_reference_features
from tests.core.test_sdxl_size import BF16, fill, relative

pytestmark = pytest.mark.slow

NUM_VIEWS, LATENT_PX = 3, 16
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def unet():
    """A layer of each of SDXL's widths, random weights that keep the size of their input."""
    layers = {"layers_per_block": 1, "transformer_layers_per_block": 1, "sample_size": LATENT_PX}
    unet = create_unet(False, "meta", torch.bfloat16, has_reference=True, **layers).to_empty(device="cpu")
    return fill(unet)


@pytest.fixture(scope="module")
def features(unet):
    latents = torch.randn(1, 4, LATENT_PX, LATENT_PX, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return compute_reference_features(unet, latents, draw_condition(1, 128, "cpu", torch.bfloat16))


@torch.no_grad()
def test_kept_states_are_a_plain_unets(unet, features):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(unet.config)
    state = {name: x for name, x in unet.state_dict().items() if ".processor." not in name}
    plain.load_state_dict(state, assign=True)
    seen = {}
    for name, module in plain.named_modules():
        if name.endswith(".norm1") and "transformer_blocks" in name:
            module.register_forward_hook(lambda *given, name=name: seen.update({name: given[2]}))
    condition = draw_condition(1, 128, "cpu", torch.bfloat16)
    latents = torch.randn(1, 4, LATENT_PX, LATENT_PX, generator=torch.Generator().manual_seed(2)).bfloat16()
    texts = {"text_embeds": condition.pooled_embeds, "time_ids": condition.time_ids}
    plain.eval()(latents, 0, condition.prompt_embeds, added_cond_kwargs=texts)
    assert {tuple(states.shape) for states in features.states.values()} == {(1, 64, 640), (1, 16, 1280)}
    assert len(seen) == len(features.states)
    for name, states in features.states.items():
        # Attention in half precision is computed in float32 by us, not by diffusers: a few roundings each.
        assert relative(states, seen[name.replace("attn1", "norm1")]) < 16 * BF16, name


@torch.no_grad()
def test_one_attention_block_is_the_plain_computation(unet, features):
    attention, seen = unet.get_submodule(MID), {}
    processor = attention.processor

    def remember(_module, arguments, output):
        seen.update(tokens=arguments[0].float(), output=output.float())

    hook = attention.register_forward_hook(remember)
    x = torch.randn(1, NUM_VIEWS, 4, LATENT_PX, LATENT_PX, generator=torch.Generator().manual_seed(1))
    no_residuals = CameraFeatures((torch.zeros(NUM_VIEWS, 320, 8, 8),))
    arguments = unet, x, torch.tensor([500]), draw_condition(1, 128, "cpu", torch.bfloat16), no_residuals
    call_unet(*arguments, 0.0, None, features.scaled(0.7))
    hook.remove()

    def project(layer, tokens):
        return F.linear(tokens, layer.weight.float(), None if layer.bias is None else layer.bias.float())

    def attend(query, key, value, mask):  # [l, 1280], [n, 1280], [n, 1280], [l, n] or True
        heads = (x.unflatten(-1, (20, 64)).transpose(0, 1) for x in (query, key, value))
        q, k, v = heads
        scores = (q @ k.transpose(1, 2) / 8).masked_fill(~torch.as_tensor(mask), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def read(suffix, query, source, mask=True):
        layers = [getattr(processor if suffix else attention, f"to_{part}{suffix}") for part in "qkv"]
        out = getattr(processor if suffix else attention, f"to_out{suffix}")[0]
        inputs = (query, source, source)
        return project(out, attend(*(project(p, y) for p, y in zip(layers, inputs, strict=True)), mask))

    tokens, picture = seen["tokens"], features.states[MID][0].float()  # [V, 4·4, 1280], [4·4, 1280]
    rows = torch.arange(16) // 4
    same_row = (rows[:, None] == rows[None]).repeat(1, NUM_VIEWS)
    views = tokens.flatten(0, 1)
    expected = torch.stack(
        [read("", y, y) + read("_mv", y, views, same_row) + 0.7 * read("_ref", y, picture) for y in tokens]
    )
    assert relative(seen["output"], expected) < 4 * BF16
    assert relative(expected, expected - 0.7 * torch.stack([read("_ref", y, picture) for y in tokens])) > 0.1


@torch.no_grad()
def test_the_kept_states_are_all_the_memory_that_a_picture_takes():
    """docs/performance.md, on the meta device: 112.5 MiB once per set, whatever the number of views."""
    whole = create_unet(False, "meta", torch.bfloat16, has_reference=True)
    own = sum(p.numel() for name, p in whole.named_parameters() if "_ref." in name)
    # 10 blocks of 640 wide and 60 of 1280 wide, as the multiview attention has.
    assert own == 10 * (4 * 640**2 + 640) + 60 * (4 * 1280**2 + 1280)
    condition = draw_condition(1, 768, "meta", torch.bfloat16)
    with flash_attention_on_meta():
        features = compute_reference_features(whole, torch.zeros(1, 4, 96, 96, device="meta"), condition)
        kept = sum(states.nbytes for states in features.states.values())
        # 768 px are 48 x 48 tokens in the wider level and 24 x 24 in the narrower, in 2 bytes each.
        assert kept == 2 * (10 * 48**2 * 640 + 60 * 24**2 * 1280) == 112.5 * 2**20
        peaks = []
        for reference in (None, features):
            x = torch.zeros(2, 6, 4, 96, 96, device="meta")  # both halves of guidance
            cameras = CameraFeatures((torch.zeros(6, 320, 48, 48, device="meta"),))
            arguments = whole, x, torch.zeros(2, device="meta"), condition.with_negative(), cameras
            peaks.append(measure_live(lambda: call_unet(*arguments, 0.0, None, reference))[0])  # noqa: B023
    assert peaks[1] == peaks[0]
