"""The precision that autocast computes in, where it is on."""

from __future__ import annotations

import torch
from torch import Tensor


def has_autocast(device_type: str) -> bool:
    """Return whether autocast is on; the meta device, where memory is counted, has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Return x in autocast's precision where it is on, else x itself.

    On CUDA a norm's output is float32 under autocast: every projection that reads it would make, and every
    LoRA keep for its backward pass, a copy of its own.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if has_autocast(kind) else x
