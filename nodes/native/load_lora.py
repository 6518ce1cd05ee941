"""The node that adds a LoRA to ComfyUI's UNet and, with its multiview parts, to the MV-Adapter on it.

Both get ComfyUI's own patches, so strength, stacking and offloading work as with its LoRA loader.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ...t2mv_core.formats.key_mapping import diffusers_unet_name
from ..common.folders import find_file
from ..loaders.load_lora import STRENGTH, LoRANode, lora_inputs, lora_output, report_output
from ..sockets import make_schema, output
from .comfyui import ModelPatcher, blocks_per_level, check_unet, comfy_lora
from .patch import adapter_of

if TYPE_CHECKING:
    from ...t2mv_core.bundle import LoraHandle
    from ...t2mv_core.lora.layouts import LoraContent

# Every projection of the adapter has one of these in its name: to_q_mv, to_out_mv.0, to_q_ref.
_OF_ADAPTER = ("_mv", "_ref")


class T2MVLoadLoRANative(LoRANode):
    """A MODEL and a LoRA file to a MODEL with that LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVLoadLoRANative",
            display_name="Load LoRA, native (T2MV)",
            category="T2MV/native",
            description="Adds a LoRA that this pack trained to ComfyUI's model and to the MV-Adapter on it. "
            "LoRAs without multiview parts can also come through ComfyUI's own nodes.",
            is_experimental=True,
            shows_result=True,
            search_aliases=["lora", "multiview lora", "mvc-zigal", "reinforcement learning lora"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="A model from Apply MV-Adapter, with or without LoRAs."),
                *lora_inputs(
                    "A safetensors file in models/loras: from training.mvczigal, or any SDXL LoRA. The node "
                    "leaves out parts for the text encoders; ComfyUI's Load LoRA applies them."
                ),
            ],
            outputs=[
                output(io.Model, "patched_model", "The model with this LoRA added.", "model"),
                report_output(),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, lora: str, strength: float) -> io.NodeOutput:
        """Add the LoRA to a clone of the model."""
        STRENGTH.check(strength)
        path = find_file("loras", lora)
        patched, handle = add_native_lora(model, path, strength)
        return lora_output(cls, patched, lora, path, handle)


@dataclass(frozen=True)
class _Target:
    """Where a module's LoRA goes: a layer of the UNet or the adapter, its name there, and its patcher."""

    patcher: ModelPatcher
    name: str
    layer: Any


def add_native_lora(model: ModelPatcher, path: Path, strength: float) -> tuple[ModelPatcher, LoraHandle]:
    """Return a clone of the model on which the LoRA of a file acts, and what of the file was matched.

    Args:
        model: ComfyUI's, with an MV-Adapter if the file has parts for one.
        path: safetensors file in any layout of `t2mv_core.lora.layouts`; ComfyUI's reader takes the parts of
            other kinds (LoHa, LoKr, DoRA).
        strength: factor on the LoRA's effect.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds no LoRA for this model, or multiview parts without an adapter.
    """
    from ...t2mv_core.lora.files import read_lora, refuse_no_match

    patched = model.clone()
    adapter, targets = adapter_of(patched), _find_targets(patched)
    content = read_lora(path, targets, blocks_per_level(check_unet(model)) - 1)
    if adapter is None:
        _refuse_multiview_parts(content.unmatched, path)
    for patcher in filter(None, (patched, adapter)):
        own = {name: target for name, target in targets.items() if target.patcher is patcher}
        for patches in (_matrix_patches(content, own, path), _difference_patches(content, own, path)):
            if patches:
                patcher.add_patches(patches, strength)
    num_foreign, used = _add_foreign(patched, content.unmatched, strength)
    if not content.num_matched + num_foreign:
        refuse_no_match(content, path)
    layout = " and ".join(filter(None, (content.layout, "ComfyUI's reader" if num_foreign else "")))
    unmatched = {key: tensor for key, tensor in content.unmatched.items() if key not in used}
    handle = replace(content, unmatched=unmatched, layout=layout).handle(path.name, strength, path)
    return patched, replace(handle, num_matched=handle.num_matched + num_foreign)


def _find_targets(model: ModelPatcher) -> dict[str, _Target]:
    """Return the layers that take a LoRA, of UNet and adapter, by diffusers' names."""
    unet, adapter = check_unet(model), adapter_of(model)
    per_level = blocks_per_level(unet)
    targets = {
        diffusers_unet_name(name, per_level): _Target(model, f"diffusion_model.{name}", layer)
        for name, layer in _lora_layers(unet)
    }
    if adapter is not None:
        targets |= {
            name: _Target(adapter, name, layer)
            for name, layer in _lora_layers(adapter.model)
            if any(part in name for part in _OF_ADAPTER)
        }
    return targets


def _lora_layers(root: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, layer)
        for name, layer in root.named_modules()
        if hasattr(layer, "in_features") or isinstance(layer, nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    ]


def _matrix_patches(content: LoraContent, targets: Mapping[str, _Target], path: Path) -> dict[str, Any]:
    """Return ComfyUI's patches for the matrices of these targets, by the keys of their weights."""
    tensors: dict[str, Tensor] = {}
    names = [name for name in content.modules if name in targets]
    for name in names:
        part, needed = content.modules[name], _weight_shape(targets[name].layer)
        shape = (part.up.shape[0], *part.down.shape[1:])
        if shape[:2] != needed[:2] or math.prod(shape) != math.prod(needed):
            _refuse_shape(f"the LoRA of {name!r}", shape, needed, path)
        tensors[f"{name}.lora_down.weight"] = part.down
        tensors[f"{name}.lora_up.weight"] = part.up
        tensors[f"{name}.alpha"] = torch.tensor(float(part.alpha or 0.0))
    keys = {name: f"{targets[name].name}.weight" for name in names}
    return comfy_lora.load_lora(tensors, keys, log_missing=False)


def _difference_patches(content: LoraContent, targets: Mapping[str, _Target], path: Path) -> dict[str, Any]:
    """Return ComfyUI's patches for the differences of these targets, by the keys of weights and biases."""
    patches: dict[str, Any] = {}
    for key, tensor in content.differences.items():
        module, _, part = key.rpartition(".")
        if module in targets:
            needed = _weight_shape(targets[module].layer)
            if part == "bias":
                needed = () if targets[module].layer.bias is None else needed[:1]
            if math.prod(tensor.shape) != math.prod(needed):
                _refuse_shape(f"the difference of {key!r}", tuple(tensor.shape), needed, path)
            patches[f"{targets[module].name}.{part}"] = ("diff", (tensor.reshape(needed),))
    return patches


def _refuse_shape(what: str, shape: tuple[int, ...], needed: tuple[int, ...], path: Path) -> NoReturn:
    raise ValueError(
        f"{path}: {what} is for a weight of shape {shape}, this model's is {needed}. Choose a LoRA that was "
        "trained on this model."
    )


def _weight_shape(layer: Any) -> tuple[int, ...]:
    """Return a weight's shape by the sizes of its layer: a GGUF layer's tensor has another shape."""
    if hasattr(layer, "in_features"):
        return (layer.out_features, layer.in_features)
    if isinstance(layer, nn.GroupNorm):
        return (layer.num_channels,)
    if isinstance(layer, nn.LayerNorm):
        return tuple(layer.normalized_shape)
    return (layer.out_channels, layer.in_channels, *layer.kernel_size)


def _add_foreign(model: ModelPatcher, tensors: Mapping[str, Tensor], strength: float) -> tuple[int, set[str]]:
    """Add what ComfyUI's reader makes of the other parts; return the number of modules and the used keys."""
    from ...t2mv_core.lora.layouts import READ_BY_COMFYUI, find_kind, group_keys

    names = comfy_lora.model_lora_keys_unet(model.model, {})
    groups = [parts for parts in group_keys(tensors).values() if find_kind(parts) in READ_BY_COMFYUI]
    chosen = {key: tensors[key] for parts in groups for keys in parts.values() for key in keys}
    patches = comfy_lora.load_lora(chosen, names, log_missing=False) if chosen else {}
    if patches:
        model.add_patches(patches, strength)
    modules = {key.rpartition(".")[0] for key in patches}
    return len(modules), {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}


def _refuse_multiview_parts(unmatched: Collection[str], path: Path) -> None:
    parts = [key for key in unmatched if any(f"{x}." in key or f"{x}_" in key for x in _OF_ADAPTER)]
    if parts:
        raise ValueError(
            f"{path.name} has {len(parts)} parts for the multiview attention ({parts[0]!r}, ...), and this "
            "model has none; put Apply MV-Adapter (T2MV) before this node."
        )
