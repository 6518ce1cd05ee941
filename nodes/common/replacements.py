"""Nodes of earlier versions, and what newer ComfyUIs put in their place when a workflow still has them."""

from __future__ import annotations

from typing import Any

REPLACEMENTS: tuple[dict[str, Any], ...] = (
    # It set how much memory sampling takes (now on Load Model); the model passes through, the same pictures.
    {
        "old_node_id": "T2MVSetMemory",
        "new_node_id": "ComfySwitchNode",
        "old_widget_ids": ["sequential_guidance", "feed_forward_views"],
        "input_mapping": [
            {"new_id": "switch", "set_value": True},
            {"new_id": "on_true", "old_id": "model"},
            {"new_id": "on_false", "old_id": "model"},
        ],
        "output_mapping": [{"new_idx": 0, "old_idx": 0}],
    },
)
"""The arguments of ComfyUI's io.NodeReplace. No node was ever renamed. Model from ComfyUI was removed, too,
but no node gives its output: the native nodes do its work."""


async def register_replacements() -> None:
    """Tell ComfyUI, where it has a place for that (0.33 has, 0.3.64 has not)."""
    from comfy_api.latest import ComfyAPI, io

    registry = getattr(ComfyAPI(), "node_replacement", None)
    if registry is None or not hasattr(io, "NodeReplace"):
        return
    for replacement in REPLACEMENTS:
        await registry.register(io.NodeReplace(**replacement))
