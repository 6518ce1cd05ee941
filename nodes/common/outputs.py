"""What nodes hand out beside tensors: names of files in ComfyUI's folders, pictures and refusals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_execution.graph_utils import ExecutionBlocker
    from PIL import Image
    from torch import Tensor

MAX_NAME_BYTES = 200  # file systems stop at 255, and a counter and an ending follow
FOLDERS = ("output", "temp")


def check_prefix(name: str, prefix: str | None) -> None:
    """Refuse a file name that could leave ComfyUI's folder or that a file system refuses; None passes.

    Subfolders ("mugs/red") and ComfyUI's %year% and the like are allowed.

    Raises:
        ValueError: with the prefix and what to write instead.
    """
    if prefix is None:
        return
    shown = repr(prefix[:80])
    parts = re.split(r"[/\\]", prefix)
    if not prefix.strip() or not parts[-1].strip(" ."):
        raise ValueError(f"{name}={shown} names no file; write a name such as 'T2MV/turntable'.")
    is_drive = re.match(r"[A-Za-z]:", prefix) is not None
    if prefix[0] in "/\\~" or is_drive or any(part.strip() == ".." for part in parts):
        raise ValueError(
            f"{name}={shown} leaves ComfyUI's folder; write a name inside it, such as 'T2MV/turntable'."
        )
    if ":" in prefix:
        raise ValueError(
            f"{name}={shown} holds ':', which file names cannot have. '%date:…%' is not filled in for this "
            "node; write %year%-%month%-%day%."
        )
    if not prefix.isprintable() or re.search(r'[<>"|?*]', prefix):
        raise ValueError(f"{name}={shown} holds characters that file names cannot have.")
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES or len(parts) > 10:
        raise ValueError(
            f"{name}={shown} is too long ({longest} bytes, {len(parts)} levels); at most {MAX_NAME_BYTES} "
            "bytes per name and 10 levels are allowed."
        )


def picture_tensor(picture: Image.Image) -> Tensor:
    """Return a PIL picture as ComfyUI's IMAGE, [1, H, W, 3] in [0, 1]."""
    import numpy as np
    import torch

    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 255.0)[None]


def blocked(reason: str) -> ExecutionBlocker:
    """Return an output that stops the nodes connected to it, and nothing else, with a sentence."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(reason)
