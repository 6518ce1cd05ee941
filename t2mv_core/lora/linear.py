"""What a linear layer with LoRAs computes, y = W x + b + Σ s·B(A x), without the detours of peft's layer.

peft makes a result of its own of each term: five passes over the activations forward, as many backward, where
the products themselves need two. The sum is made in place here; values and gradients differ by rounding only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class AddedProduct(torch.autograd.Function):
    """y + s·(x Aᵀ) Bᵀ, written into y; keeps x and x Aᵀ for the backward pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        """All of one dtype; y [n, out] (overwritten), x [n, in], down A [r, in], up B [out, r]."""
        low = x @ down.t()
        ctx.save_for_backward(x, low, down, up)
        ctx.scale = scale
        ctx.mark_dirty(y)
        return y.addmm_(low, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, x, A and B."""
        (grad,), (x, low, down, up) = grads, ctx.saved_tensors
        grad_low = (grad @ up).mul_(ctx.scale)
        needs = ctx.needs_input_grad
        grad_x = grad_low @ down if needs[1] else None
        grad_down = grad_low.t() @ x if needs[2] else None
        grad_up = (grad.t() @ low).mul_(ctx.scale) if needs[3] else None
        return grad, grad_x, grad_down, grad_up, None


def take_short_way(layer: Any) -> None:
    """Let a LoRA layer of peft compute as above whenever only plain LoRAs act on a linear layer."""
    if isinstance(layer.base_layer, nn.Linear) and type(layer).forward is not _forward:
        layer.__class__ = _short_way_of(type(layer))  # type: ignore[arg-type]


def take_long_way(layer: Any) -> None:
    """Let it compute as peft does again; other layers are left alone."""
    if getattr(type(layer), "forward", None) is _forward:
        layer.__class__ = type(layer).__base__


@cache
def _short_way_of(kind: type[Any]) -> type[Any]:
    """A class, not a `forward` of the layer's own, which would hold the layer and its memory in a cycle."""
    return type(kind.__name__, (kind,), {"forward": _forward})


def has_autocast(device_type: str) -> bool:
    """Whether autocast is on there; the meta device, where memory is counted, does not know it at all."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _forward(layer: Any, x: Tensor) -> Tensor:
    active = layer._active_adapter
    if layer._disable_adapters and not layer.merged_adapters:
        return layer._modules["base_layer"](x)
    if layer.merged_adapters or not active or not all(_is_plain(layer, name) for name in active):
        return super(type(layer), layer).forward(x)
    flat, has_own_dtype = x.reshape(-1, x.shape[-1]), not has_autocast(x.device.type)
    y = layer._modules["base_layer"](flat)
    summed = y
    for name in active:  # one after the other: a LoRA of zeros behind another changes no bit
        down, up = (layer._modules[part]._modules[name].weight for part in ("lora_A", "lora_B"))
        # As in peft: without autocast the higher precision of sum and LoRA, brought back at the end.
        dtype = torch.promote_types(summed.dtype, down.dtype) if has_own_dtype else y.dtype
        given = summed.to(dtype), flat.to(dtype), down.to(dtype), up.to(dtype)
        scale = layer.scaling[name]
        if torch.is_grad_enabled():
            summed = AddedProduct.apply(*given, scale)
        else:
            summed = given[0].addmm_(given[1] @ given[2].t(), given[3].t(), alpha=scale)
    return summed.to(y.dtype).view(*x.shape[:-1], y.shape[-1])


def _is_plain(layer: Any, name: str) -> bool:
    """Nothing but two matrices and a factor: no dropout, bias or DoRA, however this peft says so."""
    tables = layer._modules
    return (
        isinstance(tables["lora_dropout"]._modules[name], nn.Identity)
        and tables["lora_B"]._modules[name].bias is None
        and name not in getattr(layer, "lora_variant", ())
        and not layer.use_dora.get(name)
    )
