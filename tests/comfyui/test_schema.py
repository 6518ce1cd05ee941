"""What the running ComfyUI says of the pack: its nodes, their help, the workflows that come with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from t2mv_core.defaults import DEFAULTS

if TYPE_CHECKING:
    from conftest import ComfyServer

PACK_DIR = Path(__file__).parents[2]
NODE_IDS = sorted(page.stem for page in (PACK_DIR / "web" / "docs").glob("T2MV*.md"))
EXAMPLES = sorted(path.stem for path in (PACK_DIR / "example_workflows").glob("*.json"))
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # choices that bring inputs of their own
WIDGETS = ("COMBO", DYNAMIC_COMBO, "STRING", "INT", "FLOAT", "BOOLEAN")
TO_DOWNLOAD = {
    ("CLIPVisionLoader", "clip_name"),
    ("ControlNetLoader", "control_net_name"),
    ("ImageOnlyCheckpointLoader", "ckpt_name"),
    ("LoadBackgroundRemovalModel", "bg_removal_name"),
    ("LoadImage", "image"),
    ("LoraLoaderModelOnly", "lora_name"),
    ("T2MVApplyAdapter", "adapter"),
    ("T2MVLoadLoRA", "lora"),
    ("T2MVLoadLoRANative", "lora"),
    ("UNETLoader", "unet_name"),
    ("VAELoader", "vae_name"),
}
OF_THE_PAGE = {("LoadImage", "upload"), ("SaveGLB", "image")}  # a button and a viewer that the page adds


def read_api(name: str) -> dict[str, Any]:
    """What an example, or the example that an app is made of, sends."""
    return json.loads((PACK_DIR / "docs/api" / f"{name.removesuffix('.app')}.json").read_text("utf-8"))


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
def test_no_box_has_dynamic_prompts(object_info: dict[str, Any], node_id: str) -> None:
    """With them the page would resolve {a|b} for each box anew: one is drawn, another one scored."""
    boxes = [declared for declared in _inputs(object_info[node_id]).values() if _has_widget(declared)]
    assert all(options["dynamicPrompts"] is False for kind, options in boxes if kind == "STRING")


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_socket_types_are_prefixed_or_comfyuis_own(object_info: dict[str, Any], node_id: str) -> None:
    schema = object_info[node_id]
    types = {kind for kind, _ in _inputs(schema).values()} | set(schema["output"])
    own = set("COMBO STRING INT FLOAT BOOLEAN IMAGE LATENT LOAD3D_CAMERA MASK MESH VOXEL".split())
    own |= {"MODEL", "CLIP", "VAE", "SAMPLER"}
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


@pytest.mark.parametrize("node_id", ["T2MVSampleStandard", "T2MVSampleZMV", "T2MVSampleBest"])
def test_a_new_sampler_begins_with_the_models_own_numbers(object_info: dict[str, Any], node_id: str) -> None:
    inputs, own = _inputs(object_info[node_id]), {"steps": 0, "guidance": 0, "zigzag_steps": -1}
    own["ref_scale"] = -1
    for name, number in {**own, "inverse_guidance": -1, "inverse_view_scale": -1}.items():
        if name in inputs:
            _, options = inputs[name]
            assert (options["default"], options["min"]) == (number, number)
            assert f"{number} takes the model's own: " in options["tooltip"]
    # What is new comes last, so that saved workflows keep their values.
    scales = ["ref_scale"] if node_id == "T2MVSampleStandard" else ["ref_scale", "inverse_ref_scale"]
    assert list(inputs)[-3 - len(scales) :] == ["rig", "negative_prompt", "reference", *scales]


def test_apply_mv_adapter_begins_with_the_picture_as_trained(object_info: dict[str, Any]) -> None:
    """The model is not known to the node, so -1 cannot stand for its own number."""
    _, options = _inputs(object_info["T2MVApplyAdapter"])["ref_scale"]
    assert (options["default"], options["min"]) == (1.0, 0.0)


def test_the_native_zigzag_begins_with_the_published_numbers(object_info: dict[str, Any]) -> None:
    """It learns of its model only when it runs."""
    inputs, published = _inputs(object_info["T2MVCreateZigzagSampler"]), DEFAULTS["lcm-sdxl"]
    for name, number in (
        ("zigzag_steps", published.zigzag_steps), ("inverse_guidance", published.inverse_guidance_scale),
        ("inverse_view_scale", published.inverse_view_scale),
    ):  # fmt: skip
        _, options = inputs[name]
        assert (options["default"], options["min"]) == (number, 0)
    assert "not tried with SDXL and LCM-SDXL" in inputs["inverse_view_scale"][1]["tooltip"]
    own_sampler = _inputs(object_info["T2MVSampleZMV"])
    assert "not tried with LCM-SDXL and SDXL" in own_sampler["inverse_view_scale"][1]["tooltip"]


def test_load_model_shows_its_sampler_as_solver(object_info: dict[str, Any]) -> None:
    """The id stays, as saved workflows have it; the word sampler means standard or zmv elsewhere."""
    kind, options = _inputs(object_info["T2MVLoadModel"])["sampler"]
    assert (kind, options["display_name"]) == ("COMBO", "solver")
    assert options["options"] == ["auto", "lcm", "ddim", "ddim-trailing"]
    # ComfyUI's page 1.27 reads the name of an input from translations only.
    named = json.loads((PACK_DIR / "locales/en/nodeDefs.json").read_text("utf-8"))
    assert named["T2MVLoadModel"]["inputs"]["sampler"]["name"] == options["display_name"]


def test_help_pages_are_served(server: ComfyServer) -> None:
    listed = json.loads(server.get("/workflow_templates"))
    assert sorted(listed["ComfyUI-T2MV"]) == EXAMPLES
    assert server.get(f"/api/workflow_templates/ComfyUI-T2MV/{quote(EXAMPLES[0])}.jpg").startswith(
        b"\xff\xd8"
    )
    assert server.get("/extensions/ComfyUI-T2MV/docs/T2MVLoadModel.md").startswith(b"# Load Model")


def test_nodes_on_comfyuis_own_model_are_experimental(object_info: dict[str, Any]) -> None:
    experimental = {name for name in NODE_IDS if object_info[name].get("experimental")}
    assert experimental == {
        "T2MVApplyAdapter",
        "T2MVCreateZigzagSampler",
        "T2MVEmbedGuidance",
        "T2MVEmptyLatent",
        "T2MVLoadLoRANative",
        "T2MVShiftSNR",
    }


def test_schemas_use_what_this_comfyui_offers(object_info: dict[str, Any]) -> None:
    if "search_aliases" not in object_info["KSampler"]:
        pytest.skip("This ComfyUI knows no extras.")
    assert all(object_info[name]["search_aliases"] for name in NODE_IDS)
    keeping = {name for name in NODE_IDS if object_info[name].get("has_intermediate_output")}
    assert keeping >= {"T2MVCreateCameraRig", "T2MVLoadLoRA", "T2MVCreateContactSheet", "T2MVScoreViews"}
    assert not keeping & {"T2MVLoadModel", "T2MVSampleStandard"}
    assert keeping >= {"T2MVLoadLoRANative", "T2MVTrainLoRA", "T2MVSampleBest", "T2MVCreateTurntable"}
    essential = {name for name in NODE_IDS if object_info[name].get("essentials_category")}
    assert essential == {"T2MVLoadModel", "T2MVSampleStandard", "T2MVCreateContactSheet"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_example_uses_a_node_that_comfyui_gives_up(object_info: dict[str, Any], name: str) -> None:
    api = read_api(name)
    deprecated = {kind for kind, schema in object_info.items() if schema.get("deprecated")}
    assert deprecated  # the core marks some
    assert {node["class_type"] for node in api.values()} & deprecated == set()


@pytest.mark.parametrize("name", EXAMPLES)
def test_script_versions_fit_the_schemas(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    server.skip_unless_known(api := read_api(name))
    for node in api.values():
        schema = object_info[node["class_type"]]
        known = _inputs(schema)
        assert set(node["inputs"]) <= set(known)
        assert set(schema["input"].get("required", {})) <= set(node["inputs"])
        if node["class_type"].startswith("T2MV"):  # nothing is left to a default, which may change
            widgets = {field for field in known if _has_widget(known[field])}
            assert widgets <= set(node["inputs"])
        for field, value in node["inputs"].items():
            if isinstance(value, list):
                _check_link(object_info, api, known[field], value)
            else:
                _check_value(node["class_type"], field, known[field], value)


@pytest.mark.parametrize("name", EXAMPLES)
def test_shown_workflows_fit_the_schemas(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    server.skip_unless_known(read_api(name))
    shown = json.loads((PACK_DIR / "example_workflows" / f"{name}.json").read_text("utf-8"))
    for node in shown["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):  # they exist in the page only
            assert node["widgets_values"][0]
            continue
        schema = object_info[node["type"]]
        known = _inputs(schema)
        own = [entry for entry in node["inputs"] if (node["type"], entry["name"]) not in OF_THE_PAGE]
        names = {entry["name"] for entry in own}
        assert names <= set(known)
        assert all(_accepts(known[entry["name"]], entry["type"]) for entry in own)
        kinds = ["COMBO" if isinstance(kind, list) else kind for kind in schema["output"]]
        # What is new in a node since a workflow was kept comes last, and may be missing.
        assert set(schema["input"].get("required", {})) <= names
        outputs = [output["type"] for output in node["outputs"]]
        if not node["type"].startswith("T2MV"):  # the core's preview nodes have had an output since 2026
            outputs = outputs[: len(kinds)]
        assert outputs == kinds[: len(outputs)]
        linked = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        fields = _widget_fields(schema)
        values = node.get("widgets_values", [])
        assert len(values) == len(fields) + len(node["inputs"]) - len(own)
        for field, value in zip(fields, values, strict=False):
            if field is not None and field not in linked:
                _check_value(node["type"], field, known[field], value)


def _kind(declared: list[Any]) -> str:
    """The type of an input; a list of choices is how nodes before V3 say COMBO."""
    return "COMBO" if isinstance(declared[0], list) else declared[0]


def _has_widget(declared: list[Any]) -> bool:
    return _kind(declared) in WIDGETS and not (declared[1] if len(declared) > 1 else {}).get("forceInput")


def _widget_fields(schema: dict[str, Any]) -> list[str | None]:
    """The inputs that have a box, in the frontend's order; None is a seed's control-after-generate."""
    fields: list[str | None] = []
    for field, declared in _inputs(schema).items():
        if not _has_widget(declared):
            continue
        fields.append(field)
        options = declared[1] if len(declared) > 1 else {}
        # The frontend gives every whole number called "seed" the control unless told otherwise.
        if options.get(
            "control_after_generate", _kind(declared) == "INT" and field in ("seed", "noise_seed")
        ):
            fields.append(None)
    return fields


def _check_link(
    object_info: dict[str, Any], api: dict[str, Any], declared: list[Any], link: list[Any]
) -> None:
    assert _accepts(declared, object_info[api[link[0]]["class_type"]]["output"][link[1]])


def _accepts(declared: list[Any], kind: str) -> bool:
    """Return whether an input takes a type; one that takes several, as a newer core's do, has commas."""
    return _kind(declared) == "*" or not set(kind.split(",")).isdisjoint(_kind(declared).split(","))


def _check_value(node_type: str, field: str, declared: list[Any], value: Any) -> None:
    """A value is one of the choices, or a number of the right kind within the bounds, or a text."""
    kind, options = _kind(declared), declared[1] if len(declared) > 1 else {}
    where = f"{node_type}.{field}={value!r}"
    if kind == "COMBO":
        choices = declared[0] if isinstance(declared[0], list) else options["options"]
        assert value in choices or (node_type, field) in TO_DOWNLOAD, where
    elif kind == DYNAMIC_COMBO:
        assert value in [option["key"] for option in options["options"]], where
    elif kind in ("INT", "FLOAT"):
        assert type(value) is int or (kind == "FLOAT" and type(value) is float), where
        assert options.get("min", value) <= value <= options.get("max", value), where
    else:
        assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), where
