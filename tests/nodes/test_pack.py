"""The pack as a whole: what ComfyUI and its users look for in the folder."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import t2mv_pack

PACK_DIR = Path(__file__).parents[2]
NODE_IDS = sorted(
    match
    for path in (PACK_DIR / "nodes").rglob("*.py")
    for match in re.findall(r'node_id="(\w+)"', path.read_text("utf-8"))
)


def test_entry_point_is_v3_only() -> None:
    assert inspect.iscoroutinefunction(t2mv_pack.comfy_entrypoint)
    assert not hasattr(t2mv_pack, "NODE_CLASS_MAPPINGS")  # ComfyUI would then ignore the entry point
    assert (PACK_DIR / t2mv_pack.WEB_DIRECTORY).is_dir()


def test_without_comfyui_only_the_entry_point_fails() -> None:
    if "comfy_api" in sys.modules:
        pytest.skip("ComfyUI is loaded in this process")
    with pytest.raises(ModuleNotFoundError, match="comfy_api"):
        t2mv_pack.comfy_entrypoint().send(None)  # no event loop: Playwright's may be running in this process


def test_every_node_has_a_prefix_a_help_page_and_a_translation_and_none_is_left_over() -> None:
    pages = sorted((PACK_DIR / "web" / "docs").glob("*.md"))
    translated = json.loads((PACK_DIR / "locales/zh/nodeDefs.json").read_text("utf-8"))
    assert [page.stem for page in pages] == sorted(translated) == NODE_IDS
    assert all(page.read_text("utf-8").startswith("# ") for page in pages)
    assert all(name.startswith("T2MV") and translated[name]["display_name"] for name in NODE_IDS)
