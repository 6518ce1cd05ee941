"""LoRA: what training produces and sampling loads. Weights are shared; which LoRAs act is said by the bundle.

A LoRA is attached to a UNet once and stays silent there; a `ModelBundle` lists the ones that act on it, with
their strengths, and `active_loras` switches them on for one UNet call. So two bundles over the same UNet
never disturb each other, and a bundle without LoRAs computes exactly what the UNet computed before any was
attached.

Files: safetensors; written with the keys `<module path>.lora_A.weight` and `.lora_B.weight` (PEFT's,
docs/method.md, section 9), read in any of the layouts of `lora_layouts`.
"""

from __future__ import annotations

import hashlib
import json
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bundle import LoraHandle, ModelBundle
from ..formats.safetensors_io import file_identity, read_safetensors, write_safetensors
from .layouts import LoraContent, LoraModule, describe_unmatched, sort_lora

FORMAT = "t2mv-lora"
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0", "to_q_mv", "to_k_mv", "to_v_mv", "to_out_mv.0")
_SUFFIXES = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B"}
_SWITCHES = ("_active_adapter", "_disable_adapters", "cast_input_dtype_enabled")
"""Fields of a LoRA layer of peft that say what acts."""

# Per UNet its LoRA layers, each with its table of LoRAs: looking for them at every call took 0.5 % on the
# toybox.
_LAYERS: weakref.WeakKeyDictionary[nn.Module, list[tuple[Any, dict[str, Any]]]] = weakref.WeakKeyDictionary()


def add_lora(
    unet: nn.Module,
    rank: int,
    alpha: float,
    name: str = "default",
    init: str | bool = "gaussian",
    targets: Sequence[str] = TARGET_MODULES,
) -> int:
    """Attach a new, trainable LoRA, by default to every attention projection, the multiview ones included.

    Args:
        unet: the UNet; its own weights are left as they are.
        rank: of each LoRA, >= 1.
        alpha: the effect is scaled by alpha / rank.
        name: to find it again.
        init: peft's `init_lora_weights`; either way the LoRA changes nothing at first.
        targets: ends of the names of the modules it is attached to.

    Returns:
        Number of modules it was attached to.

    Raises:
        ValueError: bad rank, or a name already in use.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1.")
    ends = tuple(f".{target}" for target in targets)
    sizes = {path: (rank, alpha) for path in _adaptable_layers(unet) if f".{path}".endswith(ends)}
    _attach(unet, name, sizes, init)
    return len(sizes)


def save_lora(unet: nn.Module, path: Path, metadata: Mapping[str, Any], name: str = "default") -> None:
    """Write a LoRA with its rank, alpha and the given facts as metadata, atomically."""
    layers = dict(_lora_layers(unet, name))
    if not layers:
        raise ValueError(f"The UNet has no LoRA named {name!r}; attached are {attached_loras(unet)}.")
    first = next(iter(layers.values()))
    facts = {"format": FORMAT, "rank": first.r[name], "alpha": first.lora_alpha[name], **metadata}
    write_safetensors(lora_state_dict(unet, name), path, {key: str(value) for key, value in facts.items()})


def lora_state_dict(unet: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """The weights of one LoRA under their file names."""
    return {
        f"{path}{suffix}": getattr(layer, attribute)[name].weight
        for path, layer in _lora_layers(unet, name)
        for suffix, attribute in _SUFFIXES.items()
    }


def load_lora(bundle: ModelBundle, path: Path, strength: float = 1.0) -> ModelBundle:
    """Return a bundle on which the LoRA of a file acts too; the given one is unchanged, weights are shared.

    Args:
        bundle: the model, possibly with LoRAs already.
        path: safetensors file, in any layout of `lora_layouts`.
        strength: factor on the LoRA's effect.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds no LoRA, one for another model, or the strength is not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength} must be a finite number.")
    identity = file_identity(path) if path.is_file() else None
    name = "file_" + hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    tensors, metadata = read_safetensors(path)
    content = _sort(bundle.unet, tensors, path)
    if name not in attached_loras(bundle.unet):
        _attach_file(bundle.unet, name, content.modules, metadata, path)
    handle = LoraHandle(name, strength, len(content.modules), content.unmatched, content.layout, path)
    return replace(bundle, loras=(*bundle.loras, handle))


def remove_lora(unet: nn.Module, name: str) -> None:
    """Detach a LoRA and free its memory; bundles that still list it can no longer be used."""
    for _, layer in _lora_layers(unet, name):
        layer.delete_adapter(name)


def attached_loras(unet: nn.Module) -> list[str]:
    """Names of the LoRAs attached to a UNet, acting or not."""
    return sorted({name for layer in _all_lora_layers(unet) for name in layer.lora_A})


def trainable_parameters(unet: nn.Module, name: str = "default") -> list[nn.Parameter]:
    """The parameters of one LoRA, in a fixed order."""
    return [
        getattr(layer, attribute)[name].weight
        for _, layer in _lora_layers(unet, name)
        for attribute in _SUFFIXES.values()
    ]


@contextmanager
def active_loras(bundle: ModelBundle) -> Iterator[None]:
    """Let exactly the bundle's LoRAs act on its UNet, with their strengths.

    They stay switched on afterwards: gradient checkpointing runs the forward again during the backward pass.
    Every UNet call goes through here, so nothing depends on what was active before.

    Raises:
        ValueError: the bundle lists a LoRA that was removed from the UNet.
    """
    layers = _known_layers(bundle.unet)
    is_autocast = has_autocast(bundle.device.type)
    wanted: dict[str, float] = {}
    for handle in bundle.loras:
        wanted[handle.name] = wanted.get(handle.name, 0.0) + handle.strength
    found: set[str] = set()
    for layer, attached in layers:
        here = [name for name in wanted if name in attached]
        found.update(here)
        for name in here:
            if layer.scaling[name] != wanted[name] * layer.lora_alpha[name] / layer.r[name]:
                layer.set_scale(name, wanted[name])
        # What a layer has already is not set again: a module takes as long to set as a small operation. It is
        # looked at each time, in its own dictionary, because others may have set it otherwise.
        # Not layer.set_adapter(): that also switches requires_grad, which is the trainer's business.
        # Autocast brings input and LoRA to one dtype; a copy in the LoRA's own would be kept for backward.
        state = (here, not here, not is_autocast)
        own = vars(layer)
        if tuple(map(own.get, _SWITCHES)) != state:
            own.update(zip(_SWITCHES, state, strict=True))
    if missing := sorted(wanted.keys() - found):
        raise ValueError(f"LoRA {missing[0]!r} is no longer attached to this model; load it again.")
    yield


def _attach(
    unet: nn.Module, name: str, sizes: Mapping[str, tuple[int, float]], init: str | bool | None = None
) -> None:
    """Attach a LoRA of the given rank and alpha to each module; without `init` it has no memory yet."""
    if name in attached_loras(unet):
        raise ValueError(f"The UNet already has a LoRA named {name!r}; remove it or choose another name.")
    for path, (rank, alpha) in sizes.items():
        parent, _, leaf = path.rpartition(".")
        siblings = unet.get_submodule(parent)._modules
        siblings[leaf] = _add_to_layer(siblings[leaf], name, rank, alpha, init)
    _LAYERS.pop(unet, None)
    unet_dtype = next(unet.parameters()).dtype
    for _, layer in _lora_layers(unet, name):
        dtype = layer.base_layer.weight.dtype
        for part in (layer.lora_A[name], layer.lora_B[name]):
            part.to(unet_dtype if dtype.itemsize == 1 else dtype)  # no LoRA in 8 bits


def _add_to_layer(layer: Any, name: str, rank: int, alpha: float, init: str | bool | None) -> Any:
    """Return a layer with one more LoRA.

    peft gets the layer alone: for a whole UNet it compiles a regular expression for each pair of modules, as
    soon as their ranks or alphas differ.
    """
    from peft import LoraConfig, inject_adapter_in_model

    learns = {parameter: parameter.requires_grad for parameter in layer.parameters()}
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=bool(init) and init)  # type: ignore[arg-type]
    alone = nn.Sequential(layer)
    inject_adapter_in_model(config, alone, name, low_cpu_mem_usage=init is None)
    for parameter, does_learn in learns.items():  # peft freezes them, and trains the new LoRA
        parameter.requires_grad_(does_learn)
    return alone[0]


def _attach_file(
    unet: nn.Module, name: str, modules: dict[str, LoraModule], metadata: Mapping[str, str], path: Path
) -> None:
    scale = read_scale(metadata, next(iter(modules.values())).rank, path)
    sizes = {
        module: (parts.rank, scale * parts.rank if parts.alpha is None else parts.alpha)
        for module, parts in modules.items()
    }
    _attach(unet, name, sizes)
    for module, layer in _lora_layers(unet, name):
        place = layer.base_layer.weight
        for attribute, tensor in (("lora_A", modules[module].down), ("lora_B", modules[module].up)):
            part = getattr(layer, attribute)[name]
            fitted = _fit(tensor, part.weight)
            if part.weight.shape != fitted.shape:
                remove_lora(unet, name)
                raise ValueError(
                    f"{path}: {attribute} of {module!r} has shape {tuple(tensor.shape)}, this model "
                    f"needs {tuple(part.weight.shape)}; choose a LoRA that was trained on it."
                )
            part.weight = nn.Parameter(fitted.to(place.device, part.weight.dtype), requires_grad=False)


def _fit(tensor: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix it is, and back: layouts differ there."""
    if tensor.ndim == 4 and weight.ndim == 2 and tensor.shape[2:] == (1, 1):
        return tensor[:, :, 0, 0]
    if tensor.ndim == 2 and weight.ndim == 4:
        return tensor[:, :, None, None]
    return tensor


def read_scale(metadata: Mapping[str, str], file_rank: int, path: Path) -> float:
    """Alpha / rank as the file says of all its modules; alpha = rank when it says nothing."""
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
    """What a file says of alpha and rank: as ours do, or as diffusers writes PEFT's configuration."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        facts = {"alpha": config.get("unet.lora_alpha"), "rank": config.get("unet.r")}
    except (ValueError, AttributeError):  # not JSON, or JSON that is not a table
        facts = {}
    return {**{key: value for key, value in facts.items() if value is not None}, **metadata}


def _sort(unet: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> LoraContent:
    """A file's tensors by the modules of this UNet; at least one has a place."""
    try:
        content = sort_lora(tensors, set(_adaptable_layers(unet)), int(unet.config["layers_per_block"]))  # type: ignore[index, arg-type]
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
                "fetch it again."
            )
    return content


def _adaptable_layers(unet: nn.Module) -> list[str]:
    """Return the names of the linear and convolution layers, with or without LoRAs, in the UNet's order."""
    return [
        name
        for name, layer in unet.named_modules()
        if (hasattr(layer, "in_features") or isinstance(layer, nn.Conv2d))
        and not name.endswith(".base_layer")
        and ".lora_" not in name
    ]


def has_autocast(device_type: str) -> bool:
    """Return whether autocast is on; the meta device, where memory is counted, has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _known_layers(unet: nn.Module) -> list[tuple[Any, dict[str, Any]]]:
    """The UNet's LoRA layers, looked for once after each `_attach`; a copy of a UNet is a UNet of its own."""
    if unet not in _LAYERS:
        _LAYERS[unet] = [(layer, layer.lora_A._modules) for layer in _all_lora_layers(unet)]
    return _LAYERS[unet]


def _all_lora_layers(unet: nn.Module) -> Iterator[Any]:
    # No look into LoRAs, and no `hasattr`, which builds an error for each "no".
    waiting: list[nn.Module | None] = [unet]
    while waiting:
        module = waiting.pop()
        if module is None or not module._modules:
            continue
        if "lora_A" in module._modules:
            yield module
        else:
            waiting.extend(module._modules.values())


def _lora_layers(unet: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    for path, module in unet.named_modules():
        if hasattr(module, "lora_A") and name in module.lora_A:
            yield path, module
