"""Renews the example workflows and their pictures with a real ComfyUI and its own page in headless Chromium.

    .venv/bin/python docs/workflows/make.py             # all nine, about ten minutes on two cores
    .venv/bin/python docs/workflows/make.py 1 4         # those whose names begin so
    .venv/bin/python docs/workflows/make.py --no-run    # only the JSON, without runs and pictures
    .venv/bin/python docs/workflows/make.py --base DIR  # keeps ComfyUI's files: a training is not repeated

What a workflow computes is written by hand in docs/api/<name>.json (ComfyUI's API format), how it looks in
layouts.py, its note in notes/<name>.md. ComfyUI's page turns them into its own format,
example_workflows/<name>.json, runs it, and is photographed. ComfyUI and Chromium are found as the tests find
them (COMFYUI_DIR, COMFYUI_PYTHON; see CONTRIBUTING.md). Nothing of an installed ComfyUI's folders is touched:
models, results and settings are in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui"), str(Path(__file__).parent)]

from conftest import PACK_NAME, find_install, run_server  # noqa: E402
from layouts import LAYOUTS, Layout, read_api, to_page  # noqa: E402
from model_files import PATHS  # noqa: E402

from tests.comfyui.comfy_page import NEW, WORKFLOWS, ComfyPage, open_browser, write_base  # noqa: E402

INTERFACE_PICTURE = ROOT / "docs" / "images" / "comfyui.jpg"
INTERFACE_OF = "4 Best of eight"
SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
}
VIEWPORT = {"width": 1600, "height": 1000}
RUN_TIMEOUT_MS = 3_600_000
PICTURE_SCALE, MARGIN_PX, JPEG_QUALITY = 0.68, 12, 80
MAX_PICTURE_BYTES = 300_000

log = logging.getLogger("workflows")


def main() -> None:
    """Renew the workflows that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; none means all")
    parser.add_argument("--base", type=Path, help="folder for ComfyUI's files; none means a temporary one")
    parser.add_argument("--no-run", action="store_true", help="write the JSON only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = {
        name: layout
        for name, layout in LAYOUTS.items()
        if not arguments.names or name.startswith(tuple(arguments.names))
    }
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        base = write_base((arguments.base or Path(folder)).resolve(), PACK_NAME, SETTINGS, PATHS)
        with run_server(find_install(), base) as server:
            for name, layout in chosen.items():
                server.forget()  # a node whose output is still known does not run again, and shows nothing
                page = ComfyPage(browser, server, NEW, VIEWPORT)
                page.page.set_default_timeout(RUN_TIMEOUT_MS)
                page.page.evaluate((Path(__file__).parent / "page.js").read_text("utf-8"))
                _write_workflow(page, name)
                if not arguments.no_run:
                    _take_picture(page, name, layout)
                page.page.close()


def _write_workflow(page: ComfyPage, name: str) -> None:
    """Load the API format, arrange it, and write down what the page makes of it."""
    page.page.evaluate("([api, name]) => window.app.loadApiJson(api, name)", [read_api(name), name])
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    page.page.evaluate("([l, v]) => window.t2mv.arrange(l, v)", [to_page(name), version[1]])
    workflow = json.loads(page.page.evaluate("window.t2mv.serialize()"))
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"t2mv/{name}"))  # the same at every renewal
    text = json.dumps(workflow, indent=2, ensure_ascii=False)
    (WORKFLOWS / f"{name}.json").write_text(text + "\n", "utf-8")
    log.info("wrote %s.json", name)


def _take_picture(page: ComfyPage, name: str, layout: Layout) -> None:
    """Open the written file as a user would, run it, photograph the graph."""
    page.drop(name)
    if layout.runs is None or layout.runs:
        _run(page, layout.runs)
        page.page.evaluate("api => window.t2mv.restoreSeeds(api)", read_api(name))
    for collision in page.collisions():
        log.warning("%s: %s", name, collision)
    _photograph(page, WORKFLOWS / f"{name}.jpg")
    if name == INTERFACE_OF:
        _photograph_interface(page)
    log.info("photographed %s", name)


def _run(page: ComfyPage, only: tuple[str, ...] | None) -> None:
    page.page.evaluate("window.t2mvPage.seen.length = 0")
    page.page.evaluate(
        "ids => { window.app.queuePrompt(0, 1, ids ?? undefined) }", list(only) if only else None
    )
    page.wait_for("execution_success")
    page.page.wait_for_load_state("networkidle")  # pictures arrive after the message


def _photograph(page: ComfyPage, path: Path) -> None:
    """The whole graph without menus."""
    page.page.evaluate("window.app.extensionManager.focusMode = true")
    _, _, width, height = page.page.evaluate("window.t2mv.bounds()")
    size = {
        "width": round(width * PICTURE_SCALE) + 2 * MARGIN_PX,
        "height": round(height * PICTURE_SCALE) + 2 * MARGIN_PX,
    }
    page.page.set_viewport_size(size)  # type: ignore[arg-type]
    page.page.evaluate("([s, m]) => window.t2mv.show(s, m, m)", [PICTURE_SCALE, MARGIN_PX])
    page.ask("settled")
    page.page.screenshot(path=path, type="jpeg", quality=JPEG_QUALITY)
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes; lower JPEG_QUALITY or PICTURE_SCALE.")


def _photograph_interface(page: ComfyPage) -> None:
    """The graph in ComfyUI's window, menus and all."""
    page.page.evaluate("window.app.extensionManager.focusMode = false")
    page.page.set_viewport_size({"width": 1600, "height": 950})
    page.page.evaluate("window.t2mv.show(0.68, 80, 100)")
    page.ask("settled")
    page.page.screenshot(path=INTERFACE_PICTURE, type="jpeg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
