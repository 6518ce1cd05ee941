"""The denoiser ε_θ(x_t, t, c, π): guidance, cameras and pictures around the one place that calls the UNet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat
from torch import Tensor

from .bundle import ModelBundle
from .cameras import CameraRig
from .formats.sources import ADAPTER_REPO, IMAGE_ADAPTER_FILE
from .lora.adapters import activate_loras, reactivate_in_backward
from .unet.reference_attention import ReferenceFeatures

if TYPE_CHECKING:
    from diffusers import T2IAdapter, UNet2DConditionModel

    from .text import TextCondition


@dataclass(frozen=True)
class CameraFeatures:
    """What the UNet gets to know of a rig: one residual per block, each [V, c, h, w].

    They depend on the cameras alone: computed once per rig, not per prompt, step or sample.
    """

    residuals: tuple[Tensor, ...]

    @property
    def num_views(self) -> int:
        """Number of views V."""
        return len(self.residuals[0])


def compute_camera_features(
    camera_encoder: T2IAdapter, rig: CameraRig, height_px: int, width_px: int
) -> CameraFeatures:
    """Run the camera encoder on the rig's 6-vectors, each broadcast over a picture of that size."""
    parameter = next(camera_encoder.parameters())
    embedding = rig.embedding().to(parameter.device, parameter.dtype)
    return CameraFeatures(tuple(camera_encoder(repeat(embedding, "v c -> v c h w", h=height_px, w=width_px))))


@torch.no_grad()
def encode_cameras(bundle: ModelBundle, rig: CameraRig) -> CameraFeatures:
    """Camera features of a rig for pictures of the bundle's size."""
    return compute_camera_features(bundle.camera_encoder, rig, bundle.image_px, bundle.image_px)


def guidance_embedding(guidance_scale: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of w - 1 that a latent consistency model takes instead of a second pass.

        [sin(1000 (w - 1) f_i), cos(1000 (w - 1) f_i)],   f_i = 10000^(-i / (dim/2 - 1))

    Source: LCM, arXiv:2310.04378, section 4.3.

    Args:
        guidance_scale: w, [n], >= 1 in training; 1 means no guidance.
        dim: the UNet's `time_cond_proj_dim`, even.

    Returns:
        [n, dim], float32.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=guidance_scale.device))
    angle = 1000.0 * (guidance_scale.float() - 1.0)[:, None] * frequency[None]
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def call_unet(
    unet: UNet2DConditionModel,
    x: Tensor,
    timestep: Tensor,
    condition: TextCondition,
    cameras: CameraFeatures | None,
    view_scale: float = 1.0,
    guidance: Tensor | None = None,
    reference: ReferenceFeatures | None = None,
) -> Tensor:
    """One UNet evaluation of all views together.

    Args:
        unet: SDXL-style UNet with multiview attention installed.
        x: latents, [B, V, C, H, W].
        timestep: [B], int64; the views of a prompt share it.
        condition: of B prompts; its negative part is not looked at.
        cameras: of V views; None for pictures by themselves (V = 1), which get neither camera residuals nor
            multiview attention.
        view_scale: s, multiplies the camera features.
        guidance: w of each prompt, [B], for UNets with a guidance embedding; else None.
        reference: pictures of the first of the B sets, for UNets with reference attention; the other sets go
            without. None, or a scale of 0, leaves the reference attention out.

    Returns:
        Predicted noise [B, V, C, H, W], in the UNet's dtype (float32 under autocast).

    Raises:
        ValueError: x, condition, timestep, cameras and reference disagree about B or V.
    """
    _check_counts(x, timestep, condition, cameras, reference)
    num_prompts, num_views, _, height, width = x.shape
    per_view = (lambda y: y.repeat_interleave(num_views, dim=0)) if num_views > 1 else (lambda y: y)
    dtype = next(unet.parameters()).dtype
    embedding = None
    if guidance is not None:
        embedding = guidance_embedding(guidance, unet.config["time_cond_proj_dim"]).to(dtype)
    residuals = None
    if cameras is not None:
        # diffusers adds these in place, and takes them from the list: hand over a fresh one.
        residuals = [
            repeat(view_scale * residual.to(dtype), "v c h w -> (b v) c h w", b=num_prompts)
            for residual in cameras.residuals
        ]
    noise = unet(
        rearrange(x, "b v c h w -> (b v) c h w").to(dtype),
        per_view(timestep.to(x.device)),
        encoder_hidden_states=condition.prompt_embeds.to(dtype),  # per prompt, see text_attention
        timestep_cond=None if embedding is None else per_view(embedding),
        added_cond_kwargs={
            "text_embeds": per_view(condition.pooled_embeds.to(dtype)),
            "time_ids": per_view(condition.time_ids.to(dtype)),
        },
        cross_attention_kwargs={
            "num_views": None if cameras is None else num_views,
            "latent_size": (height, width),
            "reference": None if reference is None or reference.scale == 0.0 else reference,
        },
        down_intrablock_additional_residuals=residuals,
        return_dict=False,
    )[0]
    return rearrange(noise, "(b v) c h w -> b v c h w", v=num_views)


def _check_counts(
    x: Tensor,
    timestep: Tensor,
    condition: TextCondition,
    cameras: CameraFeatures | None,
    reference: ReferenceFeatures | None,
) -> None:
    num_prompts, num_views = x.shape[:2]
    num_cameras = 1 if cameras is None else cameras.num_views
    if len(condition) != num_prompts or len(timestep) != num_prompts or num_cameras != num_views:
        raise ValueError(
            f"Latents of {num_prompts} prompts x {num_views} views were given with {len(condition)} prompt "
            f"conditions, {len(timestep)} timesteps and cameras of {num_cameras} views; they must agree."
        )
    if reference is not None and len(reference) > num_prompts:
        raise ValueError(f"{len(reference)} pictures were given for {num_prompts} sets; give one each.")


def predict_noise(
    bundle: ModelBundle,
    x: Tensor,
    timestep: int | Tensor,
    condition: TextCondition,
    cameras: CameraFeatures,
    guidance_scale: float,
    view_scale: float = 1.0,
    reference: ReferenceFeatures | None = None,
) -> Tensor:
    """Predict the noise in all views with text guidance w and view scale s, the bundle's LoRAs active.

    A UNet with a guidance embedding gets w as an input. Any other gets classifier-free guidance,

        ε = ε_negative + w (ε_prompt - ε_negative),

    whose second pass is left out at w = 1, where it has no effect. ε_negative knows no picture.

    Args:
        bundle: the model.
        x: latents x_t, [B, V, C, H, W].
        timestep: t, one number for all prompts or [B].
        condition: of B prompts.
        cameras: of V views.
        guidance_scale: w; 1 is no guidance.
        view_scale: s; 1 is as trained, 0 drops the view condition.
        reference: of B pictures, or `NO_PICTURE`, for a model of image to multiview; None for one of text.

    Returns:
        ε, [B, V, C, H, W].

    Raises:
        ValueError: shapes disagree, guidance needs a negative condition that is missing, or the model does
            not do the task.
    """
    check_reference(bundle, reference, len(x))
    steps = torch.as_tensor(timestep, dtype=torch.long).expand(len(x))

    def ask(
        x: Tensor,
        steps: Tensor,
        condition: TextCondition,
        reference: ReferenceFeatures | None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        noise = call_unet(bundle.unet, x, steps, condition, cameras, view_scale, guidance, reference)
        reactivate_in_backward(bundle, noise)
        return noise

    activate_loras(bundle)
    if bundle.has_guidance_embedding:
        guidance = torch.full((len(x),), float(guidance_scale), device=x.device)
        return ask(x, steps, condition, reference, guidance)
    if guidance_scale == 1.0:
        return ask(x, steps, condition, reference)
    if bundle.has_sequential_guidance:
        without = None if reference is None else reference.without_pictures()
        negative_noise = ask(x, steps, condition.negative(), without)
        prompt_noise = ask(x, steps, condition, reference)
    else:
        both = ask(torch.cat([x, x]), steps.repeat(2), condition.with_negative(), reference)
        prompt_noise, negative_noise = both.chunk(2)
    return negative_noise + guidance_scale * (prompt_noise - negative_noise)


def check_reference(bundle: ModelBundle, reference: ReferenceFeatures | None, num_sets: int) -> None:
    """Raise ValueError unless a model does the task that a picture, or none, asks for.

    Args:
        bundle: the model.
        reference: None asks for text to multiview; `NO_PICTURE` for image to multiview without a picture.
        num_sets: B.
    """
    is_of_picture = "image-to-multiview" in bundle.tasks
    if reference is None and is_of_picture:
        raise ValueError(
            f"{bundle.name} draws the views of a picture, and none was given; encode one with "
            "reference.encode_reference, or pass reference.NO_PICTURE to draw without."
        )
    if reference is not None and not is_of_picture:
        raise ValueError(
            f"{bundle.name} draws views of a text and cannot see a picture; load it with the MV-Adapter of "
            f"image to multiview ({IMAGE_ADAPTER_FILE} of {ADAPTER_REPO}), or leave the picture out."
        )
    if reference is not None and len(reference) not in (0, num_sets):
        raise ValueError(f"{len(reference)} pictures were given for {num_sets} sets; give one each.")
