"""Pictures to reference features: what image to multiview knows of the picture it draws the views of.

The picture's clean latent goes once through the UNet, at timestep 0, with the prompt but without guidance,
cameras, multiview and reference attention. What every self-attention is given on the way is kept.

Source: MV-Adapter, arXiv:2412.03632.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .autocast import in_autocast_dtype
from .bundle import ModelBundle
from .denoiser import call_unet, check_reference
from .lora.adapters import activate_loras
from .text import TextCondition
from .unet.reference_attention import NO_PICTURE, ReferenceFeatures

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = [
    "NO_PICTURE",
    "ReferenceFeatures",
    "compute_reference_features",
    "encode_pictures",
    "encode_reference",
    "reference_of_latents",
]


@torch.no_grad()
def encode_reference(bundle: ModelBundle, pictures: Tensor, condition: TextCondition) -> ReferenceFeatures:
    """Encode the pictures of B sets, the bundle's LoRAs active.

    Args:
        bundle: a model of image to multiview.
        pictures: [B, 3, H, W] in [0, 1], the object as `reference_picture.frame_picture` frames it; trained
            at the size of the views.
        condition: text of the B sets; its negative part is not looked at.

    Raises:
        ValueError: the model is one of text, the pictures have another shape or number, or the VAE's output
            is not finite.
    """
    check_reference(bundle, NO_PICTURE, len(condition))
    factor = bundle.vae_scale_factor
    if pictures.ndim != 4 or pictures.shape[1] != 3 or any(side % factor for side in pictures.shape[2:]):
        raise ValueError(
            f"Pictures must be [B, 3, height, width] with sides that {factor} divides, not "
            f"{tuple(pictures.shape)}; frame them with reference_picture.frame_picture."
        )
    if len(pictures) != len(condition):
        raise ValueError(f"{len(pictures)} pictures were given for {len(condition)} sets; give one each.")
    return reference_of_latents(bundle, encode_pictures(bundle.vae, pictures), condition)


@torch.no_grad()
def reference_of_latents(bundle: ModelBundle, latents: Tensor, condition: TextCondition) -> ReferenceFeatures:
    """Do what is left of `encode_reference` after `encode_pictures`: the VAE is not needed any more."""
    activate_loras(bundle)
    return compute_reference_features(bundle.unet, latents.to(bundle.device), condition)


def compute_reference_features(
    unet: UNet2DConditionModel, latents: Tensor, condition: TextCondition
) -> ReferenceFeatures:
    """Run the UNet on clean latents of pictures, [B, C, h, w]; keep what its self-attentions are given."""
    timestep = torch.zeros(len(latents), dtype=torch.long)
    with _kept_states(unet) as states:
        call_unet(unet, latents[:, None], timestep, condition, cameras=None)
    return ReferenceFeatures(states)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode pictures into scaled latents: the mean of the VAE's posterior, no noise.

    Where that overflows in half precision, a copy of the VAE encodes in float32.

    Args:
        vae: its configuration holds the scaling factor; it is not changed.
        pictures: [B, 3, H, W] in [0, 1].

    Returns:
        [B, C, h, w], float32, on the VAE's device.

    Raises:
        ValueError: the encoder's output holds NaN or infinity, even in float32.
    """
    latents = _encode(vae, pictures)
    if vae.dtype != torch.float32 and not bool(latents.isfinite().all()):
        latents = _encode(copy.deepcopy(vae).float(), pictures)
    if not bool(latents.isfinite().all()):
        raise ValueError(
            "The VAE encoded the picture to NaN or infinity even in float32: its weights are damaged. Fetch "
            "the file again; for SDXL take madebyollin/sdxl-vae-fp16-fix."
        )
    return latents


def _encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    pixels = (2 * pictures - 1).to(vae.device, vae.dtype)
    return vae.encode(pixels).latent_dist.mean.float() * vae.config["scaling_factor"]


@contextmanager
def _kept_states(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the hidden states that every self-attention is given within the block, by its name."""
    states: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_keep, states, name))
        for name, module in unet.named_modules()
        if name.endswith(".attn1")
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _keep(states: dict[str, Tensor], name: str, _attention: nn.Module, inputs: tuple[Any, ...]) -> None:
    states[name] = in_autocast_dtype(inputs[0])
