"""The example workflows as files: whole, complete, and free of what only one machine has."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHOWN_DIR, API_DIR = ROOT / "example_workflows", ROOT / "docs" / "api"
APPS = sorted(path.name.removesuffix(".app.json") for path in SHOWN_DIR.glob("*.app.json"))
NAMES = sorted({path.stem.removesuffix(".app") for path in SHOWN_DIR.glob("*.json")})
NOTES = {"Note", "MarkdownNote"}  # these exist in the page only
# What the examples use of ComfyUI itself; every other node would be one more pack to install.
CORE = {
    "BasicScheduler", "CFGGuider", "CFGOverride", "CLIPTextEncode", "CLIPVisionEncode",
    "CLIPVisionLoader", "Canny", "CheckpointLoaderSimple", "ControlNetApplyAdvanced", "ControlNetLoader",
    "DecimateMesh", "EmptyLatentHunyuan3Dv2", "EmptyTrellis2LatentStructure",
    "Hunyuan3Dv2ConditioningMultiView", "ImageFromBatch", "ImageOnlyCheckpointLoader", "InvertMask",
    "JoinImageWithAlpha", "KSampler", "LoadBackgroundRemovalModel", "LoadImage", "LoraLoaderModelOnly",
    "ModelSamplingAuraFlow", "ModelSamplingSD3", "Pixal3DMultiViewConditioning", "PreviewAny",
    "PreviewImage", "PrimitiveInt", "PrimitiveStringMultiline", "RandomNoise", "RemoveBackground",
    "RescaleCFG", "SamplerCustomAdvanced", "SaveGLB", "SaveImage", "Trellis2ShapeStage",
    "Trellis2UpsampleStage", "UNETLoader", "UnwrapMesh", "VAEDecode", "VAEDecodeHunyuan3D", "VAEEncode",
    "VAELoader", "VaeDecodeShapeTrellis", "VaeDecodeStructureTrellis2", "VoxelToMesh",
}  # fmt: skip
MAX_PICTURE_BYTES = 300_000


@pytest.fixture(scope="module")
def layouts() -> ModuleType:
    """docs/workflows/layouts.py, which is no package."""
    monkeypatch_path = pytest.MonkeyPatch()
    monkeypatch_path.syspath_prepend(ROOT / "docs" / "workflows")
    module = importlib.import_module("layouts")
    monkeypatch_path.undo()
    return module


def shown(name: str) -> dict[str, Any]:
    return json.loads((SHOWN_DIR / f"{name}.json").read_text("utf-8"))


def api(name: str) -> dict[str, Any]:
    return json.loads((API_DIR / f"{name}.json").read_text("utf-8"))


def notes(name: str) -> str:
    return "\n".join(node["widgets_values"][0] for node in shown(name)["nodes"] if node["type"] in NOTES)


def test_each_has_a_picture_a_script_version_and_a_layout(layouts: ModuleType) -> None:
    assert sorted(int(name.split()[0]) for name in NAMES) == list(range(1, 14))
    assert sorted(path.stem for path in SHOWN_DIR.glob("*.jpg")) == sorted(
        [*NAMES, *(f"{name}.app" for name in APPS)]
    )
    assert sorted(path.stem for path in API_DIR.glob("*.json")) == NAMES
    assert sorted(layouts.LAYOUTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_pictures_of_a_reasonable_size(name: str) -> None:
    path = SHOWN_DIR / f"{name}.jpg"
    assert (ROOT / "docs" / "images" / "workflows" / f"{name}.jpg").stat().st_size < MAX_PICTURE_BYTES
    assert path.stat().st_size < MAX_PICTURE_BYTES
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (512, 512)  # ComfyUI's page shows it in a square


@pytest.mark.parametrize("name", APPS)
def test_an_app_is_its_workflow_with_a_form(name: str) -> None:
    app, workflow = shown(f"{name}.app"), shown(name)
    form = app["extra"]["linearData"]
    assert app["extra"]["linearMode"] is True
    assert app["nodes"] == workflow["nodes"]
    assert app["links"] == workflow["links"]
    assert form["inputs"]
    assert form["outputs"]
    assert {node for node, _ in form["inputs"]} | set(form["outputs"]) <= set(api(name))
    assert all(isinstance(api(name)[node]["inputs"][widget], str | int) for node, widget in form["inputs"])


def test_every_node_of_ours_is_in_a_workflow() -> None:
    ours = {page.stem for page in (ROOT / "web" / "docs").glob("T2MV*.md")}
    assert ours <= {node["class_type"] for name in NAMES for node in api(name).values()}


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_with_its_contents(path: Path) -> None:
    blueprint = json.loads(path.read_text("utf-8"))
    (host,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert host["type"] == subgraph["id"]
    assert host["title"] == subgraph["name"] == path.stem
    assert subgraph["category"] == "T2MV"
    assert [slot["name"] for slot in host["inputs"]] == ["prompt", "seed", "model"]
    assert all(slot["linkIds"] for slot in subgraph["inputs"] + subgraph["outputs"])


@pytest.mark.parametrize("name", NAMES)
def test_only_nodes_of_comfyui_and_of_this_pack_are_used(name: str) -> None:
    ours = {page.stem for page in (ROOT / "web" / "docs").glob("T2MV*.md")}
    assert {node["type"] for node in shown(name)["nodes"]} <= ours | CORE | NOTES
    assert {node["class_type"] for node in api(name).values()} <= ours | CORE


@pytest.mark.parametrize("name", NAMES)
def test_links_are_known_at_both_ends(name: str) -> None:
    workflow = shown(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for link_id, source, source_slot, target, target_slot, kind in workflow["links"]:
        output = nodes[source]["outputs"][source_slot]
        assert link_id in output["links"]
        assert nodes[target]["inputs"][target_slot]["link"] == link_id
        assert kind in (output["type"], "*")
    named = [
        entry["link"]
        for node in nodes.values()
        for entry in node.get("inputs", [])
        if entry["link"] is not None
    ]
    assert sorted(named) == sorted(link[0] for link in workflow["links"])


@pytest.mark.parametrize("name", NAMES)
def test_what_people_see_and_what_scripts_send_is_the_same_graph(name: str) -> None:
    workflow = shown(name)
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    seen = {
        str(node["id"]): (
            node["type"],
            {entry["name"]: origin[entry["link"]] for entry in node["inputs"] if entry["link"] is not None},
        )
        for node in workflow["nodes"]
        if node["type"] not in NOTES
    }
    sent = {
        key: (
            node["class_type"],
            {field: value for field, value in node["inputs"].items() if isinstance(value, list)},
        )
        for key, node in api(name).items()
    }
    assert seen == sent


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_it_is_about_and_every_node_has_its_place(name: str, layouts: ModuleType) -> None:
    layout = layouts.LAYOUTS[name]
    written = (ROOT / "docs" / "workflows" / "notes" / f"{name}.md").read_text("utf-8")
    assert notes(name) == written  # make.py was run since
    assert len(shown(name)["groups"]) == len(layout.columns)
    placed = [node for column in layout.columns for node in column.nodes]
    assert sorted(placed) == sorted(api(name))
    assert set(layout.room) | set(layout.runs or ()) <= set(placed)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_file_has_an_address_a_folder_and_a_line_in_the_note(name: str) -> None:
    """Without the first two, ComfyUI's page offers no download and calls the folder unknown."""
    for node in shown(name)["nodes"]:
        values = [value for value in node.get("widgets_values", []) if isinstance(value, str)]
        files = {value for value in values if re.fullmatch(r"[^\n]+\.(?:safetensors|ckpt|pt|pth)", value)}
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        assert set(models) == files
        for file, model in models.items():
            assert model["url"].startswith("https://")
            assert file in notes(name)
            assert f"models/{model['directory']}" in notes(name)
    if "LCM-SDXL" in json.dumps(api(name)):
        for word in (
            "sd_xl_base_1.0",
            "lcm-sdxl",
            "sdxl-vae-fp16-fix",
            "mvadapter_t2mv_sdxl",
            "diffusion_models",
        ):
            assert word in notes(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", [SHOWN_DIR, API_DIR], ids=["shown", "api"])
def test_nothing_of_one_machine_is_in_the_files(folder: Path, name: str) -> None:
    values = re.findall(r'"((?:[^"\\]|\\.)*)"', (folder / f"{name}.json").read_text("utf-8"))
    assert not [value for value in values if re.match(r"/|~|[A-Za-z]:\\\\|\\\\\\\\|file:", value)]
    assert not [value for value in values if ".." in value]
