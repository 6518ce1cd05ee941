"""The example workflow in a real browser: dropped onto the canvas, queued, pictures shown, cancelled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer

WORKFLOW = Path(__file__).parents[2] / "example_workflows" / "standard_vs_zmv.json"
TIMEOUT_MS = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The page opens with a workflow of its own; ours has to come after it.
READY = "window.LiteGraph?.registered_node_types.T2MVLoadModel && window.app?.graph?._nodes.length > 0"
LOADED = "window.app.graph._nodes.some(node => node.type === 'T2MVLoadModel')"
# What dropping a file onto the canvas calls.
DROP = """async text => {
    await window.app.handleFile(new File([text], 'standard_vs_zmv.json', {type: 'application/json'}));
    window.app.canvas.ds.reset();
}"""
NODES = "window.app.graph._nodes.map(node => [node.type, node.has_errors === true])"
FOLLOW = """() => {
    window.seen = [];
    const names = ['progress', 'execution_success', 'execution_interrupted', 'execution_error'];
    names.forEach(name => window.app.api.addEventListener(name, () => window.seen.push(name)));
}"""
QUEUE_LONG_RUN = """() => {
    window.seen.length = 0;
    const zmv = window.app.graph._nodes.find(node => node.type === 'T2MVSampleZMV');
    zmv.widgets.find(widget => widget.name === 'steps').value = 50;
    return window.app.queuePrompt(0);
}"""
SHEET_PICTURE = """() => {
    const sheet = window.app.graph._nodes.find(node => node.type === 'T2MVCreateContactSheet');
    return sheet.imgs?.length ? [sheet.imgs[0].naturalWidth, sheet.imgs[0].naturalHeight] : null;
}"""


@pytest.fixture(scope="module")
def page(toybox: Path, server: ComfyServer) -> Iterator[Any]:  # toybox first: without it, no server is needed
    """ComfyUI's page in headless Chromium, or a skip that says what to install."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright to drive a browser"
    )
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium to try the pack in a browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1800, "height": 1300})
        opened.set_default_timeout(TIMEOUT_MS)
        opened.goto(server.url)
        opened.wait_for_function(READY)
        yield opened
        browser.close()


@pytest.fixture
def example_text(toybox: Path) -> str:
    """The example workflow, which runs on the toybox."""
    return WORKFLOW.read_text("utf-8")


def _wait_for(page: Any, event: str) -> None:
    page.wait_for_function(
        "name => window.seen.some(seen => seen === name || seen === 'execution_error')", arg=event
    )
    assert "execution_error" not in page.evaluate("window.seen")


def test_the_example_workflow_loads_runs_and_can_be_cancelled(page: Any, example_text: str) -> None:
    page.evaluate(DROP, example_text)
    page.wait_for_function(LOADED)
    nodes = page.evaluate(NODES)
    assert sum(kind.startswith("T2MV") for kind, _ in nodes) == 9
    assert not any(has_errors for _, has_errors in nodes)
    page.evaluate(FOLLOW)

    page.evaluate("window.app.queuePrompt(0)")
    _wait_for(page, "execution_success")
    seen = page.evaluate("window.seen")
    assert seen.count("progress") >= 4 + 6  # standard: 4 evaluations; ZMV: 4 + 2
    page.wait_for_function(f"({SHEET_PICTURE})() !== null")
    width, height = page.evaluate(SHEET_PICTURE)
    assert (width, height) == (6 * 160, 16 + 2 * (16 + 160))  # angles above, a label above either row
    if picture := os.environ.get("T2MV_SCREENSHOT"):
        page.wait_for_timeout(1000)
        page.screenshot(path=picture)

    page.evaluate(QUEUE_LONG_RUN)
    page.wait_for_function("window.seen.includes('progress')")
    page.evaluate("window.app.api.interrupt()")
    _wait_for(page, "execution_interrupted")
