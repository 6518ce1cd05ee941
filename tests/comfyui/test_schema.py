"""What the running ComfyUI says of the pack: its nodes, their help, the workflow that comes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer

PACK_DIR = Path(__file__).parents[2]
NODE_IDS = sorted(page.stem for page in (PACK_DIR / "web" / "docs").glob("T2MV*.md"))
WORKFLOWS = sorted((PACK_DIR / "docs" / "api").glob("*.json"))


@pytest.fixture(scope="module")
def object_info(server: ComfyServer) -> dict[str, Any]:
    """Every node's schema, as the frontend gets it."""
    return json.loads(server.get("/object_info"))


def _inputs(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def test_all_nodes_are_there_and_no_others(object_info: dict[str, Any]) -> None:
    assert sorted(name for name in object_info if name.startswith("T2MV")) == NODE_IDS
    assert all(object_info[name]["category"].startswith("T2MV/") for name in NODE_IDS)


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_input_and_output_has_a_tooltip(object_info: dict[str, Any], node_id: str) -> None:
    schema = object_info[node_id]
    assert schema["description"]
    assert all(options.get("tooltip") for _, options in _inputs(schema).values())
    assert schema["output"]
    assert all(schema["output_tooltips"])


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_socket_types_are_prefixed_or_comfyuis_own(object_info: dict[str, Any], node_id: str) -> None:
    schema = object_info[node_id]
    types = {kind for kind, _ in _inputs(schema).values()} | set(schema["output"])
    own = {
        "COMBO",
        "STRING",
        "INT",
        "FLOAT",
        "BOOLEAN",
        "IMAGE",
        "LATENT",
        "LOAD3D_CAMERA",
        "MODEL",
        "SAMPLER",
    }
    assert all(kind in own or kind.startswith("T2MV_") for kind in types)


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_translations_and_help_pages_name_every_input(object_info: dict[str, Any], node_id: str) -> None:
    schema = object_info[node_id]
    translated = json.loads((PACK_DIR / "locales/zh/nodeDefs.json").read_text("utf-8"))[node_id]
    assert set(translated["inputs"]) == set(_inputs(schema))
    assert len(translated["outputs"]) == len(schema["output"])
    page = (PACK_DIR / f"web/docs/{node_id}.md").read_text("utf-8")
    if node_id in ("T2MVSampleZMV", "T2MVSampleBest"):  # their pages name the inputs they add
        page += (PACK_DIR / "web/docs/T2MVSampleZMV.md").read_text("utf-8")
        page += (PACK_DIR / "web/docs/T2MVSampleStandard.md").read_text("utf-8")
    assert [name for name in _inputs(schema) if name not in page] == []


def test_help_pages_are_served(server: ComfyServer) -> None:
    listed = json.loads(server.get("/workflow_templates"))
    assert listed["ComfyUI-T2MV"] == [
        path.stem for path in sorted((PACK_DIR / "example_workflows").glob("*.json"))
    ]
    assert server.get("/extensions/ComfyUI-T2MV/docs/T2MVLoadModel.md").startswith(b"# Load Model")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_schemas(object_info: dict[str, Any], path: Path) -> None:
    api = json.loads(path.read_text("utf-8"))
    for node in api.values():
        schema = object_info[node["class_type"]]
        known = _inputs(schema)
        assert set(node["inputs"]) <= set(known)
        assert set(schema["input"].get("required", {})) <= set(node["inputs"])
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source = object_info[api[value[0]]["class_type"]]["output"][value[1]]
                assert known[name][0] in (source, "*")
    shown = json.loads((PACK_DIR / "example_workflows" / path.name).read_text("utf-8"))
    for node in shown["nodes"]:
        if node["type"].startswith("T2MV"):
            assert _num_widgets(object_info[node["type"]]) == len(node.get("widgets_values", []))


def _num_widgets(schema: dict[str, Any]) -> int:
    """Widgets the frontend makes: one per value, and one more for a seed's control-after-generate."""
    kinds = ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN")
    return sum(
        1 + bool(options.get("control_after_generate"))
        for kind, options in _inputs(schema).values()
        if kind in kinds
    )
