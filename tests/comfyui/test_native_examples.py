"""The native example workflows: what they lack, and their graphs with small files in place of downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from tests.comfyui.small_sdxl import PICTURES, RIG, pictures
from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference

API_DIR = Path(__file__).parents[2] / "docs" / "api"
MISSING = {
    "7 Native LCM-LoRA - download": {"3": "lcm-lora-sdxl.safetensors"},
    "8 Native ControlNet - download": {
        "3": "lcm-lora-sdxl.safetensors", "13": "controlnet-canny-sdxl-1.0-small.safetensors",
    },
    "9 Native LCM-SDXL - download": {"14": "mvc_zigal_lcm_sdxl.safetensors"},
    "13 Picture to views - download": {
        "3": "lcm-lora-sdxl.safetensors", "5": "mvadapter_i2mv_sdxl.safetensors", "14": "example.png",
    },
}  # fmt: skip
SMALL_FILES = {
    "lcm-sdxl.safetensors": "small-lcm.safetensors",
    "lcm-lora-sdxl.safetensors": "style.safetensors",
    "mvc_zigal_lcm_sdxl.safetensors": "views.safetensors",
    "mvadapter_t2mv_sdxl.safetensors": "small.safetensors",
    "mvadapter_i2mv_sdxl.safetensors": "small-i2mv.safetensors",
    "example.png": "object.png",
    "controlnet-canny-sdxl-1.0-small.safetensors": "control.safetensors",
}


def example(name: str) -> dict[str, Any]:
    return json.loads((API_DIR / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", MISSING)
def test_a_native_example_lacks_nothing_but_the_files_that_its_note_names(
    server: ComfyServer, name: str
) -> None:
    """The server has files under some of the published names."""
    _, answer = server.post("/prompt", {"prompt": example(name)})
    assert answer["node_errors"].keys() == MISSING[name].keys()
    for number, file in MISSING[name].items():
        assert file in json.dumps(answer["node_errors"][number])


def in_small(name: str) -> dict[str, Any]:
    """An example for the small model: loaders and text replaced, pictures in place of decoded latents."""
    text = json.dumps(example(name)).replace('["1", 0]', '["small", 0]').replace('["8", 0]', '["8", 1]')
    for published, small in SMALL_FILES.items():
        text = text.replace(published, small)
    graph = json.loads(text)
    kinds = {number: item["class_type"] for number, item in graph.items()}
    graph["4"]["inputs"]["preset"] = "four around"
    graph["9"]["inputs"] |= {"width": 128, "height": 128}
    for number, kind in kinds.items():
        if kind in ("CheckpointLoaderSimple", "VAELoader"):
            del graph[number]
        elif kind == "CLIPTextEncode":
            graph[number] = node("TestConditions")
        elif kind == "VAEDecode":
            graph[number] = node("RepeatImageBatch", image=PICTURES, amount=1)
        elif kind == "VAEEncode":
            graph[number] = node("TestEncode", pixels=graph[number]["inputs"]["pixels"])
        elif kind == "T2MVReadImage":
            graph[number]["inputs"]["size"] = 128
        elif kind in ("KSampler", "SamplerCustomAdvanced"):
            graph[f"save {number}"] = node("SaveLatent", samples=[number, 0], filename_prefix=number)
        if "steps" in graph.get(number, {}).get("inputs", {}):
            graph[number]["inputs"]["steps"] = 3
    return {
        "small": node("UNETLoader", unet_name="small.safetensors", weight_dtype="default"),
        **graph,
        **pictures(),
    }


@pytest.mark.parametrize(
    ("name", "samplers"), [(name, ["10", "20"] if "ControlNet" in name else ["10"]) for name in MISSING]
)
def test_a_native_example_runs_with_small_weights(
    small_sdxl: tuple[ComfyServer, Reference], name: str, samplers: list[str]
) -> None:
    server, _ = small_sdxl
    run = server.succeed(in_small(name))
    found = []
    for number in samplers:
        saved = run.outputs[f"save {number}"]["latents"][0]
        file = server.base_dir / "output" / saved["subfolder"] / saved["filename"]
        found.append(load_file(file)["latent_tensor"])
    for latents in found:
        assert latents.shape == (RIG.num_views, 4, 16, 16)
        assert bool(latents.isfinite().all())
        assert float(latents.std()) > 0.1
    if len(found) == 2:
        assert not torch.equal(*found)
        # Three steps and a zigzag: two evaluations more.
        assert {total for number, _, total in run.progress if number == "20"} == {5}
    else:
        assert len(run.outputs["13"]["images"]) == RIG.num_views
