"""Names of SDXL's original ("sgm", "ldm") layout, and what diffusers and transformers call the same weights.

The two layouts differ in names and in three shapes (the VAE's attention as 1x1 convolutions, the second text
encoder's joint query-key-value matrices and its transposed projection). Everything here is a table or a rule
over block numbers, so that it holds for a UNet of any depth and width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

Change = Callable[[Tensor], Tensor]

_UNET_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE = {  # in this order; each at most once in a name
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.": ".mid_block.attentions.0.",
    ".nin_shortcut.": ".conv_shortcut.",
    ".norm_out.": ".conv_norm_out.",
    ".downsample.conv.": ".downsamplers.0.conv.",
    ".upsample.conv.": ".upsamplers.0.conv.",
}
_VAE_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",  # original
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",  # diffusers before 0.18
}  # fmt: skip
_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip


def blocks_per_level(keys: Iterable[str]) -> int:
    """Return the number of input blocks of one UNet level: its resnets and the downsampling after them."""
    downsamplings: list[int] = []
    numbers = [0]
    for key in keys:
        if block := re.match(r"input_blocks\.(\d+)\.0\.(op\.)?", key):
            (downsamplings if block[2] else numbers).append(int(block[1]))
    return min(downsamplings, default=max(numbers) + 1)


def diffusers_unet_name(name: str, per_level: int, separator: str = ".") -> str:
    """Return diffusers' name for a UNet's weight or module; one that is not of the original layout stays.

    Args:
        name: without the checkpoint's prefix.
        per_level: see `blocks_per_level`; diffusers' `layers_per_block` + 1.
        separator: between the parts of a name: "." in files, "_" in kohya's LoRAs; the answer has it, too.
    """
    s = separator
    top = _renamed_start(name, _UNET_TOP, s)
    if top is not None:
        return top
    mark = re.escape(s)
    block = re.fullmatch(rf"(input|output)_blocks{mark}(\d+){mark}(\d+){mark}(.+)", name)
    middle = re.fullmatch(rf"middle_block{mark}([012]){mark}(.+)", name)
    if middle:
        kind = "attentions" if middle[1] == "1" else "resnets"
        place, rest = ("mid_block", kind, str(int(middle[1]) // 2)), middle[2]
    elif block:
        is_input, rest = block[1] == "input", block[4]
        level, index = divmod(int(block[2]) - is_input, per_level)
        stem, kind, number = f"{'down' if is_input else 'up'}_blocks{s}{level}", "resnets", str(index)
        if is_input and index == per_level - 1:
            kind, number, rest = "downsamplers", "0", re.sub(rf"^op(?={mark}|$)", "conv", rest)
        elif re.match(rf"conv({mark}|$)", rest):
            kind, number = "upsamplers", "0"
        elif block[3] != "0":
            kind = "attentions"
        place = (stem, kind, number)
    else:
        return name
    if place[1] == "resnets":
        rest = _renamed_start(rest, _UNET_RESNET, s) or rest
    return s.join((*place, rest))


def diffusers_vae_name(name: str, num_levels: int) -> tuple[str, Change | None]:
    """Return diffusers' name for a VAE's weight, also an older one of its own, and how to change its shape.

    Args:
        name: without the checkpoint's prefix.
        num_levels: of the decoder, whose levels the original layout counts from the other end.
    """
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    level = re.match(r"decoder\.up\.(\d+)\.", name)
    if level:
        rest = name[level.end() :].replace("block.", "resnets.", 1)
        name = f"decoder.up_blocks.{num_levels - 1 - int(level[1])}.{rest}"
    for old, new in _VAE.items():
        name = name.replace(old, new)
    stem, attention, rest = name.partition(".mid_block.attentions.0.")
    if not attention:
        return name, None
    renamed = _renamed_start(rest, _VAE_ATTENTION, ".") or rest
    is_matrix = renamed.endswith(".weight") and not renamed.startswith("group_norm")
    return stem + attention + renamed, _as_matrix if is_matrix else None


def transformers_clip_names(name: str) -> Iterator[tuple[str, Change | None]]:
    """Yield the names in transformers of a weight of open_clip's text encoder, and how to cut it for each.

    Args:
        name: without the checkpoint's prefix; one that is not open_clip's stays.
    """
    layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if name in ("text_projection", "text_projection.weight"):
        # open_clip's parameter multiplies from the right; ComfyUI saves it as a linear layer, so transposed.
        yield "text_projection.weight", _transposed if name == "text_projection" else None
    elif layer is None:
        yield _CLIP.get(name, name), None
    elif layer[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = layer[2].removeprefix("attn.in_proj_")
        for index, part in enumerate("qkv"):
            yield f"encoder.layers.{layer[1]}.self_attn.{part}_proj.{kind}", _third(index)
    else:
        yield f"encoder.layers.{layer[1]}.{_renamed_start(layer[2], _CLIP_LAYER, '.') or layer[2]}", None


def _renamed_start(name: str, table: dict[str, str], separator: str) -> str | None:
    for old, new in table.items():
        start = old.replace(".", separator)
        if name == start or name.startswith(start + separator):
            return new.replace(".", separator) + name[len(start) :]
    return None


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1)  # [out, in, 1, 1] -> [out, in]


def _transposed(weight: Tensor) -> Tensor:
    return weight.mT if weight.ndim > 1 else weight


def _third(index: int) -> Change:
    return lambda weight: weight.tensor_split(3)[index]
