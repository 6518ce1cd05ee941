"""SDXL's UNet (with LCM-SDXL's guidance input) and VAE at their real widths, fewer layers, random weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2mv_core.adapter import create_camera_encoder
from t2mv_core.attention import install_multiview_attention
from t2mv_core.bundle import ModelBundle, ModelSources
from t2mv_core.schedule import schedule_from_config
from t2mv_core.text import TextCondition

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

LATENT_PX = 16
WORDS, TEXT_WIDTH, POOLED_WIDTH = 77, 2048, 1280


def random_sdxl(layers: tuple[int, ...], num_prompts: int) -> tuple[ModelBundle, TextCondition]:
    """A bundle without text encoders, and random text conditions, float32; the same numbers every time.

    Args:
        layers: transformer layers of a block at width 640 and at width 1280; SDXL has 2 and 10.
        num_prompts: rows of the condition.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    unet = _create_unet(layers)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    parts = (unet, vae, nn.Identity(), nn.Identity(), create_camera_encoder(unet, 8))
    for module in parts:
        module.eval().requires_grad_(False)
    schedule = schedule_from_config({"_class_name": "LCMScheduler"})
    bundle = ModelBundle(*parts, schedule, ModelSources("random-sdxl"))  # type: ignore[arg-type]
    size = float(bundle.image_px)
    time_ids = torch.tensor([[size, size, 0.0, 0.0, size, size]]).expand(num_prompts, -1)
    words = torch.randn(num_prompts, WORDS, TEXT_WIDTH)
    return bundle, TextCondition(words, torch.randn(num_prompts, POOLED_WIDTH), time_ids)


def in_bfloat16(bundle: ModelBundle, layers: tuple[int, ...]) -> ModelBundle:
    """The same model in bfloat16 beside the given one, without ever a third copy."""
    with torch.device("meta"):
        unet = _create_unet(layers)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in bundle.unet.state_dict().items()}
    unet.load_state_dict(weights, assign=True)
    unet.eval().requires_grad_(False)
    vae, camera_encoder = (
        nn.Module.to(deepcopy(module), dtype=torch.bfloat16) for module in (bundle.vae, bundle.camera_encoder)
    )
    return replace(bundle, unet=unet, vae=vae, camera_encoder=camera_encoder)


def _create_unet(layers: tuple[int, ...]) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=LATENT_PX,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        transformer_layers_per_block=(1, *layers),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 256,
        time_cond_proj_dim=256,
    )
    install_multiview_attention(unet)
    return unet
