"""T2MV for ComfyUI: text to multiview pictures in a few steps, with ZMV sampling, LoRA and rewards.

ComfyUI imports this folder by path; nothing heavy happens until a node runs.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Hand ComfyUI the extension (the V3 entry point)."""
    from .nodes.extension import T2MVExtension  # here, so that pytest can import this file without ComfyUI

    return T2MVExtension()
