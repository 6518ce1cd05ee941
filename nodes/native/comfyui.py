"""ComfyUI's internals that the native nodes use, and its SDXL UNet as the MV-Adapter sees it.

The other files of this folder import ComfyUI's names from here alone: a new ComfyUI is a change in this file.

ComfyUI numbers a UNet's blocks as SDXL's original layout does; the adapter's file has diffusers' names. Sizes
come from the layers, not from their weights, whose shape differs in quantised models (GGUF).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.lora as comfy_lora
import comfy.model_patcher
import comfy.model_sampling as model_sampling
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_patcher import ModelPatcher
from comfy.ops import manual_cast
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.samplers import KSAMPLER
from torch import nn

from ...t2mv_core.formats.key_mapping import diffusers_unet_name
from ..common.memory import preferred_dtype

__all__ = [
    "CLONES_KEY", "CLONES_MATCHED", "DEVICE_OPTION", "KSAMPLER", "ModelPatcher", "WrappersMP", "comfy_lora",
    "k_diffusion", "model_sampling", "optimized_attention", "timestep_embedding",
]  # fmt: skip

# Several GPUs (MultiGPU CFG Split): copies of a model with its hooks, each on a device of its own.
CLONES_KEY = "multigpu"
"""Key of the copies among a model's `additional_models`."""
DEVICE_OPTION = "multigpu_thread_device"
"""In `transformer_options`: the device that evaluates."""
CLONES_MATCHED = getattr(CallbacksMP, "ON_MATCH_MULTIGPU_CLONES", "on_match_multigpu_clones")
"""Callback after a copy got its model's patches, before it is loaded."""

BlockKey = tuple[str, int, int]
"""How ComfyUI names a transformer block: "input", "middle" or "output"; number of the block; number in it."""
_ATTENTION = re.compile(r"(input_blocks|middle_block|output_blocks)\.(.+)\.transformer_blocks\.(\d+)\.attn1")


@dataclass(frozen=True)
class AttentionPlace:
    """One self-attention of a UNet.

    Attributes:
        key: ComfyUI's name of its transformer block.
        name: diffusers' name, `down_blocks.1.attentions.0.transformer_blocks.0.attn1`.
        query_dim: width of the stream.
        inner_dim: heads times width of a head.
    """

    key: BlockKey
    name: str
    query_dim: int
    inner_dim: int


def check_unet(model: ModelPatcher) -> Any:
    """Return the model's UNet.

    Raises:
        ValueError: it is another kind of network.
    """
    unet: nn.Module | None = getattr(model.model, "diffusion_model", None)
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"This model is a {type(model.model).__name__}, not an SDXL UNet. Connect an SDXL model from "
            "Load Checkpoint or Load Diffusion Model."
        )
    return unet


def block_key(options: dict[str, Any]) -> BlockKey | None:
    """Return the transformer block that ComfyUI's `extra_options` of a patch name."""
    block = options.get("block")
    return None if block is None else (*block[:2], options.get("block_index", 0))


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """Return the type a model computes in; its weights may be stored in a smaller one (fp8, GGUF)."""
    dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize == 1:
        return preferred_dtype()
    return dtype


def find_attentions(unet: Any) -> Iterator[AttentionPlace]:
    """Yield every self-attention (`attn1`) of a UNet."""
    for original, module in unet.named_modules():
        match = _ATTENTION.fullmatch(original)
        if match:
            number = 0 if match[1] == "middle_block" else int(match[2].split(".")[0])
            yield AttentionPlace(
                (match[1].split("_")[0], number, int(match[3])),
                diffusers_unet_name(original, blocks_per_level(unet)),
                module.to_q.in_features,
                module.to_q.out_features,
            )


def blocks_per_level(unet: Any) -> int:
    """Return the number of input blocks of a level: its resnets and the downsampling after them."""
    return int(unet.num_res_blocks[0]) + 1


def level_widths(unet: Any) -> list[int]:
    """Return the channels of each level of a UNet."""
    return [int(unet.model_channels * factor) for factor in unet.channel_mult]


def residual_blocks(unet: Any) -> list[int]:
    """Return, for each level, the input block after which the camera residual is added.

    In a level with attention this is its last block before the downsampling, in one without it is the
    downsampling: diffusers does so, and the adapter was trained with it. The skip connection contains the
    residual either way.
    """
    per_level = blocks_per_level(unet)
    with_attention = {place.key[1] for place in find_attentions(unet) if place.key[0] == "input"}
    last_resnets = [per_level * (level + 1) - 1 for level in range(len(unet.channel_mult))]
    num_blocks = len(unet.input_blocks)
    return [block if block in with_attention else min(block + 1, num_blocks - 1) for block in last_resnets]


Conv2d = manual_cast.Conv2d


class Linear(manual_cast.Linear):
    """ComfyUI's layer, whose weight has a shape before it is loaded, under dynamic VRAM too.

    There ComfyUI's own has none until `load_state_dict`, and no file could be compared with it. ComfyUI makes
    the weight of a subclass that loads it itself.
    """

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)


def create_patcher(module: nn.Module, *devices: torch.device, disable_dynamic: bool = False) -> ModelPatcher:
    """Return a patcher of the kind that ComfyUI's loaders use, static or dynamic."""
    kind = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    patcher: ModelPatcher = kind(module, *devices)
    return patcher


def latents_for(model: ModelPatcher, latents: torch.Tensor) -> torch.Tensor:
    """Return a LATENT's samples as the model's UNet takes them: scaled."""
    scaled: torch.Tensor = model.model.process_latent_in(latents)
    return scaled


def lcm_sampling(model: ModelPatcher) -> Any:
    """Return the noise schedule that ComfyUI's ModelSamplingDiscrete makes for latent consistency models."""
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    class ModelSamplingLCM(ModelSamplingDiscreteDistilled, LCM):
        """Every 20th timestep, and LCM's boundary scalings."""

    return ModelSamplingLCM(model.model.model_config)
