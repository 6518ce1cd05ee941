"""Where ComfyUI's SDXL UNet has what the MV-Adapter joins: its self-attentions and its down blocks' ends.

ComfyUI numbers blocks as SDXL's original layout does; the adapter's file speaks diffusers' language. Both are
read from the module itself, so that UNets whose layers are of another kind (fp8, GGUF) are understood, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...t2mv_core.formats.key_mapping import diffusers_unet_name

BlockKey = tuple[str, int, int]
"""("input", "middle" or "output"; number of the block; number of the transformer block in it): ComfyUI's."""
_ATTENTION = re.compile(r"(input_blocks|middle_block|output_blocks)\.(.+)\.transformer_blocks\.(\d+)\.attn1")


@dataclass(frozen=True)
class AttentionPlace:
    """One self-attention of a UNet.

    Attributes:
        key: how ComfyUI's patches name it.
        name: how diffusers names it, `down_blocks.1.attentions.0.transformer_blocks.0.attn1`.
        query_dim: width of the stream.
        inner_dim: heads times width of a head.
    """

    key: BlockKey
    name: str
    query_dim: int
    inner_dim: int


def find_attentions(unet: nn.Module) -> list[AttentionPlace]:
    """Every self-attention (`attn1`) of a UNet."""
    return list(_attentions(unet))


def _attentions(unet: Any) -> Iterator[AttentionPlace]:
    for original, module in unet.named_modules():
        found = _ATTENTION.fullmatch(original)
        if found:
            number = 0 if found[1] == "middle_block" else int(found[2].split(".")[0])
            yield AttentionPlace(
                (found[1].split("_")[0], number, int(found[3])),
                diffusers_unet_name(original, blocks_per_level(unet)),
                module.to_q.in_features,
                module.to_q.out_features,
            )


def blocks_per_level(unet: Any) -> int:
    """Number of input blocks of a level: its resnets and the downsampling after them."""
    return int(unet.num_res_blocks[0]) + 1


def level_widths(unet: Any) -> list[int]:
    """Channels of each level of a UNet."""
    return [int(unet.model_channels * factor) for factor in unet.channel_mult]


def residual_blocks(unet: Any) -> list[int]:
    """The input blocks whose output takes the camera residual of their level, one per level.

    A level with attention takes it after its last resnet and attention, one without after its downsampling:
    so diffusers does, and the weights were trained with it. Either way it also enters the skip connection.
    """
    per_level = blocks_per_level(unet)
    with_attention = {key[1] for key in (place.key for place in _attentions(unet)) if key[0] == "input"}
    last_resnets = [per_level * (level + 1) - 1 for level in range(len(unet.channel_mult))]
    num_blocks = len(unet.input_blocks)
    return [block if block in with_attention else min(block + 1, num_blocks - 1) for block in last_resnets]
