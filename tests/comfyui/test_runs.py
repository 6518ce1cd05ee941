"""Workflows in a real ComfyUI: pictures, progress, cancelling, LoRA branches, reloading."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from t2mv_core.defaults import DEFAULTS, FEW_STEP, ModelDefaults
from tests.comfyui.workflows import load

if TYPE_CHECKING:
    from conftest import ComfyServer

PACK_DIR = Path(__file__).parents[2]
Workflow = dict[str, dict[str, Any]]
LOAD = load("diffusers/tiny", precision="auto")
SHEET_PX = (6 * 32, 16 + 32)  # six columns of 32 px, a line of angles above


def sampler(name: str, model: list[Any], **changes: Any) -> dict[str, Any]:
    """A sampler node with small settings."""
    inputs = {
        "model": model,
        "prompt": "a red mug",
        "seed": 1,
        "steps": 2,
        "guidance": 7.0,
        "view_scale": 1.0,
    }
    if name == "ZMV":
        inputs |= {"zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0, "inverse_view_scale": 1.0}
    return {"class_type": f"T2MVSample{name}", "inputs": inputs | changes}


def sheet(images: list[Any], **inputs: Any) -> dict[str, Any]:
    """A contact sheet node."""
    return {"class_type": "T2MVCreateContactSheet", "inputs": {"images": images, "cell_px": 32, **inputs}}


def lora(model: list[Any], strength: float, name: str = "tiny.safetensors") -> dict[str, Any]:
    """A LoRA node."""
    return {"class_type": "T2MVLoadLoRA", "inputs": {"model": model, "lora": name, "strength": strength}}


def pictures(server: ComfyServer, workflow: Workflow) -> dict[str, np.ndarray]:
    """Run a workflow that must succeed; the picture each sheet node showed."""
    run = server.succeed(workflow)
    return {
        node: np.asarray(server.pictures(run, node)[0])
        for node, shown in run.outputs.items()
        if "images" in shown
    }


def test_zmv_without_zigzag_is_standard_and_seeds_belong_to_lines(server: ComfyServer) -> None:
    got = pictures(
        server,
        {
            "1": LOAD,
            "2": sampler("Standard", ["1", 0]),
            "3": sampler("ZMV", ["1", 0], zigzag_steps=0),
            "4": sampler("Standard", ["1", 0], prompt="a blue chair\na red mug", seed=0),
            "12": sheet(["2", 0]),
            "13": sheet(["3", 0]),
            "14": sheet(["4", 0]),
        },
    )
    assert np.array_equal(got["12"], got["13"])
    assert got["14"].shape[0] == 16 + 2 * 32
    # The mug is the second line of seed 0, so it has the noise of seed 1, and lines share no batch.
    assert np.array_equal(got["14"][16 + 32 :], got["12"][16:])


def test_progress_counts_the_evaluations_of_all_lines(server: ComfyServer) -> None:
    lines = "a red mug\na blue chair\na green car"
    drawn = sampler("ZMV", ["1", 0], prompt=lines, seed=11)
    run = server.succeed({"1": LOAD, "2": drawn, "3": sheet(["2", 0])})
    # Three lines of 2 steps and one zigzag: 3 * (2 + 2) evaluations.
    assert [(value, total) for node, value, total in run.progress if node == "2"] == [
        (i, 12) for i in range(1, 13)
    ]
    assert len(run.previews) == 12
    assert all(Image.open(io.BytesIO(preview)).format == "JPEG" for preview in run.previews)


def test_a_guidance_of_0_is_the_models_own_and_the_sheet_says_so(server: ComfyServer) -> None:
    lines = "a red mug\na blue chair"
    run = server.succeed({
        "1": LOAD,
        "2": sampler("ZMV", ["1", 0], guidance=0, prompt=lines),
        "3": sampler("ZMV", ["1", 0], guidance=7.0, prompt=lines),  # that of a UNet with a guidance input
        "12": sheet(["2", 0], caption=["2", 2]),
        "13": sheet(["3", 0], caption=["3", 2]),
        "14": sheet(["3", 0]),
        "22": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
        "23": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    })  # fmt: skip
    zigzag = "1 x 1 zigzag, back at guidance 1"
    assert run.outputs["22"]["text"][0].splitlines() == [
        f"seed {seed} · 2 steps · guidance 7 (the model's own) · {zigzag}" for seed in (1, 2)
    ]
    assert run.outputs["23"]["text"][0].splitlines() == [
        f"seed {seed} · 2 steps · guidance 7 · {zigzag}" for seed in (1, 2)
    ]
    own, named, plain = (np.asarray(server.pictures(run, node)[0]) for node in ("12", "13", "14"))
    height = len(plain)
    assert np.array_equal(own[:height], plain)
    assert np.array_equal(named[:height], plain)
    assert len(own) > height
    assert own[height:].min() < 100


@pytest.mark.parametrize(
    ("model", "solver", "own"),
    [
        ("toybox", "auto", DEFAULTS["toybox"]),
        ("toybox teacher", "auto", DEFAULTS["toybox-teacher"]),
        ("toybox teacher", "lcm", FEW_STEP),
        ("diffusers/tiny", "auto", DEFAULTS["lcm-sdxl"]),
    ],
)
def test_a_user_who_changes_the_model_gets_its_numbers(
    server: ComfyServer, model: str, solver: str, own: ModelDefaults
) -> None:
    """A new node's widgets stand for the model's own; what a widget names is kept for every model."""
    back = {"inverse_guidance": -1, "inverse_view_scale": -1}
    run = server.succeed({
        "1": load(model, precision="auto", sampler=solver),
        "rig": {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0", "elevations": "0"}},
        "2": sampler("ZMV", ["1", 0], rig=["rig", 0], steps=0, guidance=0, zigzag_steps=-1, **back),
        "3": sampler("ZMV", ["1", 0], rig=["rig", 0], guidance=3.0, inverse_view_scale=0.0),
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 2]}},
    })  # fmt: skip
    scale = "" if own.inverse_view_scale == 1 else f" and view scale {own.inverse_view_scale:g}"
    zigzag = f"{own.zigzag_steps} x 1 zigzag, back at guidance {own.inverse_guidance_scale:g}{scale}"
    assert run.outputs["4"]["text"] == [
        f"seed 1 · {own.num_steps} steps · guidance {own.guidance_scale:g} (the model's own) · {zigzag}"
    ]
    named = "2 steps · guidance 3 · 1 x 1 zigzag, back at guidance 1 and view scale 0"
    assert run.outputs["5"]["text"] == [f"seed 1 · {named}"]
    total = own.num_steps + 2 * own.zigzag_steps
    assert {seen for node, _, seen in run.progress if node == "2"} == {total}


def test_a_rig_chooses_views(server: ComfyServer) -> None:
    rig = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90, 180", "elevations": "0"}}
    drawn = sampler("Standard", ["1", 0], rig=["5", 0])
    got = pictures(server, {"1": LOAD, "5": rig, "2": drawn, "3": sheet(["2", 0], rig=["5", 0])})
    assert got["3"].shape[:2] == (SHEET_PX[1], 3 * 32)


def test_lora_branches_do_not_disturb_each_other(server: ComfyServer) -> None:
    base = {"1": LOAD, "2": sampler("Standard", ["1", 0]), "12": sheet(["2", 0])}
    server.forget()
    alone = pictures(server, base)["12"]
    server.forget()
    branches = base | {
        "3": lora(["1", 0], 1.0),
        "4": lora(["3", 0], -1.0),
        "5": sampler("Standard", ["3", 0]),
        "6": sampler("Standard", ["4", 0]),
        "15": sheet(["5", 0]),
        "16": sheet(["6", 0]),
        "17": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    run = server.succeed(branches)
    got = {node: np.asarray(server.pictures(run, node)[0]) for node in ("12", "15", "16")}
    assert np.array_equal(got["12"], alone)
    assert not np.array_equal(got["15"], alone)
    assert np.abs(got["16"].astype(int) - alone).max() <= 1  # 1 and -1 of the same LoRA cancel
    assert "modules act, 0 are left out" in run.outputs["17"]["text"][0]
    assert "step: 7" in run.outputs["17"]["text"][0]


def test_cancel_stops_within_one_evaluation_and_the_next_run_works(server: ComfyServer) -> None:
    long_run = {"1": LOAD, "2": sampler("Standard", ["1", 0], steps=50, seed=2), "3": sheet(["2", 0])}

    def cancel(num_reports: int) -> None:
        if num_reports == 2:
            server.post("/interrupt", {})

    run = server.run(long_run, on_progress=cancel)
    assert run.status == "interrupted"
    assert len(run.progress) < 25  # messages already on their way are allowed, half of the run is not
    assert server.run({**long_run, "2": sampler("Standard", ["1", 0], seed=2)}).status == "success"


def test_the_same_workflow_again_is_cached_and_changing_a_prompt_loads_nothing(server: ComfyServer) -> None:
    workflow = {"1": LOAD, "2": sampler("Standard", ["1", 0], seed=3), "3": sheet(["2", 0])}
    assert server.run(workflow).progress
    assert not server.run(workflow).progress
    lines = server.log.read_text("utf-8").count("Requested to load")
    assert server.run(
        {**workflow, "2": sampler("Standard", ["1", 0], seed=3, prompt="a blue chair")}
    ).progress
    assert server.log.read_text("utf-8").count("Requested to load") == lines


def test_the_example_workflow_runs_on_the_toybox(server: ComfyServer) -> None:
    workflow = json.loads((PACK_DIR / "docs" / "api" / "2 Standard and zigzag.json").read_text("utf-8"))
    unrelated = {"rewards": ["8", 0], "images": ["5", 0], "prompts": "a blue chair"}
    workflow["20"] = {"class_type": "T2MVScoreViews", "inputs": unrelated}
    workflow["21"] = {"class_type": "PreviewAny", "inputs": {"source": ["20", 3]}}
    workflow["22"] = {"class_type": "PreviewAny", "inputs": {"source": ["9", 3]}}
    run = server.succeed(workflow)
    evaluations = [value for node, value, _ in run.progress if node == "6"]
    assert evaluations == [1, 2, 3, 4, 5, 6]  # 4 steps, one zigzag
    assert all("toybox_hyperscore (all views)" in run.outputs[node]["text"][0] for node in ("11", "12"))
    assert len(run.outputs["14"]["images"]) == 1
    (right,), (wrong,) = (json.loads(run.outputs[node]["text"][0]) for node in ("22", "21"))
    assert right["joint_scores"]["toybox_hyperscore"] > wrong["joint_scores"]["toybox_hyperscore"]
    assert min(right["view_scores"]["toybox_clip"]) > max(wrong["view_scores"]["toybox_clip"])
