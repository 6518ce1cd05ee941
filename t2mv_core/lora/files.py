"""LoRA files: what training writes and sampling loads.

Written in kohya's layout with an alpha for each module, which ComfyUI's and diffusers' own loaders know;
read in any layout of `layouts`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..bundle import ModelBundle
from ..formats.kinds import refuse_quantised
from ..formats.safetensors_io import file_identity, read_safetensors, write_safetensors
from ..formats.strict import WeightsFile
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
from .differences import attach_differences
from .facts import complete_alphas
from .layouts import LoraContent, LoraModule, sort_lora
from .words import describe_unmatched

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
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        stem = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = layer.lora_A[name].weight
        tensors[f"{stem}.lora_up.weight"] = layer.lora_B[name].weight
        tensors[f"{stem}.alpha"] = torch.tensor(float(layer.lora_alpha[name]))
    write_safetensors(tensors, path, {key: str(value) for key, value in facts.items()})


def lora_state_dict(unet: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Return the weights of one LoRA under PEFT's names."""
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
    unet, layers = bundle.unet, adaptable_layers(bundle.unet)
    content = read_lora(path, layers, int(unet.config["layers_per_block"]))  # type: ignore[arg-type]
    if not content.num_matched:
        refuse_no_match(content, path)
    # The alphas: they may come from another file, which may have changed.
    identity = (file_identity(path), [module.alpha for module in content.modules.values()])
    name = "file_" + hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    is_new = name not in attached_loras(unet)
    if is_new:
        _attach_file(unet, name, content, layers, path)
    holder = hold_lora(unet, name, is_new)
    remove_unused_loras(unet)
    handle = content.handle(name, strength, path, holder)
    return replace(bundle, loras=(*bundle.loras, handle))


def read_lora(path: Path, module_names: Collection[str], layers_per_block: int) -> LoraContent:
    """Return a file's tensors by a UNet's modules, each module with an alpha, and what to know of the file.

    Args:
        path: safetensors file, in any layout of `layouts`.
        module_names: the UNet's layers, by diffusers' names.
        layers_per_block: of the UNet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or quantised, or holds two LoRAs for a module.
    """
    refuse_quantised(WeightsFile(path))
    tensors, metadata = read_safetensors(path)
    # Copies: Windows cannot replace a file, such as a training's LoRA, while tensors are mapped onto it.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        content = sort_lora(tensors, module_names, layers_per_block)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    modules, notes = complete_alphas(content.modules, metadata, path)
    for module, parts in modules.items():
        if parts.rank < 1 or not math.isfinite(parts.alpha or 0.0):
            raise ValueError(
                f"{path}: rank {parts.rank} and alpha {parts.alpha} of {module!r} are of no use; "
                "download it again."
            )
    if content.num_matched and not has_effect(modules.values(), content.differences.values()):
        notes.append("it changes nothing: in every module a matrix, or alpha, is zero")
    return replace(content, modules=modules, notes=tuple(notes))


def has_effect(modules: Iterable[LoraModule], differences: Iterable[Tensor]) -> bool:
    """Return whether a LoRA changes anything."""
    return any(module.alpha != 0 and module.up.any() and module.down.any() for module in modules) or any(
        bool(tensor.any()) for tensor in differences
    )


def refuse_no_match(content: LoraContent, path: Path) -> NoReturn:
    """Raise a ValueError that says what a file without a LoRA for this model holds."""
    reason = "; ".join(describe_unmatched(content.unmatched)) or "it is empty"
    first = next(iter(content.unmatched), "none")
    raise ValueError(
        f"{path} has no LoRA weights for this model (first key: {first!r}; {reason}); choose a LoRA that was "
        "trained on it."
    )


def _attach_file(
    unet: nn.Module, name: str, content: LoraContent, layers: Mapping[str, nn.Module], path: Path
) -> None:
    for module in content.modules:
        if isinstance(layers[module], nn.GroupNorm | nn.LayerNorm):
            raise ValueError(f"{path} has a LoRA for {module!r}, which is a norm; choose another file.")
    attach_lora(unet, name, {module: (x.rank, float(x.alpha or 0)) for module, x in content.modules.items()})
    try:
        for module, layer in lora_layers(unet, name):
            device, parts = layer.base_layer.weight.device, content.modules[module]
            for part, tensor in zip(PARTS, (parts.down, parts.up), strict=True):
                matrix = getattr(layer, part)[name]
                fitted = _fit(tensor, matrix.weight, f"{path}: {part} of {module!r}")
                matrix.weight = nn.Parameter(fitted.to(device, matrix.weight.dtype), requires_grad=False)
        if content.differences:
            attach_differences(unet, name, layers, _fit_differences(unet, content.differences, layers, path))
    except BaseException:  # out of memory, too: layers without weights would stay, which no device can take
        remove_lora(unet, name)
        raise


def _fit_differences(
    unet: nn.Module, differences: Mapping[str, Tensor], layers: Mapping[str, nn.Module], path: Path
) -> dict[str, Tensor]:
    """Return differences in the shapes, on the devices and in the types of what they are added to."""
    unet_dtype = next(unet.parameters()).dtype
    fitted = {}
    for key, tensor in differences.items():
        module, _, part = key.rpartition(".")
        own = getattr(layers[module], part)
        if own is None:
            raise ValueError(f"{path} changes {key!r}, which this model does not have; choose another LoRA.")
        dtype = unet_dtype if own.dtype.itemsize == 1 else own.dtype
        fitted[key] = _fit(tensor, own, f"{path}: the difference of {key!r}").to(own.device, dtype)
    return fitted


def _fit(tensor: Tensor, weight: Tensor, place: str) -> Tensor:
    """Return a 1x1 convolution as a matrix, or a matrix as a 1x1 convolution, whichever the layer has.

    Raises:
        ValueError: it has another shape.
    """
    fitted = tensor
    if tensor.ndim == 4 and weight.ndim == 2 and tensor.shape[2:] == (1, 1):
        fitted = tensor[:, :, 0, 0]
    elif tensor.ndim == 2 and weight.ndim == 4:
        fitted = tensor[:, :, None, None]
    if fitted.shape != weight.shape:
        raise ValueError(
            f"{place} has shape {tuple(tensor.shape)}, this model needs {tuple(weight.shape)}; choose a LoRA "
            "that was trained on it."
        )
    return fitted
