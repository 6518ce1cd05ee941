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
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui"), str(Path(__file__).parent)]

from conftest import PACK_NAME, find_install, run_server  # noqa: E402
from layouts import LAYOUTS, Layout, to_page  # noqa: E402
from playwright.sync_api import Page, sync_playwright  # noqa: E402

API_DIR, OUT_DIR = ROOT / "docs" / "api", ROOT / "example_workflows"
INTERFACE_PICTURE = ROOT / "docs" / "images" / "comfyui.jpg"
INTERFACE_OF = "4_best_of_8_standard"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = "window.LiteGraph?.registered_node_types.T2MVLoadModel && window.app?.graph?._nodes.length > 0"
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # a new user is greeted with a dialogue over the canvas
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,  # texts at any scale
}
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
    with tempfile.TemporaryDirectory() as folder:
        base = _create_base((arguments.base or Path(folder)).resolve())
        with run_server(find_install(), base) as server:
            for name, layout in chosen.items():
                server.forget()  # a node whose output is still known does not run again, and shows nothing
                with _open_page(server.url) as page:
                    _write_workflow(page, name)
                if arguments.no_run:
                    continue
                with _open_page(server.url) as page:
                    _take_picture(page, name, layout)


def _create_base(base: Path) -> Path:
    """ComfyUI's base folder: this pack, no models but placeholders."""
    for name in ("custom_nodes", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK_NAME
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), "utf-8")
    for path in {path for layout in LAYOUTS.values() for path in layout.placeholders}:
        (base / "models" / path).parent.mkdir(parents=True, exist_ok=True)
        (base / "models" / path).touch()
    return base


@contextmanager
def _open_page(url: str) -> Iterator[Page]:
    with sync_playwright() as driver:
        browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(RUN_TIMEOUT_MS)
        page.goto(url)
        page.wait_for_function(READY)
        page.evaluate((Path(__file__).parent / "page.js").read_text("utf-8"))
        page.evaluate("window.t2mv.follow()")
        yield page
        browser.close()


def _read_api(name: str) -> dict[str, Any]:
    return json.loads((API_DIR / f"{name}.json").read_text("utf-8"))


def _write_workflow(page: Page, name: str) -> None:
    """Load the API format, arrange it, and write down what the page makes of it."""
    page.evaluate("([api, name]) => window.app.loadApiJson(api, name)", [_read_api(name), name])
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    page.evaluate("([l, v]) => window.t2mv.arrange(l, v)", [to_page(name), version[1]])
    page.wait_for_timeout(300)
    workflow = json.loads(page.evaluate("window.t2mv.serialize()"))
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"t2mv/{name}"))  # the same at every renewal
    text = json.dumps(workflow, indent=2, ensure_ascii=False)
    (OUT_DIR / f"{name}.json").write_text(text + "\n", "utf-8")
    log.info("wrote %s.json", name)


def _take_picture(page: Page, name: str, layout: Layout) -> None:
    """Open the written file as a user would, run it, photograph the graph."""
    text = (OUT_DIR / f"{name}.json").read_text("utf-8")
    page.evaluate(
        "([text, name]) => window.app.handleFile(new File([text], name, {type: 'application/json'}))",
        [text, f"{name}.json"],
    )
    page.wait_for_function("n => window.app.graph._groups.length === n", arg=len(layout.columns))
    if layout.runs is None or layout.runs:
        _run(page, layout.runs)
        page.evaluate("api => window.t2mv.restoreSeeds(api)", _read_api(name))
    _photograph(page, OUT_DIR / f"{name}.jpg")
    if name == INTERFACE_OF:
        _photograph_interface(page)
    log.info("photographed %s", name)


def _run(page: Page, only: tuple[str, ...] | None) -> None:
    page.evaluate("window.seen.length = 0")
    page.evaluate("ids => { window.app.queuePrompt(0, 1, ids ?? undefined) }", list(only) if only else None)
    page.wait_for_function("window.seen.some(name => name.startsWith('execution_'))")
    seen: list[Any] = page.evaluate("window.seen")
    if "execution_success" not in seen:
        raise RuntimeError(f"The run ended otherwise: {seen[-1]}; see ComfyUI's log.")
    page.wait_for_timeout(3000)  # pictures arrive after the message


def _photograph(page: Page, path: Path) -> None:
    """The whole graph without menus."""
    page.evaluate("window.app.extensionManager.focusMode = true")
    page.add_style_tag(content=".comfy-menu-hamburger { display: none !important }")
    _, _, width, height = page.evaluate("window.t2mv.bounds()")
    size = {
        "width": round(width * PICTURE_SCALE) + 2 * MARGIN_PX,
        "height": round(height * PICTURE_SCALE) + 2 * MARGIN_PX,
    }
    page.set_viewport_size(size)  # type: ignore[arg-type]
    page.wait_for_timeout(1000)
    page.evaluate("([s, m]) => window.t2mv.show(s, m, m)", [PICTURE_SCALE, MARGIN_PX])
    page.wait_for_timeout(1500)
    page.screenshot(path=path, type="jpeg", quality=JPEG_QUALITY)
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise RuntimeError(f"{path} has {path.stat().st_size} bytes; lower JPEG_QUALITY or PICTURE_SCALE.")


def _photograph_interface(page: Page) -> None:
    """The graph in ComfyUI's window, menus and all."""
    page.evaluate("window.app.extensionManager.focusMode = false")
    page.set_viewport_size({"width": 1600, "height": 950})
    page.wait_for_timeout(1000)
    page.evaluate("window.t2mv.show(0.68, 80, 100)")
    page.wait_for_timeout(1500)
    page.screenshot(path=INTERFACE_PICTURE, type="jpeg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
