"""Loading a model: the one place that assembles a `ModelBundle` from the files of its parts."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .bundle import ModelBundle
from .formats.components import has_guidance_input, load_parts, read_scheduler_config
from .formats.configs import read_index
from .formats.infer_config import ADAPTER_LATENT_PX, LATENT_PX
from .formats.sources import ModelFiles, ModelSources, resolve_sources
from .formats.strict import without_weights
from .schedule import NoiseSchedule
from .scheduler_config import schedule_from_config
from .unet.adapter import create_camera_encoder, has_reference_weights, load_adapter
from .unet.attention import install_multiview_attention

logger = logging.getLogger(__name__)

_KEPT_PRECISE = ("norm", "time_embedding", "add_embedding", "conv_in", "conv_out", "lora_")
"""Parts of names of modules that are small and matter to every number."""


def load_bundle(
    sources: ModelSources | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
) -> ModelBundle:
    """Load a model; every weight of every file must fit. The MV-Adapter's weights say which task it does.

    Args:
        sources: where from; a string is `ModelSources(model=...)`.
        device: where to.
        dtype: precision of all parts.
        vae_dtype: that of the VAE; None is the same.

    Raises:
        FileNotFoundError: a folder or file is missing, or a Hub id is not cached and may not be downloaded.
        ValueError: a file is damaged, holds NaN, is another kind of model, or does not fit; or the solver is
            unknown.
    """
    if isinstance(sources, str):
        sources = ModelSources(model=sources)
    files, notices = resolve_sources(sources), list[str]()
    has_zeros = files.text_encoder.is_file() or read_index(files.text_encoder.parent, notices)
    schedule = _load_schedule(sources, files)
    parts = load_parts(files, dtype, notices, vae_dtype)
    unet = parts["unet"]
    _check_parts(files, **parts)
    has_reference = has_reference_weights(files.adapter)
    with without_weights():
        install_multiview_attention(unet, has_reference)
        widths = parts["vae"].config["block_out_channels"]
        camera_encoder = create_camera_encoder(unet, vae_scale_factor=2 ** (len(widths) - 1))
    load_adapter(unet, camera_encoder, files.adapter, dtype)
    if unet.config["sample_size"] == LATENT_PX:
        # MV-Adapter's views are smaller than SDXL's pictures.
        unet.register_to_config(sample_size=ADAPTER_LATENT_PX)
    bundle = ModelBundle(
        **parts,
        camera_encoder=camera_encoder,
        schedule=schedule,
        sources=sources,
        has_zeros_for_no_prompt=has_zeros,
        notices=tuple(dict.fromkeys(notices)),
        tasks=("image-to-multiview",) if has_reference else ("text-to-multiview",),
    )
    for notice in (*bundle.notices, *schedule.notices):
        logger.warning("%s", notice)
    for name, module in bundle.modules().items():
        precision = (vae_dtype or dtype) if name == "vae" else dtype
        # Not the module's own `to`: diffusers' warns of modules to keep in float32, though there are none.
        nn.Module.to(module, device=device, dtype=precision).eval().requires_grad_(False)
    return bundle


def with_schedule_of(bundle: ModelBundle, solver: str | None) -> ModelBundle:
    """Return the same weights with the schedule that loading them with this solver would give.

    Raises:
        ValueError: the solver is unknown; or it is None, and we do not sample as the scheduler's file says.
    """
    sources = replace(bundle.sources, solver=solver)
    if sources == bundle.sources:
        return bundle
    files = resolve_sources(replace(sources, allow_download=False))
    return replace(bundle, sources=sources, schedule=_load_schedule(sources, files))


def _load_schedule(sources: ModelSources, files: ModelFiles) -> NoiseSchedule:
    solver = sources.solver
    if solver is None and has_guidance_input(files.unet):
        # Only a distilled consistency model has this input; LCM-SDXL's UNet is often used with SDXL's folder.
        solver = "lcm"
    return schedule_from_config(read_scheduler_config(files.scheduler), solver)


def with_float8_storage(bundle: ModelBundle) -> ModelBundle:
    """Return a bundle whose UNet keeps its large weights in 8 bits and computes in the old one's precision.

    Weights are rounded to float8_e4m3fn (3 bits of mantissa): half the memory of bfloat16, other pictures,
    and slower, as each layer is unpacked for its call. Norms, embeddings of time and size, first and last
    convolution and LoRAs keep their precision. The UNet is a copy: the old bundle stays as it was, and
    Python frees its weights once nobody holds it. For sampling only: a backward pass through it fails.

    Raises:
        ValueError: this diffusers is too old.
    """
    if not hasattr(bundle.unet, "enable_layerwise_casting"):
        raise ValueError("8-bit storage needs diffusers 0.33 or newer; update it, or do without.")
    rounded = {
        id(module.weight): nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        for name, module in bundle.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(part in name for part in _KEPT_PRECISE)
    }
    # deepcopy takes them for copied already: the full-precision weights never exist twice.
    unet = copy.deepcopy(bundle.unet, rounded)  # type: ignore[arg-type]
    unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=bundle.dtype, skip_modules_pattern=_KEPT_PRECISE
    )
    return replace(bundle, unet=unet)


def _check_parts(files: ModelFiles, unet: Any, vae: Any, text_encoder: Any, text_encoder_2: Any) -> None:
    unet_channels, vae_channels = unet.config["in_channels"], vae.config["latent_channels"]
    if unet_channels != vae_channels:
        raise ValueError(
            f"{files.vae} makes latents of {vae_channels} channels, the UNet takes {unet_channels}: it is "
            "the VAE of another kind of model. Choose SDXL's."
        )
    unet_width = unet.config["cross_attention_dim"]
    text_width = text_encoder.config.hidden_size + text_encoder_2.config.hidden_size
    if unet_width != text_width:
        raise ValueError(
            f"The UNet of {files.unet} takes text features of width {unet_width}, the text encoders give "
            f"{text_width}: UNet and model do not belong together. Choose a UNet of the same kind."
        )
