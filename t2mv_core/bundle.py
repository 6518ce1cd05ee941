"""The model as one value: records only, which `loading` fills and everything else reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from .defaults import ModelDefaults, find_defaults
from .formats.sources import ModelSources
from .schedule import NoiseSchedule, with_solver

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


Task = Literal["text-to-multiview", "image-to-multiview"]
"""What a model draws views from: its MV-Adapter decides."""


@dataclass(frozen=True)
class LoraHandle:
    """One LoRA acting in a bundle.

    Attributes:
        name: under which its weights are attached to the UNet.
        strength: factor on its effect; 1 is as trained, 0 none.
        num_matched: modules of the UNet it changes.
        unmatched: keys of its file this UNet has no place for.
        layout: of its file, a word of `lora.layouts`.
        path: its file; None for one that was made here.
        holder: keeps a LoRA from a file attached, see `lora.adapters.hold_lora`.
        notes: sentences on what its file does not say, or says in vain.
    """

    name: str
    strength: float = 1.0
    num_matched: int = 0
    unmatched: tuple[str, ...] = ()
    layout: str = ""
    path: Path | None = None
    holder: object = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelBundle:
    """A loaded multiview model; never changed, only replaced by a light copy over the same weights.

    Attributes:
        unet: with multiview attention installed.
        vae: pictures <-> latents.
        text_encoder: SDXL's first.
        text_encoder_2: SDXL's second, with the pooled output.
        camera_encoder: T2I-Adapter for camera 6-vectors.
        schedule: noise schedule and solver.
        sources: what the parts were loaded from.
        loras: LoRAs acting on the UNet, see `lora.adapters`.
        has_sequential_guidance: classifier-free guidance in two passes of half the batch, which takes less
            memory; models with a guidance embedding have one pass anyway.
        has_zeros_for_no_prompt: guidance without a negative prompt starts from zeros, as SDXL's does;
            else from the empty text.
        notices: what its files say or hold that has no effect here, in sentences.
        tasks: what it can draw views from.
    """

    unet: UNet2DConditionModel = field(repr=False)
    vae: AutoencoderKL = field(repr=False)
    text_encoder: CLIPTextModel = field(repr=False)
    text_encoder_2: CLIPTextModelWithProjection = field(repr=False)
    camera_encoder: T2IAdapter = field(repr=False)
    schedule: NoiseSchedule = field(repr=False)
    sources: ModelSources = field(default_factory=ModelSources)
    loras: tuple[LoraHandle, ...] = ()
    has_sequential_guidance: bool = False
    has_zeros_for_no_prompt: bool = True
    notices: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("text-to-multiview",)

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
    def defaults(self) -> ModelDefaults:
        """What to sample with where the user names no number."""
        is_of_picture = "image-to-multiview" in self.tasks
        return find_defaults(
            self.sources.model, self.has_guidance_embedding, self.schedule.solver_name, is_of_picture
        )

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

    def modules(self) -> dict[str, nn.Module]:
        """Return the big parts by name, for whoever manages memory."""
        names = ("unet", "vae", "text_encoder", "text_encoder_2", "camera_encoder")
        return {name: getattr(self, name) for name in names}

    def with_solver(self, solver: str) -> ModelBundle:
        """Return the same model with another solver, a word of `schedule.SOLVERS`."""
        schedule, sources = with_solver(self.schedule, solver), replace(self.sources, solver=solver)
        return replace(self, schedule=schedule, sources=sources)
