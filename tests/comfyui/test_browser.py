"""The example workflows in a real browser: dropped onto the canvas, queued, watched, cancelled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
STANDARD_VS_ZMV = "2_standard_vs_zmv"
TIMEOUT_MS = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The page opens with a workflow of its own; ours has to come after it.
READY = "window.LiteGraph?.registered_node_types.T2MVLoadModel && window.app?.graph?._nodes.length > 0"
# A file let go over the canvas, as the mouse does it.
DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name, {type: 'application/json'}));
    const canvas = document.querySelector('#graph-canvas');
    canvas.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
LOADED = "ids => window.app.graph._nodes.map(node => node.id).sort().join() === ids"
BROKEN_NODES = """() => window.app.graph._nodes
    .filter(node => node.has_errors || !(node.type in LiteGraph.registered_node_types))
    .map(node => node.type)"""
AS_SCRIPT = "async () => (await window.app.graphToPrompt()).output"
FOLLOW = """() => {
    window.seen = [];
    const names = ['progress', 'execution_success', 'execution_interrupted', 'execution_error'];
    names.forEach(name => window.app.api.addEventListener(name, () => window.seen.push(name)));
    window.app.api.addEventListener('b_preview_with_metadata', () => window.seen.push('preview'));
}"""
SET_WIDGET = """([type, name, value]) => {
    const node = window.app.graph._nodes.find(node => node.type === type);
    node.widgets.find(widget => widget.name === name).value = value;
}"""
SHOWN_SIZE = """type => {
    const node = window.app.graph._nodes.find(node => node.type === type);
    return node.imgs?.length ? [node.imgs[0].naturalWidth, node.imgs[0].naturalHeight] : null;
}"""
SHOWN_TEXT = """type => {
    const node = window.app.graph._nodes.find(node => node.type === type);
    return node.widgets.find(widget => widget.name === '$$node-text-preview')?.value ?? null;
}"""


LABEL = """([type, name]) => {
    const node = window.app.graph._nodes.find(node => node.type === type);
    return node.widgets.find(widget => widget.name === name).label;
}"""


@pytest.fixture(scope="module")
def browser(toybox: Path) -> Iterator[Any]:  # toybox first: without it, no server is needed
    """Headless Chromium, or a skip that says what to install."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; pip install playwright to drive a browser"
    )
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium to try the pack in a browser")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def page(browser: Any, server: ComfyServer) -> Any:
    """ComfyUI's page, ready."""
    opened = browser.new_page(viewport={"width": 1800, "height": 1300})
    opened.set_default_timeout(TIMEOUT_MS)
    opened.goto(server.url)
    opened.wait_for_function(READY)
    opened.evaluate(FOLLOW)
    return opened


def drop(page: Any, name: str) -> None:
    """Let the example's file go over the canvas and wait for its nodes."""
    text = (ROOT / "example_workflows" / f"{name}.json").read_text("utf-8")
    page.keyboard.press("Escape")  # a dialogue about files to download may be open
    page.evaluate(DROP, [f"{name}.json", text])
    ids = sorted(str(node["id"]) for node in json.loads(text)["nodes"])
    page.wait_for_function(LOADED, arg=",".join(ids))


def start_run(page: Any) -> None:
    page.evaluate("window.seen.length = 0")
    page.get_by_test_id("queue-button").get_by_role("button", name="Run", exact=True).click()


def wait_for(page: Any, event: str) -> None:
    page.wait_for_function(
        "name => window.seen.some(seen => seen === name || seen === 'execution_error')", arg=event
    )
    assert "execution_error" not in page.evaluate("window.seen")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_open_without_errors_and_say_what_the_script_versions_say(page: Any, name: str) -> None:
    drop(page, name)
    assert page.evaluate(BROKEN_NODES) == []
    sent = page.evaluate(AS_SCRIPT)
    expected = json.loads((ROOT / "docs" / "api" / f"{name}.json").read_text("utf-8"))
    assert {key: node["class_type"] for key, node in sent.items()} == {
        key: node["class_type"] for key, node in expected.items()
    }
    for key, node in expected.items():
        # The page adds what only it knows, such as the state of a 3D viewer.
        known = {field: value for field, value in sent[key]["inputs"].items() if field in node["inputs"]}
        assert known == node["inputs"]


def test_load_model_shows_its_sampler_as_solver(page: Any) -> None:
    drop(page, EXAMPLES[0])
    assert page.evaluate(LABEL, ["T2MVLoadModel", "sampler"]) == "solver"
    assert page.evaluate(LABEL, ["T2MVLoadModel", "precision"]) == "precision"


def test_drop_queue_watch_cancel_and_queue_again(page: Any, server: ComfyServer) -> None:
    server.forget()
    drop(page, STANDARD_VS_ZMV)
    start_run(page)
    wait_for(page, "execution_success")
    seen = page.evaluate("window.seen")
    assert seen.count("progress") >= 4 + 6  # standard: 4 evaluations; ZMV: 4 + 2
    assert seen.count("preview") >= 4 + 6
    page.wait_for_function(f"({SHOWN_SIZE})('T2MVCreateContactSheet') !== null")
    # angles above, a label above either row
    assert page.evaluate(SHOWN_SIZE, "T2MVCreateContactSheet") == [6 * 160, 16 + 2 * (16 + 160)]
    assert page.evaluate(SHOWN_TEXT, "T2MVScoreViews").startswith("toybox_clip 0.")
    assert page.evaluate(SHOWN_TEXT, "T2MVCreateCameraRig").startswith("6 views: 1 front 0°")

    page.evaluate(SET_WIDGET, ["T2MVSampleZMV", "steps", 50])
    start_run(page)
    page.wait_for_function("window.seen.includes('progress')")
    page.get_by_role("button", name="Cancel current run").click()
    wait_for(page, "execution_interrupted")

    page.evaluate(SET_WIDGET, ["T2MVSampleZMV", "steps", 5])
    start_run(page)
    wait_for(page, "execution_success")


def test_the_best_set_is_shown_with_its_rank_and_not_the_last_preview(page: Any, server: ComfyServer) -> None:
    server.forget()
    drop(page, "4_best_of_8_standard")
    page.evaluate(SET_WIDGET, ["T2MVSampleBest", "candidates", 3])
    start_run(page)
    wait_for(page, "execution_success")
    page.wait_for_function(f"({SHOWN_SIZE})('T2MVSampleBest')?.[0] === 6 * 128")  # the preview is smaller
    assert page.evaluate(SHOWN_TEXT, "T2MVSampleBest").startswith("kept: seed ")
