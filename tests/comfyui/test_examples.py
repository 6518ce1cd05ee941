"""The example workflows in a real ComfyUI, as scripts send them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer

ROOT = Path(__file__).parents[2]
API_DIR = ROOT / "docs" / "api"
PIXAL3D = "11 Views to Pixal3D - download"
SIDES = ("front", "left", "back", "right")


def example(name: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """An example with some inputs of some nodes ("n5": node 5) changed."""
    workflow = json.loads((API_DIR / f"{name}.json").read_text("utf-8"))
    for node, inputs in changes.items():
        workflow[node.removeprefix("n")]["inputs"] |= inputs
    return workflow


def problems(server: ComfyServer, workflow: dict[str, Any]) -> list[tuple[str, str]]:
    """(node, input) of what ComfyUI refuses in a workflow of which some half can be run."""
    status, answer = server.post("/prompt", {"prompt": workflow})
    assert status == 200, answer
    return sorted(
        (node, error["extra_info"]["input_name"])
        for node, found in answer["node_errors"].items()
        for error in found["errors"]
    )


def test_1_text_to_views(server: ComfyServer) -> None:
    run = server.succeed(example("1 Text to views"))
    (sheet,) = server.pictures(run, "4")
    assert sheet.size == (6 * 160, 16 + 160 + 16)  # angles, views, settings
    (turning,) = server.pictures(run, "5")
    assert turning.format == "WEBP"
    assert turning.n_frames == 6
    sides = [np.asarray(picture) for node in ("7", "8", "9", "10") for picture in server.pictures(run, node)]
    assert [side.shape for side in sides] == [(64, 64, 3)] * 4
    assert not np.array_equal(sides[0], sides[2])


def test_4_best_of_eight(server: ComfyServer) -> None:
    run = server.succeed(example("4 Best of eight"))
    assert len(run.outputs["8"]["images"]) == 6
    ranking = run.outputs["7"]["text"][0]
    assert ranking.count("seed") == 8
    assert ranking.count("  kept  ") == 1


@pytest.mark.slow
def test_3_training_and_its_lora_in_one_run(server: ComfyServer) -> None:
    small = {"name": "example", "iterations": 1, "prompts_per_iteration": 2}
    others = {"n2": {"value": "a green mug"}, "n5": {"strength": 5.0}}
    workflow = example("3 Train a LoRA", n4=small, **others)
    run = server.succeed(workflow)
    assert "t2mv/example.safetensors" in run.outputs["13"]["text"][0]
    before, after = (np.asarray(server.pictures(run, node)[0]) for node in ("10", "11"))
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_5_with_small_files_under_the_published_names(server: ComfyServer) -> None:
    fewer = {"n3": {"preset": "front and back"}, "n4": {"steps": 2}}  # 768 px take long on a processor
    run = server.succeed(example("5 LCM-SDXL - download", n2={"lora": "kohya.safetensors"}, **fewer))
    # 768 px are latents of 96; the small VAE makes them only twice as large, not eight times
    assert [view.size for view in server.pictures(run, "6")] == [(192, 192)] * 2
    (sheet,) = server.pictures(run, "5")
    assert sheet.size[0] == 2 * 384


def test_6_lacks_nothing_but_the_checkpoint_that_its_note_names(server: ComfyServer) -> None:
    assert problems(server, example("6 Views to mesh - download")) == [("6", "ckpt_name")]


def test_10_text_to_mesh(server: ComfyServer) -> None:
    run = server.succeed(example("10 Text to mesh", n5={"resolution": 64}))
    (file,) = run.outputs["6"]["3d"]
    assert file["filename"].endswith(".glb")
    assert server.picture(file)[:4] == b"glTF"
    assert "Views agree with the common solid" in run.outputs["5"]["text"][0]


def test_11_lacks_nothing_but_the_files_that_its_note_names(server: ComfyServer) -> None:
    """Before 0.35, `later_core` stands in for Pixal3D's node: its sockets, not its work."""
    workflow = example(PIXAL3D)
    server.skip_unless_known(workflow)
    lacking = [("13", "clip_name"), ("15", "unet_name"), ("16", "vae_name"), ("5", "bg_removal_name")]
    assert problems(server, workflow) == lacking


def test_11_gives_each_side_without_background_to_its_socket(server: ComfyServer) -> None:
    """ComfyUI names sides as the object does, so that its left is our right."""
    workflow = example(PIXAL3D)
    front, left, back, right = (workflow["14"]["inputs"][side] for side in SIDES)
    graph = {number: workflow[number] for number in ("1", "2", "3", "7", "8", "9", "10", "11", "12")}
    graph["6"] = {"class_type": "ImageToMask", "inputs": {"image": ["3", 0], "channel": "red"}}
    graph["split"] = {
        "class_type": "T2MVSplitViews", "inputs": {"images": ["3", 0], "rig": ["2", 0], "set": 1},
    }  # fmt: skip
    # Split Views: front, front right, right, back, left, front left
    sources = {"front": ["split", 0], "right": ["split", 2], "back": ["split", 3], "left": ["split", 4]}
    sockets = {"front": front, "right": left, "back": back, "left": right}
    for name, source in [*sources.items(), *((f"{side} given", link) for side, link in sockets.items())]:
        graph[f"see {name}"] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    run = server.succeed(graph)
    for side in SIDES:
        (seen,), (given,) = server.pictures(run, f"see {side}"), server.pictures(run, f"see {side} given")
        pixels = np.asarray(given)
        assert pixels.shape == (64, 64, 4)
        np.testing.assert_array_equal(pixels[..., :3], np.asarray(seen)[..., :3])
        np.testing.assert_allclose(pixels[..., 3].astype(int), pixels[..., 0].astype(int), atol=1)


def test_12_picture_to_mesh(server: ComfyServer) -> None:
    run = server.succeed(example("12 Picture to mesh", n5={"resolution": 64}))
    (framed,) = server.pictures(run, "7")
    assert framed.size == (256, 256)
    (file,) = run.outputs["6"]["3d"]
    assert server.picture(file)[:4] == b"glTF"
    assert "Views agree with the common solid" in run.outputs["5"]["text"][0]


def test_the_script_of_the_documents_queues_an_example(server: ComfyServer) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "comfyui.md").read_text("utf-8"), re.DOTALL)
    assert "http://127.0.0.1:8188" in code
    code = code.replace("http://127.0.0.1:8188", server.url)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    prompt_id = done.stdout.strip()
    deadline = time.monotonic() + 120
    while prompt_id not in (history := json.loads(server.get(f"/history/{prompt_id}"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert history[prompt_id]["status"]["status_str"] == "success"
    turntable = history[prompt_id]["outputs"]["5"]["images"]
    assert turntable[0]["filename"].endswith(".webp")
