"""A new ComfyUI is a change in one file of the native nodes."""

from __future__ import annotations

import ast
from pathlib import Path

NATIVE = Path(__file__).parents[3] / "nodes" / "native"
INTERNALS = ("comfy", "comfy_extras", "comfy_execution")


def test_one_file_alone_names_comfyuis_internals() -> None:
    found = set()
    for path in NATIVE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found |= {path.name for name in names if name.split(".")[0] in INTERNALS}
    assert found == {"comfyui.py"}
