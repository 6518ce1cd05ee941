"""SDXL at its published size with random weights, or as an outline without any (the meta device)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import CameraFeatures, compute_camera_features
from t2mv_core.formats.sources import ModelSources
from t2mv_core.scheduler_config import schedule_from_config
from t2mv_core.text import TextCondition
from t2mv_core.unet.adapter import create_camera_encoder
from t2mv_core.unet.attention import install_multiview_attention

from .sdxl_files import FULL, text_settings, unet_settings, vae_settings

LCM_TIME_COND_DIM = 256
TEXT_WIDTH, POOLED_WIDTH, NUM_TOKENS = sum(encoder[0] for encoder in FULL.text), FULL.pooled, FULL.tokens
SAMPLE_SIZE = 96  # 768 px, MV-Adapter's; SDXL's own says 128
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


def create_unet(
    is_lcm: bool, device: str, dtype: torch.dtype, has_reference: bool = False, **changes: Any
) -> Any:
    """Return the UNet with multiview attention; `changes` are to its configuration (fewer layers, say)."""
    from diffusers import UNet2DConditionModel

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made in its precision: in float32 first it would take twice the memory
    try:
        with torch.device(device):
            settings = unet_settings(replace(FULL, guidance=LCM_TIME_COND_DIM if is_lcm else None))
            unet = UNet2DConditionModel(**{**settings, "sample_size": SAMPLE_SIZE, **changes})
            install_multiview_attention(unet, has_reference)
    finally:
        torch.set_default_dtype(before)
    return unet.eval().requires_grad_(False)


def create_bundle(is_lcm: bool, device: str, dtype: torch.dtype, **changes: Any) -> ModelBundle:
    """Return the whole model; `changes` are to the UNet's configuration."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device(device):
        text_encoder = CLIPTextModel(CLIPTextConfig(**text_settings(FULL, 0)))
        text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(FULL, 1)))
    for module in (text_encoder, text_encoder_2):
        torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
    bundle = create_textless_bundle(is_lcm, device, dtype, **changes)
    return replace(bundle, text_encoder=text_encoder, text_encoder_2=text_encoder_2)


def create_textless_bundle(is_lcm: bool, device: str, dtype: torch.dtype, **changes: Any) -> ModelBundle:
    """Return the model without text encoders, for conditions that are drawn."""
    from diffusers import AutoencoderKL

    unet = create_unet(is_lcm, device, dtype, **changes)
    with torch.device(device):
        others = AutoencoderKL(**vae_settings(FULL)), create_camera_encoder(unet, 8)
    vae, camera_encoder = (torch.nn.Module.to(x, dtype).eval().requires_grad_(False) for x in others)
    schedule = schedule_from_config(
        {"_class_name": "LCMScheduler" if is_lcm else "DDIMScheduler", **SCHEDULE}
    )
    sources = ModelSources(model="full-size SDXL, random weights")
    nothing: Any = None
    return ModelBundle(unet, vae, nothing, nothing, camera_encoder, schedule, sources)


def draw_condition(num_prompts: int, image_px: int, device: str, dtype: torch.dtype) -> TextCondition:
    """Return random numbers in the shapes of what text encoders give."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    sizes = torch.tensor([[image_px, image_px, 0, 0, image_px, image_px]], device=device).to(dtype)
    embeds = [draw(num_prompts, NUM_TOKENS, TEXT_WIDTH), draw(num_prompts, POOLED_WIDTH)]
    negative = [draw(num_prompts, NUM_TOKENS, TEXT_WIDTH), draw(num_prompts, POOLED_WIDTH)]
    return TextCondition(*embeds, sizes.expand(num_prompts, -1), *negative)


@torch.no_grad()
def camera_features(bundle: ModelBundle, num_views: int, image_px: int) -> CameraFeatures:
    """Return the features of evenly spaced cameras, through the bundle's camera encoder."""
    rig = CameraRig(tuple(360.0 * view / num_views for view in range(num_views)), (0.0,) * num_views)
    return compute_camera_features(bundle.camera_encoder, rig, image_px, image_px)
