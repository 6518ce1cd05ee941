"""LoRAs on a native model: ordinary parts on ComfyUI's UNet, multiview parts on the MV-Adapter's patcher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import torch
from torch import Tensor, nn

from .blocks import blocks_per_level
from .loading import check_unet
from .patch import adapter_of

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from ...t2mv_core.bundle import LoraHandle
    from ...t2mv_core.lora.layouts import LoraContent, LoraModule

_MULTIVIEW = "_mv"  # every multiview projection has it in its name: to_q_mv, to_out_mv.0


@dataclass(frozen=True)
class _Places:
    """Where LoRAs of diffusers' module names go.

    Attributes:
        unet: module name -> (key of ComfyUI's model, the module).
        adapter: module name -> (key of the adapter's patcher, the module).
    """

    unet: dict[str, tuple[str, nn.Module]]
    adapter: dict[str, tuple[str, nn.Module]]


def add_native_lora(model: ModelPatcher, path: Path, strength: float) -> tuple[ModelPatcher, LoraHandle]:
    """A clone of the model on which the LoRA of a file acts too; the given one is unchanged.

    Args:
        model: ComfyUI's, with an MV-Adapter if the file has parts for one.
        path: safetensors file, in any layout of `lora_layouts`; parts of other kinds (LoHa, LoKr, DoRA) go
            through ComfyUI's own reader.
        strength: factor on the LoRA's effect.

    Returns:
        The model, and what was matched.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds no LoRA for this model, or multiview parts without an adapter.
    """
    from ...t2mv_core.bundle import LoraHandle
    from ...t2mv_core.formats.safetensors_io import read_safetensors
    from ...t2mv_core.lora.files import read_scale
    from ...t2mv_core.lora.layouts import sort_lora

    tensors, metadata = read_safetensors(path)
    places = _find_places(model)
    names = {*places.unet, *places.adapter}
    per_level = blocks_per_level(check_unet(model))
    try:
        content = sort_lora(tensors, names, per_level - 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_parts_without_adapter(content, places, path)
    scale = read_scale(metadata, next(iter(content.modules.values())).rank, path) if content.modules else 1.0
    patched = model.clone()
    for patcher, table in ((patched, places.unet), (adapter_of(patched), places.adapter)):
        chosen = {name: module for name, module in content.modules.items() if name in table}
        if patcher is not None and chosen:
            patcher.add_patches(_patches(chosen, table, scale, path), strength)
    num_foreign, used = _add_foreign(patched, {key: tensors[key] for key in content.unmatched}, strength)
    unmatched = tuple(key for key in content.unmatched if key not in used)
    num_matched = len(content.modules) + num_foreign
    _refuse_nothing_matched(num_matched, tensors, unmatched, path)
    layout = " and ".join(filter(None, (content.layout, "ComfyUI's reader" if num_foreign else "")))
    return patched, LoraHandle(path.name, strength, num_matched, unmatched, layout)


def _add_foreign(model: ModelPatcher, tensors: dict[str, Tensor], strength: float) -> tuple[int, set[str]]:
    """Add what ComfyUI's own reader makes of the rest of a file: number of weights changed, and keys used."""
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(tensors, names, log_missing=False)
    model.add_patches(patches, strength)
    return len(patches), {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}


def _find_places(model: ModelPatcher) -> _Places:
    from ...t2mv_core.formats.key_mapping import diffusers_unet_name

    unet, adapter = check_unet(model), adapter_of(model)
    per_level = blocks_per_level(unet)
    return _Places(
        {
            diffusers_unet_name(name, per_level): (f"diffusion_model.{name}.weight", module)
            for name, module in unet.named_modules()
            if _takes_lora(module)
        },
        {}
        if adapter is None
        else {
            name: (f"{name}.weight", module)
            for name, module in adapter.model.named_modules()
            if _takes_lora(module) and _MULTIVIEW in name
        },
    )


def _takes_lora(module: nn.Module) -> bool:
    return hasattr(module, "in_features") or isinstance(module, nn.Conv2d)


def _patches(
    modules: Mapping[str, LoraModule], table: Mapping[str, tuple[str, nn.Module]], scale: float, path: Path
) -> dict[str, Any]:
    """ComfyUI's patches for sorted LoRA matrices, by the keys of the model they belong to."""
    tensors: dict[str, Tensor] = {}
    for name, parts in modules.items():
        layer = table[name][1]
        wanted = _weight_shape(layer)
        given = (parts.up.shape[0], *parts.down.shape[1:])
        if parts.rank < 1 or given[:2] != wanted[:2] or math.prod(given) != math.prod(wanted):
            raise ValueError(
                f"{path}: the LoRA of {name!r} is for a weight of shape {given}, this model's is {wanted}; "
                "choose a LoRA that was trained on it."
            )
        tensors[f"{name}.lora_down.weight"] = parts.down
        tensors[f"{name}.lora_up.weight"] = parts.up
        alpha = scale * parts.rank if parts.alpha is None else parts.alpha
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return comfy.lora.load_lora(tensors, {name: table[name][0] for name in modules}, log_missing=False)


def _weight_shape(layer: Any) -> tuple[int, ...]:
    """Of a layer, from its sizes: a GGUF layer's tensor has another shape."""
    if hasattr(layer, "in_features"):
        return (layer.out_features, layer.in_features)
    return (layer.out_channels, layer.in_channels, *layer.kernel_size)


def _refuse_parts_without_adapter(content: LoraContent, places: _Places, path: Path) -> None:
    parts = [key for key in content.unmatched if f"{_MULTIVIEW}." in key or f"{_MULTIVIEW}_" in key]
    if parts and not places.adapter:
        raise ValueError(
            f"{path.name} has {len(parts)} parts for the multiview attention ({parts[0]!r}, ...), and this "
            "model has none; put Apply MV-Adapter (T2MV) before this node."
        )


def _refuse_nothing_matched(
    num_matched: int, tensors: Mapping[str, Tensor], unmatched: tuple[str, ...], path: Path
) -> None:
    from ...t2mv_core.lora.layouts import describe_unmatched

    if not num_matched:
        reason = "; ".join(describe_unmatched(unmatched)) or "it is empty"
        raise ValueError(
            f"{path} has no LoRA weights for this model (first key: {next(iter(tensors), 'none')!r}; "
            f"{reason}); choose a LoRA that was trained on it."
        )
