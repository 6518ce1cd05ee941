"""Less memory for the same pictures: what a bundle may ask for, and where its parts lie while they work.

Nothing here changes a model that somebody else may be using: `MemorySettings` is a value of a bundle, obeyed
for its own calls; `placed` puts everything back; `with_float8_storage` makes a model of its own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .bundle import ModelBundle

_KEPT_PRECISE = ("norm", "time_embedding", "add_embedding", "conv_in", "conv_out", "lora_")
"""Parts of names of modules that are small and matter to every number."""

# A UNet's transformer blocks, found once: looking through all modules at every call took the toybox 2 %.
_BLOCKS: weakref.WeakKeyDictionary[nn.Module, list[Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class MemorySettings:
    """How a bundle's UNet is asked; results differ by rounding only.

    Attributes:
        sequential_guidance: classifier-free guidance in two passes of half the batch. Models with a guidance
            embedding have one pass anyway.
        feed_forward_views: views that go through a feed-forward layer at once, the largest divisor of the
            batch that is not greater; 0 is all of them.
    """

    sequential_guidance: bool = False
    feed_forward_views: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.feed_forward_views < 0:
            raise ValueError(
                f"feed_forward_views={self.feed_forward_views} must be at least 1, or 0 for all views."
            )


def chunk_feed_forward(unet: nn.Module, batch_size: int, num_views: int) -> None:
    """Let the UNet's next call send so many views at once through its feed-forward layers.

    Every UNet call says anew what it wants, as with LoRAs: nothing depends on what was asked before, and
    gradient checkpointing, which runs the forward again during the backward pass, finds what it had.

    Args:
        unet: with diffusers' transformer blocks.
        batch_size: B·V of that call.
        num_views: see `MemorySettings.feed_forward_views`.
    """
    chunk_size = None
    if 0 < num_views < batch_size:
        chunk_size = next(size for size in range(num_views, 0, -1) if batch_size % size == 0)
    if unet not in _BLOCKS:
        blocks = [x for x in unet.modules() if getattr(x, "set_chunk_feed_forward", None) is not None]
        _BLOCKS[unet] = blocks
    for block in _BLOCKS[unet]:
        block.set_chunk_feed_forward(chunk_size, dim=0)


@contextmanager
def placed(device: torch.device | str, *modules: nn.Module) -> Iterator[None]:
    """Have modules on a device for the length of a block; afterwards they are where they were.

    The weights that lay elsewhere stay there too, so that leaving costs no copy; they must not be trained
    inside. For text encoders before the UNet comes, the camera encoder, the VAE at the end.

    Args:
        device: where to.
        modules: parts of a bundle.
    """
    tables = [
        table
        for module in modules
        for part in module.modules()
        for table in (part._parameters, part._buffers)
    ]
    homes = [dict(table) for table in tables]
    there: dict[int, Tensor | None] = {}  # a tensor that two modules share goes there once
    try:
        for table, home in zip(tables, homes, strict=True):
            for name, tensor in home.items():
                if id(tensor) not in there:
                    there[id(tensor)] = _on(device, tensor)
                table[name] = there[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for table, home in zip(tables, homes, strict=True):
            table.update(home)  # type: ignore[arg-type]


def _on(device: torch.device | str, tensor: Tensor | None) -> Tensor | None:
    """The tensor itself if it is there already, else a copy of its kind."""
    moved = None if tensor is None else tensor.detach().to(device)
    if moved is None or tensor is None or moved.device == tensor.device:
        return tensor
    is_weight = isinstance(tensor, nn.Parameter)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if is_weight else moved


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
