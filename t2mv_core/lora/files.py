"""LoRA files: what training writes and sampling loads.

Written with the keys `<module path>.lora_A.weight` and `.lora_B.weight` (PEFT's; docs/method.md, section 9),
read in any layout of `layouts`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..bundle import LoraHandle, ModelBundle
from ..formats.safetensors_io import file_identity, read_safetensors, write_safetensors
from .adapters import (
    PARTS,
    adaptable_layers,
    attach_lora,
    attached_loras,
    hold_lora,
    lora_layers,
    remove_lora,
    remove_unused_loras,
)
from .layouts import LoraContent, LoraModule, describe_unmatched, sort_lora

FORMAT = "t2mv-lora"


def save_lora(unet: nn.Module, path: Path, metadata: Mapping[str, Any], name: str = "default") -> None:
    """Write a LoRA atomically, with its rank, its alpha and more metadata.

    Raises:
        ValueError: the UNet has no LoRA of that name.
    """
    layers = dict(lora_layers(unet, name))
    if not layers:
        raise ValueError(f"The UNet has no LoRA named {name!r}; attached are {attached_loras(unet)}.")
    first = next(iter(layers.values()))
    facts = {"format": FORMAT, "rank": first.r[name], "alpha": first.lora_alpha[name], **metadata}
    write_safetensors(lora_state_dict(unet, name), path, {key: str(value) for key, value in facts.items()})


def lora_state_dict(unet: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return the weights of one LoRA under their names in a file."""
    return {
        f"{path}.{part}.weight": getattr(layer, part)[name].weight
        for path, layer in lora_layers(unet, name)
        for part in PARTS
    }


def load_lora(bundle: ModelBundle, path: Path, strength: float = 1.0) -> ModelBundle:
    """Return a bundle on which the LoRA of a file acts too; the old one is unchanged, weights are shared.

    The LoRA stays attached to the UNet for as long as a bundle lists it. A file that is attached already is
    not attached again.

    Args:
        bundle: the model, possibly with LoRAs already.
        path: safetensors file, in any layout of `layouts`.
        strength: factor on the LoRA's effect.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds no LoRA, one for another model, or the strength is not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength} must be a finite number.")
    unet, identity = bundle.unet, file_identity(path) if path.is_file() else None
    name = "file_" + hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    tensors, metadata = read_safetensors(path)
    content = _sort(unet, tensors, path)
    is_new = name not in attached_loras(unet)
    if is_new:
        _attach_file(unet, name, content.modules, metadata, path)
    holder = hold_lora(unet, name, is_new)
    remove_unused_loras(unet)
    handle = LoraHandle(name, strength, len(content.modules), content.unmatched, content.layout, path, holder)
    return replace(bundle, loras=(*bundle.loras, handle))


def _attach_file(
    unet: nn.Module, name: str, modules: dict[str, LoraModule], metadata: Mapping[str, str], path: Path
) -> None:
    scale = read_scale(metadata, next(iter(modules.values())).rank, path)
    sizes = {
        module: (parts.rank, scale * parts.rank if parts.alpha is None else parts.alpha)
        for module, parts in modules.items()
    }
    attach_lora(unet, name, sizes)
    for module, layer in lora_layers(unet, name):
        device = layer.base_layer.weight.device
        for part, tensor in zip(PARTS, (modules[module].down, modules[module].up), strict=True):
            matrix = getattr(layer, part)[name]
            fitted = _fit(tensor, matrix.weight)
            if matrix.weight.shape != fitted.shape:
                remove_lora(unet, name)
                raise ValueError(
                    f"{path}: {part} of {module!r} has shape {tuple(tensor.shape)}, this model "
                    f"needs {tuple(matrix.weight.shape)}; choose a LoRA that was trained on it."
                )
            matrix.weight = nn.Parameter(fitted.to(device, matrix.weight.dtype), requires_grad=False)


def _fit(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a 1x1 convolution as a matrix, or a matrix as a 1x1 convolution, whichever the layer has."""
    if tensor.ndim == 4 and weight.ndim == 2 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if tensor.ndim == 2 and weight.ndim == 4:
        return tensor[:, :, None, None]
    return tensor


def read_scale(metadata: Mapping[str, str], file_rank: int, path: Path) -> float:
    """Return alpha / rank of all modules as the metadata says; 1 when it says nothing.

    Raises:
        ValueError: they are no numbers, or the rank is 0.
    """
    facts = _adapter_facts(metadata)
    alpha, rank = facts.get("alpha", file_rank), facts.get("rank", file_rank)
    try:
        scale = float(alpha) / float(rank)
    except (TypeError, ValueError, ZeroDivisionError):
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(
            f"{path}: alpha={alpha!r} and rank={rank!r} in its metadata must be numbers, rank not 0."
        )
    return scale


def _adapter_facts(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what a file says of alpha and rank, as ours do or as diffusers writes PEFT's configuration."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        facts = {"alpha": config.get("unet.lora_alpha"), "rank": config.get("unet.r")}
    except (ValueError, AttributeError):  # not JSON, or JSON that is not a table
        facts = {}
    return {**{key: value for key, value in facts.items() if value is not None}, **metadata}


def _sort(unet: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> LoraContent:
    """Return a file's tensors by the UNet's modules; at least one has a place."""
    try:
        content = sort_lora(tensors, set(adaptable_layers(unet)), int(unet.config["layers_per_block"]))  # type: ignore[index, arg-type]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not content.modules:
        reason = "; ".join(describe_unmatched(content.unmatched)) or "it is empty"
        raise ValueError(
            f"{path} has no LoRA weights for this model (first key: {next(iter(tensors), 'none')!r}; "
            f"{reason}); choose a LoRA that was trained on it."
        )
    for module, parts in content.modules.items():
        if parts.rank < 1 or (parts.alpha is not None and not math.isfinite(parts.alpha)):
            raise ValueError(
                f"{path}: rank {parts.rank} and alpha {parts.alpha} of {module!r} are of no use; "
                "download it again."
            )
    return content
