"""The example workflows in a real browser: dropped onto the canvas, queued, watched, cancelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.comfyui.comfy_page import BROKEN_NODES, DESIGNS, NEW, ROOT, WORKFLOWS, ComfyPage, has_new_design

if TYPE_CHECKING:
    from conftest import ComfyServer
    from playwright.sync_api import Browser

EXAMPLES = sorted(path.stem for path in WORKFLOWS.glob("*.json") if not path.stem.endswith(".app"))
STANDARD_VS_ZMV = "2 Standard and zigzag"
AS_SCRIPT = "async () => (await window.app.graphToPrompt()).output"
LABEL = "name => window.t2mvPage.find('T2MVLoadModel').widgets.find(widget => widget.name === name).label"

# Nodes with a text, and the name of its box.
BOXES = {
    "CLIPTextEncode": "text",
    "PrimitiveStringMultiline": "value",
    "T2MVCreateContactSheet": "row_labels",
    "T2MVCreateTurntable": "filename_prefix",
    "T2MVSampleBest": "prompts",
    "T2MVSampleStandard": "prompt",
    "T2MVScoreViews": "prompts",
    "T2MVTrainLoRA": "prompts",
}
ADD_TEXT_BOXES = f"""typed => {{
    window.app.graph.clear()
    for (const [type, name] of Object.entries({json.dumps(BOXES)})) {{
        const node = LiteGraph.createNode(type)
        window.app.graph.add(node)
        node.widgets.find(widget => widget.name === name).value = typed
    }}
}}"""


@pytest.fixture(scope="module", params=DESIGNS)
def page(page_server: ComfyServer, browser: Browser, request: pytest.FixtureRequest) -> Iterator[ComfyPage]:
    """ComfyUI's page, ready, in both designs of its nodes."""
    if request.param == NEW and not has_new_design(page_server):
        pytest.skip("ComfyUI's page of this version has one design")
    opened = ComfyPage(browser, page_server, request.param)
    yield opened
    opened.page.close()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_open_without_errors_and_say_what_the_script_versions_say(
    page: ComfyPage, name: str
) -> None:
    expected = json.loads((ROOT / "docs/api" / f"{name}.json").read_text("utf-8"))
    page.server.skip_unless_known(expected)
    page.drop(name)
    assert page.page.evaluate(BROKEN_NODES) == []
    sent = page.page.evaluate(AS_SCRIPT)
    assert {key: node["class_type"] for key, node in sent.items()} == {
        key: node["class_type"] for key, node in expected.items()
    }
    for key, node in expected.items():
        # The page adds what only it knows, such as the state of a 3D viewer.
        known = {field: value for field, value in sent[key]["inputs"].items() if field in node["inputs"]}
        assert known == node["inputs"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_nodes_lie_apart_in_their_groups(page: ComfyPage, name: str) -> None:
    page.server.skip_unless_known(json.loads((ROOT / "docs/api" / f"{name}.json").read_text("utf-8")))
    page.drop(name)
    assert page.collisions() == []


def test_a_text_is_sent_as_it_stands_in_its_box(page: ComfyPage) -> None:
    """ComfyUI's page resolves {red|blue} and // in boxes with dynamic prompts, each box for itself."""
    typed = "a {red|blue} mug %date:yyyy% // later"
    page.drop(STANDARD_VS_ZMV)
    page.page.evaluate(ADD_TEXT_BOXES, typed)
    sent = [node for node in page.page.evaluate(AS_SCRIPT).values() if node["class_type"] in BOXES]
    texts = {node["class_type"]: node["inputs"][BOXES[node["class_type"]]] for node in sent}
    resolved = texts.pop("CLIPTextEncode")
    assert resolved.rstrip() in ("a red mug %date:yyyy%", "a blue mug %date:yyyy%")
    assert set(texts) == set(BOXES) - {"CLIPTextEncode"}
    assert set(texts.values()) == {typed}


def test_load_model_shows_its_sampler_as_solver(page: ComfyPage) -> None:
    page.drop(EXAMPLES[0])
    assert page.page.evaluate(LABEL, "sampler") == "solver"
    assert page.page.evaluate(LABEL, "precision") == "precision"


def test_drop_queue_watch_cancel_and_queue_again(page: ComfyPage, page_server: ComfyServer) -> None:
    page_server.forget()
    page.drop(STANDARD_VS_ZMV)
    page.start_run()
    seen = page.wait_for("execution_success")
    for node, evaluations in (("5", 4), ("6", 4 + 2)):  # standard; ZMV with one zigzag
        assert f"progress {node} {evaluations}/{evaluations}" in seen
        assert seen.count(f"preview {node}") == evaluations
    page.wait_until("window.t2mvPage.pictures('T2MVCreateContactSheet').length > 0")
    # angles above, a label above the row, a line of settings below
    assert page.ask("pictures", "T2MVCreateContactSheet") == [[6 * 160, 16 + 16 + 160 + 16]]
    assert page.ask("text", "T2MVScoreViews").startswith("toybox_clip 0.")
    assert page.ask("text", "T2MVCreateCameraRig").startswith("6 views: 1 front 0°")
    assert page.collisions() == []

    page.set_widget("T2MVSampleZMV", "steps", 50)
    page.start_run()
    page.wait_until("window.t2mvPage.seen.some(name => name.startsWith('progress 6'))")
    page.page.get_by_role("button", name="Cancel current run").click()
    page.wait_for("execution_interrupted")

    page.set_widget("T2MVSampleZMV", "steps", 5)
    page.start_run()
    page.wait_for("execution_success")


def test_nodes_keep_their_places_when_they_show_views(page: ComfyPage) -> None:
    page.drop("1 Text to views")
    page.start_run()
    page.wait_for("execution_success")
    for node_type in ("T2MVCreateContactSheet", "T2MVCreateTurntable", "PreviewImage"):
        page.wait_until("type => window.t2mvPage.pictures(type).length > 0", node_type)
    assert page.collisions() == []


def test_the_best_set_is_shown_once_with_its_rank(page: ComfyPage, page_server: ComfyServer) -> None:
    page_server.forget()
    page.drop("4 Best of eight")
    page.set_widget("T2MVSampleBest", "candidates", 3)
    page.start_run()
    page.wait_for("execution_success")
    # The previews are smaller, and the last one stays on the node unless it is taken away.
    page.wait_until(
        "width => { const shown = window.t2mvPage.pictures('T2MVSampleBest');"
        " return shown.length === 1 && shown[0][0] === width }",
        6 * 128,
    )
    assert page.ask("text", "T2MVSampleBest").startswith("kept: seed ")
    assert page.collisions() == []
