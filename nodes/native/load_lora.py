"""The node that adds a LoRA to ComfyUI's UNet and, with its multiview parts, to the MV-Adapter on it.

Both get ComfyUI's own patches, so strength, stacking and offloading work as with its LoRA loader.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor, nn

from ...t2mv_core.formats.key_mapping import diffusers_unet_name
from ..common.folders import find_file
from ..loaders.load_lora import STRENGTH, LoRANode, lora_inputs, lora_report, report_output
from ..sockets import make_schema, output
from .comfyui import ModelPatcher, blocks_per_level, check_unet, comfy_lora
from .patch import adapter_of

if TYPE_CHECKING:
    from ...t2mv_core.bundle import LoraHandle
    from ...t2mv_core.lora.layouts import LoraModule

_MULTIVIEW = "_mv"  # every multiview projection has it in its name: to_q_mv, to_out_mv.0


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
        report = lora_report(lora, path, handle)
        return io.NodeOutput(patched, report, ui=ui.PreviewText(report))


@dataclass(frozen=True)
class _Target:
    """Where a module's LoRA goes: a weight in the UNet's or the adapter's patcher, and the weight's layer."""

    patcher: ModelPatcher
    key: str
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
    from ...t2mv_core.bundle import LoraHandle
    from ...t2mv_core.formats.safetensors_io import read_safetensors
    from ...t2mv_core.lora.files import read_scale
    from ...t2mv_core.lora.layouts import sort_lora

    tensors, metadata = read_safetensors(path)
    patched = model.clone()
    adapter, targets = adapter_of(patched), _find_targets(patched)
    try:
        content = sort_lora(tensors, targets, blocks_per_level(check_unet(model)) - 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if adapter is None:
        _refuse_multiview_parts(content.unmatched, path)
    scale = read_scale(metadata, next(iter(content.modules.values())).rank, path) if content.modules else 1.0
    for patcher in (patched, adapter):
        chosen = {name: part for name, part in content.modules.items() if targets[name].patcher is patcher}
        if chosen:
            patcher.add_patches(_patches(chosen, targets, scale, path), strength)
    num_foreign, used = _add_foreign(patched, {key: tensors[key] for key in content.unmatched}, strength)
    unmatched = tuple(key for key in content.unmatched if key not in used)
    num_matched = len(content.modules) + num_foreign
    if not num_matched:
        _refuse_no_match(tensors, unmatched, path)
    layout = " and ".join(filter(None, (content.layout, "ComfyUI's reader" if num_foreign else "")))
    return patched, LoraHandle(path.name, strength, num_matched, unmatched, layout)


def _find_targets(model: ModelPatcher) -> dict[str, _Target]:
    """Return the layers that take a LoRA, of UNet and adapter, by diffusers' names."""
    unet, adapter = check_unet(model), adapter_of(model)
    per_level = blocks_per_level(unet)
    targets = {
        diffusers_unet_name(name, per_level): _Target(model, f"diffusion_model.{name}.weight", layer)
        for name, layer in _lora_layers(unet)
    }
    if adapter is not None:
        targets |= {
            name: _Target(adapter, f"{name}.weight", layer)
            for name, layer in _lora_layers(adapter.model)
            if _MULTIVIEW in name
        }
    return targets


def _lora_layers(root: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, layer)
        for name, layer in root.named_modules()
        if hasattr(layer, "in_features") or isinstance(layer, nn.Conv2d)
    ]


def _patches(
    parts: Mapping[str, LoraModule], targets: Mapping[str, _Target], scale: float, path: Path
) -> dict[str, Any]:
    """Return ComfyUI's patches for LoRA matrices, by the keys of the weights they belong to."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        shape, needed = (part.up.shape[0], *part.down.shape[1:]), _weight_shape(targets[name].layer)
        if part.rank < 1 or shape[:2] != needed[:2] or math.prod(shape) != math.prod(needed):
            raise ValueError(
                f"{path}: the LoRA of {name!r} is for a weight of shape {shape}, this model's is {needed}. "
                "Choose a LoRA that was trained on this model."
            )
        tensors[f"{name}.lora_down.weight"] = part.down
        tensors[f"{name}.lora_up.weight"] = part.up
        alpha = scale * part.rank if part.alpha is None else part.alpha
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return comfy_lora.load_lora(tensors, {name: targets[name].key for name in parts}, log_missing=False)


def _weight_shape(layer: Any) -> tuple[int, ...]:
    """Return a weight's shape by the sizes of its layer: a GGUF layer's tensor has another shape."""
    if hasattr(layer, "in_features"):
        return (layer.out_features, layer.in_features)
    return (layer.out_channels, layer.in_channels, *layer.kernel_size)


def _add_foreign(model: ModelPatcher, tensors: dict[str, Tensor], strength: float) -> tuple[int, set[str]]:
    """Add what ComfyUI's reader makes of the other parts; return the number of weights and the used keys."""
    names = comfy_lora.model_lora_keys_unet(model.model, {})
    patches = comfy_lora.load_lora(tensors, names, log_missing=False)
    model.add_patches(patches, strength)
    return len(patches), {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}


def _refuse_multiview_parts(unmatched: tuple[str, ...], path: Path) -> None:
    parts = [key for key in unmatched if f"{_MULTIVIEW}." in key or f"{_MULTIVIEW}_" in key]
    if parts:
        raise ValueError(
            f"{path.name} has {len(parts)} parts for the multiview attention ({parts[0]!r}, ...), and this "
            "model has none; put Apply MV-Adapter (T2MV) before this node."
        )


def _refuse_no_match(tensors: Mapping[str, Tensor], unmatched: tuple[str, ...], path: Path) -> None:
    from ...t2mv_core.lora.layouts import describe_unmatched

    reason = "; ".join(describe_unmatched(unmatched)) or "it is empty"
    raise ValueError(
        f"{path} has no LoRA weights for this model (first key: {next(iter(tensors), 'none')!r}; {reason}). "
        "Choose a LoRA that was trained on this model."
    )
