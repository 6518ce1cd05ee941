"""LoRAs on a UNet: attached once, silent until a bundle lists them, detached when no bundle does any more.

Several bundles stand over the weights of one UNet. `activate_loras` switches on one bundle's LoRAs for its
next UNet call, so a bundle computes the same whatever others computed before, and without LoRAs exactly what
the UNet computed before any was attached. `reactivate_in_backward` extends this to a backward pass that comes
after another bundle's call. Two threads must not call one UNet at the same time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..autocast import has_autocast
from ..bundle import ModelBundle
from .differences import detach_differences, find_differences

TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0",
    "to_q_mv", "to_k_mv", "to_v_mv", "to_out_mv.0",
    "to_q_ref", "to_k_ref", "to_v_ref", "to_out_ref.0",
)  # fmt: skip
PARTS = ("lora_A", "lora_B")
"""The two matrices of a LoRA, down and up: peft's attributes, and part of the names in a file."""


class Holder:
    """A LoRA from a file stays attached while a `LoraHandle` refers to its holder."""


# Per UNet the LoRAs that go with their holders. A copy of a UNet is not in here: its LoRAs stay.
_HOLDERS: weakref.WeakKeyDictionary[nn.Module, dict[str, weakref.ref[Holder]]] = weakref.WeakKeyDictionary()


def add_lora(
    unet: nn.Module,
    rank: int,
    alpha: float,
    name: str = "default",
    init: str | bool = "gaussian",
    targets: Sequence[str] = TARGET_MODULES,
) -> int:
    """Attach a new, trainable LoRA, by default to every projection of every attention the UNet has.

    Args:
        unet: the UNet; its other weights stay as they are.
        rank: of each LoRA, >= 1.
        alpha: the effect is scaled by alpha / rank.
        name: to refer to it later; it stays until `remove_lora`.
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
    sizes = {path: (rank, alpha) for path in adaptable_layers(unet) if f".{path}".endswith(ends)}
    attach_lora(unet, name, sizes, init)
    return len(sizes)


def attach_lora(
    unet: nn.Module, name: str, sizes: Mapping[str, tuple[int, float]], init: str | bool | None = None
) -> None:
    """Attach a LoRA to some layers of a UNet.

    Args:
        unet: the UNet.
        name: of the LoRA.
        sizes: rank and alpha by the layer's name.
        init: peft's `init_lora_weights`; None leaves the weights without memory, on the meta device.

    Raises:
        ValueError: the name is in use.
    """
    if name in attached_loras(unet):
        raise ValueError(f"The UNet already has a LoRA named {name!r}; remove it or choose another name.")
    unet_dtype = next(unet.parameters()).dtype
    for path, (rank, alpha) in sizes.items():
        siblings, leaf = _place(unet, path)
        siblings[leaf] = layer = _add_to_layer(siblings[leaf], name, rank, alpha, init)
        dtype = layer.base_layer.weight.dtype
        for part in PARTS:
            getattr(layer, part)[name].to(unet_dtype if dtype.itemsize == 1 else dtype)  # no LoRA in 8 bits


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
    for parameter, does_learn in learns.items():  # peft freezes them
        parameter.requires_grad_(does_learn)
    return alone[0]


def remove_lora(unet: nn.Module, name: str) -> None:
    """Detach a LoRA and free its memory; bundles that still list it can no longer be used."""
    for path, layer in list(lora_layers(unet, name)):
        # peft would switch on another LoRA in place of an active one, and train it.
        layer._active_adapter = [other for other in layer.active_adapters if other != name]
        layer.delete_adapter(name)
        if not layer.lora_A:
            siblings, leaf = _place(unet, path)
            siblings[leaf] = layer.base_layer
    detach_differences(unet, name)
    _HOLDERS.get(unet, {}).pop(name, None)


def hold_lora(unet: nn.Module, name: str, is_new: bool) -> Holder | None:
    """Return what keeps a LoRA from a file attached; None for a LoRA that stays anyway.

    Once nobody refers to it, the next load or UNet call detaches the LoRA.

    Args:
        unet: the UNet.
        name: of the LoRA, attached.
        is_new: whether it was attached just now.
    """
    holders = _HOLDERS.setdefault(unet, {})
    if not is_new and name not in holders:
        return None
    holder = holders[name]() if name in holders else None
    if holder is None:
        holder = Holder()
        holders[name] = weakref.ref(holder)
    return holder


def remove_unused_loras(unet: nn.Module) -> None:
    """Detach the LoRAs from files that no living bundle lists."""
    for name, holder in list(_HOLDERS.get(unet, {}).items()):
        if holder() is None:
            remove_lora(unet, name)


def activate_loras(bundle: ModelBundle) -> None:
    """Let exactly the bundle's LoRAs act on its UNet, with their strengths, until the next call.

    Raises:
        ValueError: the bundle lists a LoRA that was removed from the UNet.
    """
    remove_unused_loras(bundle.unet)
    _activate(bundle, has_autocast(bundle.device.type))


def reactivate_in_backward(bundle: ModelBundle, noise: Tensor) -> None:
    """Activate the bundle's LoRAs once more when the backward pass reaches the output of its UNet call.

    Gradient checkpointing runs the forward pass again during the backward pass. Autograd goes through calls
    in reverse order, one after the other, so each is recomputed with its own LoRAs. Only a single backward
    pass over calls of several bundles whose losses were moved to another device may mix them.

    Args:
        bundle: whose LoRAs acted in the call.
        noise: its output.
    """
    if noise.requires_grad:
        noise.register_hook(partial(_activate, bundle, has_autocast(bundle.device.type)))


def _activate(bundle: ModelBundle, is_autocast: bool, _gradient: Tensor | None = None) -> None:
    strengths: dict[str, float] = {}
    for handle in bundle.loras:
        strengths[handle.name] = strengths.get(handle.name, 0.0) + handle.strength
    attached: set[str] = set()
    for layer in _all_lora_layers(bundle.unet):
        attached.update(layer.lora_A)
        names = [name for name in strengths if name in layer.lora_A]
        for name in names:
            layer.set_scale(name, strengths[name])
        # Not layer.set_adapter(): that also switches requires_grad, which is the trainer's business. And a
        # module takes ten times as long to set an attribute as its dictionary.
        vars(layer).update(
            _active_adapter=names,
            _disable_adapters=not names,
            # Autocast brings input and LoRA to one dtype; a copy in the LoRA's would be kept for backward.
            cast_input_dtype_enabled=not is_autocast,
        )
    for differences in find_differences(bundle.unet):
        attached.add(differences.name)
        differences.strength = strengths.get(differences.name, 0.0)
    if missing := strengths.keys() - attached:
        raise ValueError(f"LoRA {min(missing)!r} is no longer attached to this model; load it again.")


def attached_loras(unet: nn.Module) -> list[str]:
    """Return the names of the LoRAs attached to a UNet, acting or not."""
    names = {name for layer in _all_lora_layers(unet) for name in layer.lora_A}
    return sorted(names | {differences.name for differences in find_differences(unet)})


def trainable_parameters(unet: nn.Module, name: str = "default") -> list[nn.Parameter]:
    """Return the parameters of one LoRA, in a fixed order."""
    return [getattr(layer, part)[name].weight for _, layer in lora_layers(unet, name) for part in PARTS]


def lora_layers(unet: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Yield path and layer of each module that has the LoRA."""
    for path, module in unet.named_modules():
        if hasattr(module, "lora_A") and name in module.lora_A:
            yield path, module


def adaptable_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """Return the linear and convolution layers and the norms by name, without their LoRAs, in order."""
    return {
        name: getattr(layer, "base_layer", layer)
        for name, layer in unet.named_modules()
        if (hasattr(layer, "in_features") or isinstance(layer, nn.Conv2d | nn.GroupNorm | nn.LayerNorm))
        and not name.endswith(".base_layer")
        and ".lora_" not in name
    }


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


def _place(unet: nn.Module, path: str) -> tuple[dict[str, Any], str]:
    """Return the modules beside a layer, by name, and its own name among them."""
    parent, _, leaf = path.rpartition(".")
    return unet.get_submodule(parent)._modules, leaf
