"""Renews the example workflows and their pictures with a real ComfyUI and its own page in headless Chromium.

    .venv/bin/python docs/workflows/make.py             # all, about ten minutes on two cores
    .venv/bin/python docs/workflows/make.py 1 4         # those whose names begin so
    .venv/bin/python docs/workflows/make.py --no-run    # only the JSON, without runs and pictures
    .venv/bin/python docs/workflows/make.py --base DIR  # keeps ComfyUI's files: a training is not repeated

What a workflow computes is written by hand in docs/api/<name>.json (ComfyUI's API format), how it looks in
layouts.py, which is an app and a blueprint too in apps.py, its note in notes/<name>.md. ComfyUI's page turns
them into its own format, example_workflows/<name>.json, runs it, and is photographed. It must have the new
design of nodes (0.33 has). Where its core lacks a node of workflow 11, tests/comfyui/later_core stands in
with its sockets. ComfyUI and Chromium are found as the tests find them (COMFYUI_DIR, COMFYUI_PYTHON; see
CONTRIBUTING.md). Nothing of an installed ComfyUI's folders is touched: models, results
and settings are in a temporary folder.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import sys
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfyui"), str(Path(__file__).parent)]

from apps import APPS, BLUEPRINTS, to_app  # noqa: E402
from conftest import PACK_NAME, find_install, run_server  # noqa: E402
from layouts import LAYOUTS, Layout, read_api, to_page  # noqa: E402
from model_files import PATHS  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

from tests.comfyui.comfy_page import NEW, WORKFLOWS, ComfyPage, open_browser, write_base  # noqa: E402
from training.config import home_path  # noqa: E402

PICTURES = ROOT / "docs" / "images" / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INTERFACE_PICTURE = ROOT / "docs" / "images" / "comfyui.jpg"
INTERFACE_OF = "4 Best of eight"
SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
}
VIEWPORT = {"width": 1600, "height": 1000}
RUN_TIMEOUT_MS = 3_600_000
LINE_PX = 16  # of a contact sheet's texts
THUMBNAIL_PX, THUMBNAIL_SCALE = (512, 512), 0.66
PICTURE_SCALE, MARGIN_PX, JPEG_QUALITY = 0.68, 12, 80
MAX_PICTURE_BYTES = 300_000

log = logging.getLogger("workflows")


def main() -> None:
    """Renew the workflows that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; none means all")
    parser.add_argument("--base", type=home_path, help="folder for ComfyUI's files; none: a temporary one")
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
                if name in BLUEPRINTS:
                    _write_blueprint(page, name)
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
    _write(WORKFLOWS / f"{name}.json", workflow)
    if name in APPS:
        _write(WORKFLOWS / f"{name}.app.json", to_app(name, workflow))


def _write_blueprint(page: ComfyPage, name: str) -> None:
    """Make the blueprint of a written workflow."""
    page.drop(name)
    blueprint = page.page.evaluate("blueprint => window.t2mv.blueprint(blueprint)", asdict(BLUEPRINTS[name]))
    _write(SUBGRAPHS / f"{BLUEPRINTS[name].name}.json", json.loads(blueprint))


def _write(path: Path, workflow: dict[str, Any]) -> None:
    """Write a workflow with ids that are the same at every renewal."""
    workflow.setdefault("id", str(uuid.uuid4()))
    text = json.dumps(workflow, indent=2, ensure_ascii=False)
    for index, found in enumerate(dict.fromkeys(UUID.findall(text))):
        text = text.replace(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"t2mv/{path.name}/{index}")))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", "utf-8")
    log.info("wrote %s", path.name)


def _take_picture(page: ComfyPage, name: str, layout: Layout) -> None:
    """Open the written file as a user would, run it, photograph the graph."""
    page.drop(name)
    if layout.runs is None or layout.runs:
        _run(page, layout.runs)
        page.page.evaluate("api => window.t2mv.restoreSeeds(api)", read_api(name))
    for collision in page.collisions():
        log.warning("%s: %s", name, collision)
    _photograph(page, PICTURES / f"{name}.jpg")
    if name == INTERFACE_OF:
        _photograph_interface(page)
    thumbnail = (
        _draw_result(page, name, layout) if layout.result else _photograph_column(page, layout.closeup)
    )
    for ending in (".jpg", ".app.jpg") if name in APPS else (".jpg",):
        thumbnail.save(WORKFLOWS / f"{name}{ending}", quality=JPEG_QUALITY)
    log.info("photographed %s", name)


def _draw_result(page: ComfyPage, name: str, layout: Layout) -> Image.Image:
    """Draw the views that the workflow made, or another picture of it."""
    images = "id => window.app.nodeOutputs[id].images[0]"
    pictures = [
        Image.open(io.BytesIO(page.server.picture(page.page.evaluate(images, node)))).convert("RGB")
        for node in layout.result
    ]
    if read_api(name)[layout.result[0]]["class_type"] != "T2MVCreateContactSheet":
        return ImageOps.pad(pictures[0], THUMBNAIL_PX, color="white")
    sheets = [
        _views(sheet, **{key: read_api(name)[node]["inputs"][key] for key in ("cell_px", "row_labels")})
        for node, sheet in zip(layout.result, pictures, strict=True)
    ]
    columns, rows = len(sheets[0]) // 2, 2 // len(pictures)  # two rows in all
    cell = THUMBNAIL_PX[0] // columns
    thumbnail = Image.new("RGB", (columns * cell, 2 * cell))
    for index, view in enumerate(view for sheet in sheets for view in sheet[: columns * rows]):
        place = (index % columns * cell, index // columns * cell)
        thumbnail.paste(view.resize((cell, cell), Image.Resampling.LANCZOS), place)
    return ImageOps.pad(thumbnail, THUMBNAIL_PX, color=thumbnail.getpixel((2, 2)))


def _views(sheet: Image.Image, cell_px: int, row_labels: str) -> list[Image.Image]:
    """Cut the views out of a sheet: below a line of angles and, if any, its row's label."""
    top = LINE_PX * (2 if row_labels else 1)
    return [sheet.crop((x, top, x + cell_px, top + cell_px)) for x in range(0, sheet.width, cell_px)]


def _photograph_column(page: ComfyPage, index: int) -> Image.Image:
    """A column of the graph, large enough to be read."""
    width, height = THUMBNAIL_PX
    page.page.set_viewport_size({"width": width, "height": height})
    page.page.evaluate("([index, scale]) => window.t2mv.showColumn(index, scale)", [index, THUMBNAIL_SCALE])
    page.ask("settled")
    return Image.open(io.BytesIO(page.page.screenshot(type="png"))).convert("RGB")


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
    page.page.add_style_tag(content="button:has(> .pi-bars) { visibility: hidden }")
    _, _, width, height = page.page.evaluate("window.t2mv.bounds()")
    size = {
        "width": round(width * PICTURE_SCALE) + 2 * MARGIN_PX,
        "height": round(height * PICTURE_SCALE) + 2 * MARGIN_PX,
    }
    page.page.set_viewport_size(size)  # type: ignore[arg-type]
    page.page.evaluate("([s, m]) => window.t2mv.show(s, m, m)", [PICTURE_SCALE, MARGIN_PX])
    page.ask("settled")
    path.parent.mkdir(exist_ok=True)
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
