"""The model as one value: its parts (`ModelBundle`), loaded from where they come from (`ModelSources`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .formats.components import SHARED_KEY, PartsLoader, read_scheduler_config
from .formats.infer_config import ADAPTER_LATENT_PX, LATENT_PX
from .formats.sources import PRESETS, ModelFiles, ModelSources, resolve_sources
from .formats.strict import without_weights
from .lora.adapters import LoraHandle
from .memory import MemorySettings
from .schedule import NoiseSchedule, schedule_from_config, with_solver
from .text import ClipTokenizer, clip_tokenizer
from .unet.adapter import create_camera_encoder, load_adapter
from .unet.attention import install_multiview_attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

__all__ = ["PRESETS", "SHARED_KEY", "ModelBundle", "ModelSources", "load_bundle"]


@dataclass(frozen=True)
class ModelBundle:
    """A loaded text-to-multiview model; never changed, only replaced by a light copy over the same weights.

    Attributes:
        unet: with multiview attention installed.
        vae: pictures <-> latents.
        text_encoder: SDXL's first.
        text_encoder_2: SDXL's second, with the pooled output.
        camera_encoder: T2I-Adapter for camera 6-vectors.
        schedule: noise schedule and solver.
        sources: what was loaded.
        loras: LoRAs acting on the UNet, see `lora`.
        memory: how much memory the UNet's calls may take, see `memory`.
    """

    unet: UNet2DConditionModel = field(repr=False)
    vae: AutoencoderKL = field(repr=False)
    text_encoder: CLIPTextModel = field(repr=False)
    text_encoder_2: CLIPTextModelWithProjection = field(repr=False)
    camera_encoder: T2IAdapter = field(repr=False)
    schedule: NoiseSchedule = field(repr=False)
    sources: ModelSources = field(default_factory=ModelSources)
    loras: tuple[LoraHandle, ...] = ()
    memory: MemorySettings = MemorySettings()

    @property
    def name(self) -> str:
        """What the model is called in metadata and reports."""
        return self.sources.model

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet."""
        return next(self.unet.parameters()).dtype

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether guidance is an input of the UNet (LCM) instead of a second pass."""
        return self.unet.config["time_cond_proj_dim"] is not None

    @property
    def latent_px(self) -> int:
        """Height and width of the latents."""
        return int(self.unet.config["sample_size"])

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return int(self.unet.config["in_channels"])

    @property
    def image_px(self) -> int:
        """Height and width of the pictures, pixels."""
        return self.latent_px * self.vae_scale_factor

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent pixel."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def tokenizer(self) -> ClipTokenizer:
        """Of the first text encoder."""
        return clip_tokenizer(int(self.text_encoder.config.vocab_size), pads_with_end=True)

    @property
    def tokenizer_2(self) -> ClipTokenizer:
        """Of the second text encoder."""
        return clip_tokenizer(int(self.text_encoder_2.config.vocab_size))

    def modules(self) -> dict[str, nn.Module]:
        """The big parts by name, for whoever manages memory."""
        names = ("unet", "vae", "text_encoder", "text_encoder_2", "camera_encoder")
        return {name: getattr(self, name) for name in names}

    def with_solver(self, solver: str) -> ModelBundle:
        """Return the same model with another solver, a word of `schedule.SOLVERS`."""
        return replace(
            self,
            schedule=with_solver(self.schedule, solver),
            sources=replace(self.sources, solver=solver),
        )


def load_bundle(
    sources: ModelSources | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ModelBundle:
    """Load a model; every weight of every file must fit.

    Args:
        sources: where from; a string is `ModelSources(model=...)`.
        device: where to.
        dtype: precision of all parts.

    Raises:
        FileNotFoundError: a folder or file is missing, or a Hub id is not cached and may not be downloaded.
        ValueError: a file is damaged, holds NaN, is another kind of model, or does not fit; or the solver is
            unknown.
    """
    if isinstance(sources, str):
        sources = ModelSources(model=sources)
    files = resolve_sources(sources)
    schedule = schedule_from_config(read_scheduler_config(files.scheduler))
    if sources.solver is not None:
        schedule = with_solver(schedule, sources.solver)
    loader = PartsLoader(dtype)
    unet = loader.load_unet(files.unet, files.own_unet)
    vae = loader.load_vae(files.vae)
    _check_latents(unet, vae, files)
    with without_weights():
        install_multiview_attention(unet)
        camera_encoder = create_camera_encoder(unet, 2 ** (len(vae.config["block_out_channels"]) - 1))
    load_adapter(unet, camera_encoder, files.adapter, dtype)
    text_encoders = loader.load_text_encoders(files.text_encoder, files.text_encoder_2)
    _check_text(unet, text_encoders, files)
    if sources.solver is None and unet.config["time_cond_proj_dim"] is not None:
        # Only a distilled consistency model has this input; LCM-SDXL's UNet is often used with SDXL's folder.
        schedule = replace(schedule, solver="lcm")
    if unet.config["sample_size"] == LATENT_PX:
        unet.register_to_config(
            sample_size=ADAPTER_LATENT_PX
        )  # MV-Adapter's views are smaller than SDXL's pictures
    bundle = ModelBundle(unet, vae, *text_encoders, camera_encoder, schedule, sources)
    for module in bundle.modules().values():
        # Not the module's own `to`: diffusers' warns of modules to keep in float32, though there are none.
        nn.Module.to(module, device=device, dtype=dtype).eval().requires_grad_(False)
    return bundle


def _check_latents(unet: UNet2DConditionModel, vae: AutoencoderKL, files: ModelFiles) -> None:
    wanted, given = unet.config["in_channels"], vae.config["latent_channels"]
    if wanted != given:
        raise ValueError(
            f"{files.vae} makes latents of {given} channels, the UNet takes {wanted}: it is the VAE of "
            "another kind of model. Choose SDXL's."
        )


def _check_text(unet: UNet2DConditionModel, encoders: tuple[Any, Any], files: ModelFiles) -> None:
    wanted, given = (
        unet.config["cross_attention_dim"],
        sum(encoder.config.hidden_size for encoder in encoders),
    )
    if wanted != given:
        raise ValueError(
            f"The UNet of {files.unet} takes text features of width {wanted}, the text encoders give "
            f"{given}: UNet and model do not belong together. Choose a UNet of the same kind."
        )
