"""Load Reward in a real ComfyUI: what is missing is said before the run, published layouts load by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.comfyui.tiny_pickscore import write_tiny_pickscore
from tests.comfyui.workflows import load

if TYPE_CHECKING:
    from conftest import ComfyServer

SAMPLE = {"class_type": "T2MVSampleStandard",
          "inputs": {"model": ["1", 0], "prompt": "a red mug", "seed": 1, "steps": 1, "guidance": 7.0,
                     "view_scale": 1.0}}  # fmt: skip


def workflow(*names: str) -> dict[str, Any]:
    """Views of the tiny model, scored by several rewards loaded one after the other; the JSON is shown."""
    nodes: dict[str, Any] = {"1": load("diffusers/tiny", precision="auto"), "2": SAMPLE}
    before: dict[str, Any] = {}
    for number, name in enumerate(names, start=10):
        nodes[str(number)] = {"class_type": "T2MVLoadReward", "inputs": {"reward": name, **before}}
        before = {"rewards": [str(number), 0]}
    score = {**before, "images": ["2", 0], "prompts": "a red mug"}
    nodes["3"] = {"class_type": "T2MVScoreViews", "inputs": score}
    nodes["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 3]}}
    return nodes


def test_missing_weights_are_said_before_the_run_and_found_once_they_are_there(
    server: ComfyServer, comfy_base: Path
) -> None:
    refusal = server.refusal(workflow("pickscore"))
    assert "The weights of the reward pickscore are not on this machine" in refusal
    assert "https://huggingface.co/yuvalkirstain/PickScore_v1" in refusal
    assert "t2mv_rewards" in refusal

    folder = comfy_base / "models" / "t2mv_rewards" / "PickScore_v1"
    write_tiny_pickscore(folder)
    try:
        run = server.succeed(workflow("pickscore", "pickscore.min"))
    finally:
        shutil.rmtree(folder)  # other tests name weights that are missing
    (scored,) = json.loads(run.outputs["4"]["text"][0])
    assert len(scored["view_scores"]["pickscore"]) == 6
    assert scored["joint_scores"]["pickscore.min"] == min(scored["view_scores"]["pickscore"])


def test_hyperscore_has_parts_to_choose(server: ComfyServer) -> None:
    info = json.loads(server.get("/object_info/T2MVLoadReward"))["T2MVLoadReward"]
    options = info["input"]["required"]["reward"][1]["options"]
    assert {"hyperscore", "hyperscore.geometry", "image_reward", "hpsv2_1", "toybox_clip.min"} <= set(options)
    assert options[0] == "toybox_clip"
    assert "May fetch PickScore" in info["input"]["optional"]["download"][1]["tooltip"]
