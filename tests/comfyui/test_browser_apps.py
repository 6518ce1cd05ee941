"""What today's ComfyUI offers beside the canvas: apps, blueprints, the list of templates, help pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.comfyui.comfy_page import BROKEN_NODES, NEW, ROOT, WORKFLOWS, ComfyPage, has_new_design

if TYPE_CHECKING:
    from conftest import ComfyServer
    from playwright.sync_api import Browser

APPS = sorted(path.stem for path in WORKFLOWS.glob("*.app.json"))
BLUEPRINTS = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
SHEET_PX = {  # angles, perhaps a label, views, settings
    "1 Text to views.app": [6 * 160, 16 + 160 + 16],
    "2 Standard and zigzag.app": [6 * 160, 16 + 16 + 160 + 16],
}
INPUTS = "window.app.graph._nodes[0].widgets.map(widget => widget.label ?? widget.name)"
SHOWN = "[...document.querySelectorAll('.lg-node img')]"
SIZES = """[...document.images].map(image => `${image.naturalWidth}x${image.naturalHeight}`)"""


@pytest.fixture
def page(page_server: ComfyServer, browser: Browser) -> Iterator[ComfyPage]:
    """ComfyUI's page with its new design, ready."""
    if not has_new_design(page_server):
        pytest.skip("ComfyUI's page of this version has neither apps nor blueprints")
    opened = ComfyPage(browser, page_server, NEW)
    yield opened
    opened.page.close()


@pytest.mark.parametrize("name", APPS)
def test_an_app_asks_for_prompt_seed_and_model_and_shows_its_sheet(
    page: ComfyPage, page_server: ComfyServer, name: str
) -> None:
    page_server.forget()
    page.drop(name)
    widgets = page.page.get_by_test_id("app-mode-widget-item")
    widgets.first.wait_for()
    assert widgets.count() == 3
    prompt = page.page.get_by_test_id("linear-widgets").locator("textarea")
    prompt.fill("a blue car")
    page.page.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
    page.wait_for("execution_success")
    width, height = SHEET_PX[name]
    page.wait_until(f"size => {SIZES}.includes(size)", f"{width}x{height}")
    history = json.loads(page_server.get("/history?max_items=1"))
    ((_, _, sent, *_),) = (entry["prompt"] for entry in history.values())
    assert "a blue car" in json.dumps(sent)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_added_and_run(page: ComfyPage, page_server: ComfyServer, name: str) -> None:
    page_server.forget()
    page.page.evaluate("window.app.graph.clear()")
    page.page.get_by_text("Nodes", exact=True).first.click()
    page.page.keyboard.type(name)
    page.page.get_by_text(name, exact=True).click()
    page.page.mouse.click(1000, 500)  # where it is let go
    page.wait_until("window.app.graph._nodes.length === 1")
    assert page.page.evaluate(BROKEN_NODES) == []
    assert page.page.evaluate(INPUTS) == ["prompt", "seed", "model"]
    page.start_run()
    page.wait_for("execution_success")
    sheets = 1 + name.startswith("Views with")
    page.wait_until(
        f"count => {SHOWN}.length === count && {SHOWN}.every(image => image.naturalWidth === 960)", sheets
    )


def test_templates_have_titles_and_pictures(page: ComfyPage) -> None:
    page.page.get_by_text("Templates", exact=True).first.click()
    page.page.get_by_text("ComfyUI-T2MV").click()
    for path in WORKFLOWS.glob("*.json"):  # the page draws only what is in sight
        title = page.page.get_by_text(path.stem, exact=True).first
        title.scroll_into_view_if_needed()
        picture = title.locator("xpath=ancestor::*[.//img][1]//img").first
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 512
