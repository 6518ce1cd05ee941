"""One evaluation of full-size SDXL with MV-Adapter, random bf16 weights, against plain re-computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.full_size import LCM_TIME_COND_DIM, create_unet, draw_condition
from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import compute_camera_features, guidance_embedding, predict_noise
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.unet.adapter import create_camera_encoder

pytestmark = pytest.mark.slow

IMAGE_PX, VIEW_SCALE, GUIDANCE = 128, 0.7, 7.0
RIG = CameraRig((0.0, 90.0, 225.0), (0.0, 0.0, 20.0))
NUM_VIEWS = 3
BLOCK = "mid_block.attentions.0.transformer_blocks.4"
BF16 = 2.0**-8
"""Half the distance of two neighbouring bfloat16 numbers, relative to them."""


@torch.no_grad()
def fill(module):
    """Random weights in place, each keeping the size of its input; a billion draws would take minutes."""
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        flat, scale = parameter.view(-1), parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
        values = (scale * noise).to(parameter.dtype)
        for start in range(0, len(flat), len(values)):
            part = flat[start : start + len(values)]
            part.copy_(values[: len(part)])
    return module


@pytest.fixture(scope="module")
def bundle():
    unet = create_unet(True, "meta", torch.bfloat16, sample_size=IMAGE_PX // 8).to_empty(device="cpu")
    camera_encoder = create_camera_encoder(unet, 8)
    fill(unet)
    fill(camera_encoder)
    schedule = schedule_from_config({"_class_name": "LCMScheduler", "clip_sample": False})
    # Text encoders and VAE have no part in a UNet evaluation.
    return ModelBundle(unet, None, None, None, camera_encoder.requires_grad_(False), schedule)


@pytest.fixture(scope="module")
def cameras(bundle):
    return compute_camera_features(bundle.camera_encoder, RIG, IMAGE_PX, IMAGE_PX)


def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, NUM_VIEWS, 4, IMAGE_PX // 8, IMAGE_PX // 8, generator=generator)
    return x, draw_condition(1, IMAGE_PX, "cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def evaluation(bundle, cameras):
    """The prediction, and what went into and came out of some of the UNet's modules (copies)."""
    seen, hooks = {}, []

    def watch(name):
        def remember(_module, args, kwargs, output):
            first = output[0] if isinstance(output, tuple) else output
            seen[name] = ([x.clone() for x in args if isinstance(x, torch.Tensor)], kwargs, first.clone())

        def arrive(_module, args, kwargs):
            entering = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            seen[f"{name}, entering"] = entering.clone()

        module = bundle.unet.get_submodule(name)
        hooks.append(module.register_forward_hook(remember, with_kwargs=True))
        hooks.append(module.register_forward_pre_hook(arrive, with_kwargs=True))

    for name in (
        f"{BLOCK}.attn1",
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
        "time_embedding",
    ):
        watch(name)
    x, condition = inputs()
    noise = predict_noise(bundle, x, 500, condition, cameras, GUIDANCE, VIEW_SCALE)
    for hook in hooks:
        hook.remove()
    return noise, seen


def relative(got, expected):
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def test_it_is_sdxl_with_mv_adapter(bundle):
    mv = sum(p.numel() for name, p in bundle.unet.named_parameters() if "_mv" in name)
    own = sum(p.numel() for p in bundle.unet.parameters()) - mv
    # Published: 2,567,463,684 parameters; LCM's cond_proj adds 320 x 256.
    assert own == 2_567_463_684 + 320 * 256
    # 4 projections of w x w and a bias of w: 10 blocks of 640 wide and 60 of 1280 wide.
    assert mv == 10 * (4 * 640**2 + 640) + 60 * (4 * 1280**2 + 1280)


def test_prediction_is_finite_and_depends_on_the_cameras(bundle, cameras, evaluation):
    noise, _ = evaluation
    assert noise.shape == (1, NUM_VIEWS, 4, IMAGE_PX // 8, IMAGE_PX // 8)
    assert bool(noise.isfinite().all())
    x, condition = inputs()
    blind = predict_noise(bundle, x, 500, condition, cameras, GUIDANCE, view_scale=0.0)
    assert relative(blind, noise) > 10 * BF16


def test_one_attention_block_is_the_plain_computation(bundle, evaluation):
    """In float32, query after query: keys of its picture, and keys of its row in all views."""
    attention = bundle.unet.get_submodule(f"{BLOCK}.attn1")
    processor, (_, _, output) = attention.processor, evaluation[1][f"{BLOCK}.attn1"]
    tokens = evaluation[1][f"{BLOCK}.attn1, entering"].float()  # [V, 4·4, 1280]: 16 px latents, halved twice
    heads, side = 20, 4

    def weights(linear):
        return linear.weight.float(), None if linear.bias is None else linear.bias.float()

    def attend(query, key, value):  # [1, C], [n, C], [n, C]
        parts = []
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
            parts.append(torch.softmax(q @ k.T / (1280 / heads) ** 0.5, dim=-1) @ v)
        return torch.cat(parts, dim=-1)

    own = [F.linear(tokens, *weights(p)) for p in (attention.to_q, attention.to_k, attention.to_v)]
    mv = [F.linear(tokens, *weights(p)) for p in (processor.to_q_mv, processor.to_k_mv, processor.to_v_mv)]
    expected = torch.zeros_like(tokens)
    for view in range(NUM_VIEWS):
        for place in range(side * side):
            row = slice(place // side * side, place // side * side + side)
            plain = attend(own[0][view, place : place + 1], own[1][view], own[2][view])
            keys, values = (torch.cat([x[v, row] for v in range(NUM_VIEWS)]) for x in mv[1:])
            across = attend(mv[0][view, place : place + 1], keys, values)
            expected[view, place] = F.linear(plain, *weights(attention.to_out[0]))[0]
            expected[view, place] += F.linear(across, *weights(processor.to_out_mv[0]))[0]
    assert relative(output, expected) < 4 * BF16


def test_one_camera_residual_is_the_plain_computation(bundle, cameras, evaluation):
    encoder = bundle.camera_encoder
    pictures = RIG.embedding().bfloat16()[:, :, None, None].expand(-1, -1, IMAGE_PX, IMAGE_PX)
    # Pixel by 16 x 16 pixels into channels, a convolution, two residual layers.
    patches = pictures.float().reshape(NUM_VIEWS, 6, 8, 16, 8, 16).permute(0, 1, 3, 5, 2, 4)
    own = encoder.adapter if hasattr(encoder, "adapter") else encoder
    h = F.conv2d(patches.reshape(NUM_VIEWS, 6 * 256, 8, 8), own.conv_in.weight, own.conv_in.bias, padding=1)
    for layer in own.body[0].resnets:
        inner = F.conv2d(h, layer.block1.weight, layer.block1.bias, padding=1).clamp(min=0)
        h = h + F.conv2d(inner, layer.block2.weight, layer.block2.bias)
    assert relative(cameras.residuals[0], h) < BF16
    # ... and it is added, times the view scale, to what the first block gives.
    left, arrived = evaluation[1]["down_blocks.0"][2], evaluation[1]["down_blocks.1, entering"]
    assert torch.equal(arrived, left + (VIEW_SCALE * cameras.residuals[0].bfloat16()))
    assert not torch.equal(arrived, left)


def test_the_last_camera_residual_joins_after_the_middle(cameras, evaluation):
    left, arrived = evaluation[1]["mid_block"][2], evaluation[1]["up_blocks.0, entering"]
    assert torch.equal(arrived, left + (VIEW_SCALE * cameras.residuals[3].bfloat16()))


def test_guidance_embedding_is_diffusers(evaluation, bundle):
    from diffusers import LatentConsistencyModelPipeline

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    scales = torch.tensor([1.0, 1.5, GUIDANCE, 13.0])
    expected = theirs(None, scales - 1, embedding_dim=LCM_TIME_COND_DIM)
    # sin and cos of angles of up to 12000 in float32: a rounding of the angle is 5e-4.
    torch.testing.assert_close(guidance_embedding(scales, LCM_TIME_COND_DIM), expected, atol=1e-3, rtol=0)
    # In the UNet: t's embedding plus the projected w goes through two layers.
    (time, guidance), _, output = evaluation[1]["time_embedding"]
    assert torch.equal(guidance, expected[2].bfloat16().expand(NUM_VIEWS, -1))
    layers = {name: p.float() for name, p in bundle.unet.time_embedding.named_parameters()}
    h = time.float() + F.linear(guidance.float(), layers["cond_proj.weight"])
    h = F.silu(F.linear(h, layers["linear_1.weight"], layers["linear_1.bias"]))
    h = F.linear(h, layers["linear_2.weight"], layers["linear_2.bias"])
    assert relative(output, h) < 4 * BF16
