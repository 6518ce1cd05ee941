"""Gated feed-forward layers (GEGLU) that keep less for their backward pass than torch does.

h·gelu(g) needs h and g again, which are one tensor; torch keeps gelu(g) beside, cheap as it is to compute.
These layers carry no LoRA and are the largest part of what a transformer block keeps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedGelu(torch.autograd.Function):
    """h·gelu(g) of [..., 2n], the first half h and the second g; keeps its input only."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """The product, [..., n]."""
        ctx.save_for_backward(both)
        hidden, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient of both halves."""
        (grad,), (both,) = grads, ctx.saved_tensors
        hidden, gate = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        grad_hidden, grad_gate = result.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=grad_hidden)
        grad_gate.copy_(torch.ops.aten.gelu_backward(grad * hidden, gate))
        return result


def keep_less_of_gated_layers(model: nn.Module) -> int:
    """Make the GEGLU layers of a diffusers model keep less, in place; returns their number."""
    from diffusers.models.activations import GEGLU

    found = [module for module in model.modules() if type(module) is GEGLU]
    for module in found:
        module.forward = partial(_gated, module)  # type: ignore[method-assign]
    return len(found)


def _gated(module: Any, hidden_states: Tensor) -> Tensor:
    both = module.proj(hidden_states)
    if torch.is_grad_enabled() and both.requires_grad:
        return GatedGelu.apply(both)  # type: ignore[no-any-return]
    hidden, gate = both.chunk(2, dim=-1)
    return F.gelu(gate).mul_(hidden)
