"""The bundled model of pictures in a running ComfyUI: scored by likeness, the best of some, training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

MODEL = {"class_type": "T2MVLoadModel",
         "inputs": {"model": "toybox image", "adapter": "the model's own", "precision": "auto"}}  # fmt: skip
PICTURE = {"class_type": "T2MVReadImage", "inputs": {"size": 64}}
DRAWN = {"model": ["1", 0], "seed": 0, "steps": 4, "guidance": 3.0, "view_scale": 1.0}
VIEWS = {"class_type": "T2MVSampleStandard", "inputs": {**DRAWN, "prompt": "a duck", "reference": ["2", 0]}}
LIKENESS = {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_picture"}}
BOTH = {"class_type": "T2MVLoadReward", "inputs": {"reward": "geometry", "rewards": ["4", 0]}}
GRAPH = {"1": MODEL, "2": PICTURE, "3": VIEWS, "4": LIKENESS, "5": BOTH}


def score(**inputs: Any) -> dict[str, Any]:
    shared = {"rewards": ["5", 0], "images": ["3", 0], "prompts": "a duck"}
    return {"class_type": "T2MVScoreViews", "inputs": {**shared, **inputs}}


def scores(run: Run, node: str) -> str:
    text: str = run.outputs[node]["text"][0]
    return text


def test_views_of_a_picture_are_like_it_and_not_like_another(server: ComfyServer) -> None:
    other = {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}}
    workflow = {**GRAPH, "6": score(reference=["2", 0]), "7": other, "8": score(reference=["7", 0])}
    for node, name in (("6", "9"), ("8", "10")):
        workflow[name] = {"class_type": "PreviewAny", "inputs": {"source": [node, 0]}}
    run = server.succeed(workflow)
    own, inverted = (float(scores(run, node)) for node in ("9", "10"))
    assert own > 0.6
    assert own > inverted + 0.1
    assert "toybox_picture" in scores(run, "6")


def test_a_reward_of_pictures_without_one_is_refused(server: ComfyServer) -> None:
    run = server.run({**GRAPH, "6": score()})
    assert run.status != "success"
    assert "toybox_picture compares views with the picture" in str(run.error)
    two = {"class_type": "RepeatImageBatch", "inputs": {"image": ["2", 0], "amount": 2}}
    run = server.run({**GRAPH, "7": two, "6": score(reference=["7", 0])})
    assert "2 reference pictures were given for 1 prompt lines" in str(run.error)


def test_the_best_sets_are_those_most_like_the_picture(server: ComfyServer) -> None:
    inputs = {**DRAWN, "prompts": "a duck", "rewards": ["4", 0], "reference": ["2", 0], "candidates": 3,
              "keep": 1, "rank_by": "view reward (mean)", "sampler": "standard", "zigzag_steps": -1,
              "zigzag_repeats": 1, "inverse_guidance": -1.0, "inverse_view_scale": -1.0}  # fmt: skip
    run = server.succeed({**GRAPH, "6": {"class_type": "T2MVSampleBest", "inputs": inputs}})
    ranking = scores(run, "6")
    assert ranking.count("seed") == 3
    lines = [line for line in ranking.splitlines() if "score " in line]
    found = [float(line.split("score ")[1].split()[0]) for line in lines]
    assert found == sorted(found, reverse=True)


def test_a_lora_is_trained_on_pictures(server: ComfyServer) -> None:
    inputs = {"name": "of pictures", "preset": "pictures", "prompts": "a duck", "iterations": 1,
              "learning_rate": 3e-3, "rank": 2, "seed": 1, "objective": "preset's",
              "prompts_per_iteration": 1, "resume": True, "download": False,
              "reference": ["2", 0]}  # fmt: skip
    server.succeed({"2": PICTURE, "6": {"class_type": "T2MVTrainLoRA", "inputs": inputs}})
    (line,) = (
        next((server.base_dir / "output/t2mv_runs/of pictures/pictures").glob("*.jsonl"))
        .read_text()
        .splitlines()
    )
    assert json.loads(line)["prompt"] == "a duck"
    tensors = load_file(server.base_dir / "models/loras/t2mv/of pictures.safetensors")
    assert any("to_q_ref" in name or "to_k_ref" in name for name in tensors)
