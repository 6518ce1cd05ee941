"""What nodes hand out beside tensors: files in ComfyUI's folders, never half of one, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...t2mv_core.formats.atomic import replaced

if TYPE_CHECKING:
    from comfy_api.latest import ui
    from comfy_execution.graph_utils import ExecutionBlocker
    from PIL import Image
    from torch import Tensor

MAX_NAME_BYTES = 200  # file systems stop at 255, and a counter and an ending follow
FOLDERS = ("output", "temp")
# Where ComfyUI looks for the workflow in a WEBP that is dropped onto the canvas: EXIF "Model" and "Make".
_PROMPT_TAG, _WORKFLOW_TAG = 0x0110, 0x010F


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


def save_output(
    content: bytes, prefix: str, ending: str, folder: str, size_px: tuple[int, int]
) -> ui.SavedResult:
    """Write a file under the next free number into one of ComfyUI's folders.

    Args:
        content: of the file.
        prefix: checked by `check_prefix`.
        ending: such as ".webp".
        folder: one of FOLDERS.
        size_px: width and height, which a prefix can ask for.
    """
    import folder_paths
    from comfy_api.latest import io, ui

    directory = folder_paths.get_directory_by_type(folder)
    prefix = prefix.replace("\\", "/")  # a workflow from Windows means a folder
    path, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, directory, *size_px)
    file_name = f"{name}_{counter:05}_{ending}"
    with replaced(Path(path) / file_name) as temporary:
        temporary.write_bytes(content)
    return ui.SavedResult(file_name, subfolder, io.FolderType(folder))


def workflow_exif(hidden: Any) -> bytes:
    """Return the workflow as EXIF, as ComfyUI's own animations carry it, unless ComfyUI was told not to."""
    from comfy.cli_args import args
    from PIL import Image

    exif = Image.Exif()
    if not args.disable_metadata and hidden is not None:
        if hidden.prompt is not None:
            exif[_PROMPT_TAG] = f"prompt:{json.dumps(hidden.prompt)}"
        if (hidden.extra_pnginfo or {}).get("workflow") is not None:
            exif[_WORKFLOW_TAG] = f"workflow:{json.dumps(hidden.extra_pnginfo['workflow'])}"
    return exif.tobytes()


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
