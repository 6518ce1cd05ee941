"""Differences of whole weights and biases in a LoRA's file: silent until a bundle lists the LoRA.

ComfyUI and LyCORIS write them for biases and norms, beside matrices, and for layers as a whole. A layer is
linear in weight and bias, so that the layer's output plus that of the differences is exact; the weights stay
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's name for it
from torch import Tensor, nn

_CHILD = "lora_differences_"


class LoraDifferences(nn.Module):
    """The differences of one LoRA, a child of the UNet so that they move with it.

    Attributes:
        name: of the LoRA.
        strength: factor on their effect; 0 is silent, to the last bit.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.strength = name, 0.0
        self.tensors = nn.ParameterList()
        self._handles: list[Any] = []

    def add(self, layer: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
        """Let differences act on a layer's output."""
        if weight is None and isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            weight = torch.zeros_like(layer.weight)  # torch takes a missing weight for 1
        hook = partial(self._act, weight=self._keep(weight), bias=self._keep(bias))
        self._handles.append(layer.register_forward_hook(hook))

    def detach(self) -> None:
        """Take all differences off their layers."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.tensors.append(nn.Parameter(tensor, requires_grad=False))
        return len(self.tensors) - 1

    def _act(
        self, layer: nn.Module, args: tuple[Tensor], output: Tensor, weight: int | None, bias: int | None
    ) -> Tensor | None:
        if self.strength == 0.0:
            return None
        w, b = (None if place is None else self.tensors[place].to(args[0].dtype) for place in (weight, bias))
        return output + self.strength * _apply(layer, args[0], w, b).to(output.dtype)


def attach_differences(
    unet: nn.Module, name: str, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> None:
    """Attach a LoRA's differences, silently.

    Args:
        unet: the UNet.
        name: of the LoRA.
        layers: the UNet's, by name.
        tensors: what is added, by the names of the UNet's weights and biases.
    """
    differences = LoraDifferences(name)
    for layer in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        differences.add(layers[layer], tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.bias"))
    unet.add_module(_CHILD + name, differences)


def detach_differences(unet: nn.Module, name: str) -> None:
    """Detach a LoRA's differences, if it has some."""
    differences = unet._modules.pop(_CHILD + name, None)
    if isinstance(differences, LoraDifferences):
        differences.detach()


def find_differences(unet: nn.Module) -> Iterator[LoraDifferences]:
    """Yield the differences of every LoRA that has some."""
    for child in unet._modules.values():
        if isinstance(child, LoraDifferences):
            yield child


def _apply(layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return what a layer would give with these in place of its weight and bias."""
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    is_conv = isinstance(layer, nn.Conv2d)
    if weight is None:
        assert bias is not None
        return bias[:, None, None] if is_conv else bias
    return layer._conv_forward(x, weight, bias) if is_conv else F.linear(x, weight, bias)
