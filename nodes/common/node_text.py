"""Text on a node while and after it runs."""

from __future__ import annotations

from comfy_api.latest import io


def show_text(node: type[io.ComfyNode], text: str) -> None:
    """Show a text on the running node, which must ask for `io.Hidden.unique_id`.

    `ui.PreviewText` alone reaches API clients, but ComfyUI's page (1.27) draws it on Preview Any only.
    """
    from server import PromptServer

    if node.hidden is not None and node.hidden.unique_id is not None:
        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)
