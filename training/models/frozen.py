"""Frozen convolutions that keep nothing for the backward pass but where they are.

The gradient of a convolution's input needs its weight and not the input; torch keeps the input all the same,
a third of what a residual block keeps. Linear layers do not have that habit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


class FrozenConvolution(torch.autograd.Function):
    """conv2d whose weight and bias get no gradient; values and the input's gradient are torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        """F.conv2d(x, weight, bias, stride, padding, dilation, groups)."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.geometry = x.shape, x.dtype, geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x alone."""
        (grad,), (weight,) = grads, ctx.saved_tensors
        # Under autocast the output was of a lower precision than the weight; its gradient is too.
        grad_x = conv2d_input(ctx.shape, weight.to(grad.dtype), grad, *ctx.geometry)
        return grad_x.to(ctx.dtype), None, None, None, None, None, None


def keep_no_inputs_of_frozen_convolutions(model: nn.Module) -> int:
    """Make the frozen 2-d convolutions of a model forget their inputs, in place; returns their number."""
    found = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]
    for module in found:
        module._conv_forward = partial(_convolve, module)  # type: ignore[method-assign]
    return len(found)


def _convolve(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    geometry: tuple[Any, ...] = (module.stride, module.padding, module.dilation, module.groups)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.conv2d(x, weight, bias, *geometry)
    return FrozenConvolution.apply(x, weight, bias, *geometry)
