"""SDXL at its published size with random weights, or as an outline without any (the meta device).

The numbers are those of the public configurations of stabilityai/stable-diffusion-xl-base-1.0,
latent-consistency/lcm-sdxl (`time_cond_proj_dim`) and madebyollin/sdxl-vae-fp16-fix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import CameraFeatures, compute_camera_features
from t2mv_core.formats.sources import ModelSources
from t2mv_core.schedule import schedule_from_config
from t2mv_core.text import TextCondition
from t2mv_core.unet.adapter import create_camera_encoder
from t2mv_core.unet.attention import install_multiview_attention

LCM_TIME_COND_DIM = 256
TEXT_WIDTH, POOLED_WIDTH, NUM_TOKENS = 2048, 1280, 77
UNET: dict[str, Any] = {
    "sample_size": 96,  # 768 px, MV-Adapter's; SDXL's own says 128
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # diffusers' name for the number of heads
    "cross_attention_dim": TEXT_WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * 256,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "projection_dim": 768,
}  # fmt: skip
TEXT_ENCODER_2: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


def create_unet(is_lcm: bool, device: str, dtype: torch.dtype, **changes: Any) -> Any:
    """The UNet with multiview attention; `changes` are to its configuration (fewer layers, say)."""
    from diffusers import UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made in its precision: in float32 first it would take twice the memory
    try:
        with torch.device(device):
            cond_dim = LCM_TIME_COND_DIM if is_lcm else None
            unet = UNet2DConditionModel(**{**UNET, "time_cond_proj_dim": cond_dim, **changes})
            install_multiview_attention(unet)
    finally:
        torch.set_default_dtype(before)
    return unet.eval().requires_grad_(False)


def create_bundle(is_lcm: bool, device: str, dtype: torch.dtype, **changes: Any) -> ModelBundle:
    """The whole model; `changes` are to the UNet's configuration."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device(device):
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2))
    for module in (text_encoder, text_encoder_2):
        torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
    bundle = create_textless_bundle(is_lcm, device, dtype, **changes)
    return replace(bundle, text_encoder=text_encoder, text_encoder_2=text_encoder_2)


def create_textless_bundle(is_lcm: bool, device: str, dtype: torch.dtype, **changes: Any) -> ModelBundle:
    """The model without its text encoders, whose place is empty: for conditions made otherwise."""
    from diffusers import AutoencoderKL

    unet = create_unet(is_lcm, device, dtype, **changes)
    with torch.device(device):
        others = AutoencoderKL(**VAE), create_camera_encoder(unet, 8)
    vae, camera_encoder = (torch.nn.Module.to(x, dtype).eval().requires_grad_(False) for x in others)
    schedule = schedule_from_config(
        {"_class_name": "LCMScheduler" if is_lcm else "DDIMScheduler", **SCHEDULE}
    )
    sources = ModelSources(model="full-size SDXL, random weights")
    nothing: Any = None
    return ModelBundle(unet, vae, nothing, nothing, camera_encoder, schedule, sources)


def draw_condition(num_prompts: int, image_px: int, device: str, dtype: torch.dtype) -> TextCondition:
    """What the text encoders would give, as random numbers of the same shapes."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    sizes = torch.tensor([[image_px, image_px, 0, 0, image_px, image_px]], device=device).to(dtype)
    embeds = [draw(num_prompts, NUM_TOKENS, TEXT_WIDTH), draw(num_prompts, POOLED_WIDTH)]
    negative = [draw(num_prompts, NUM_TOKENS, TEXT_WIDTH), draw(num_prompts, POOLED_WIDTH)]
    return TextCondition(*embeds, sizes.expand(num_prompts, -1), *negative)


@torch.no_grad()
def camera_features(bundle: ModelBundle, num_views: int, image_px: int) -> CameraFeatures:
    """Of evenly spaced cameras, through the bundle's camera encoder."""
    rig = CameraRig(tuple(360.0 * view / num_views for view in range(num_views)), (0.0,) * num_views)
    return compute_camera_features(bundle.camera_encoder, rig, image_px, image_px)
