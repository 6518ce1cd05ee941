"""Less memory: guidance in two passes, and weights in 8 bits.

Neither changes a model that somebody else may be using: `MemorySettings` is a value of a bundle and holds for
its own calls only; `with_float8_storage` copies the UNet.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .bundle import ModelBundle

_KEPT_PRECISE = ("norm", "time_embedding", "add_embedding", "conv_in", "conv_out", "lora_")
"""Parts of names of modules that are small and matter to every number."""


@dataclass(frozen=True)
class MemorySettings:
    """How the denoiser calls a bundle's UNet; results differ by rounding only.

    Attributes:
        sequential_guidance: classifier-free guidance in two passes of half the batch. Models with a guidance
            embedding have one pass anyway.
    """

    sequential_guidance: bool = False


def with_float8_storage(bundle: ModelBundle) -> ModelBundle:
    """A bundle whose UNet keeps its large weights in 8 bits and computes in the given bundle's precision.

    Weights are rounded to float8_e4m3fn (3 bits of mantissa): half the memory of bfloat16, other pictures,
    and slower, as each layer is unpacked for its call. Norms, embeddings of time and size, first and last
    convolution and LoRAs keep their precision. The UNet is a new one: the given bundle computes what it did,
    and its weights are free once nobody holds it. For sampling only: its backward pass would fail.

    Raises:
        ValueError: this diffusers is too old.
    """
    if not hasattr(bundle.unet, "enable_layerwise_casting"):
        raise ValueError("8-bit storage needs diffusers 0.33 or newer; update it, or do without.")
    rounded = {
        id(module.weight): nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
        for name, module in bundle.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(part in name for part in _KEPT_PRECISE)
    }
    # deepcopy takes them for copied already: the full-precision weights never exist twice.
    unet = copy.deepcopy(bundle.unet, rounded)  # type: ignore[arg-type]
    unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=bundle.dtype, skip_modules_pattern=_KEPT_PRECISE
    )
    return replace(bundle, unet=unet)
