"""Values a hand-edited workflow can carry are refused in words, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer

GOOD = {
    "1": {"class_type": "T2MVLoadModel",
          "inputs": {"model": "diffusers/tiny", "adapter": "the model's own", "precision": "auto"}},
    "2": {"class_type": "T2MVLoadLoRA",
          "inputs": {"model": ["1", 0], "lora": "tiny.safetensors", "strength": 1.0}},
    "3": {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90", "elevations": "0"}},
    "4": {"class_type": "T2MVSampleZMV",
          "inputs": {"model": ["2", 0], "rig": ["3", 0], "prompt": "a red mug", "seed": 0, "steps": 2,
                     "guidance": 7.0, "view_scale": 1.0, "zigzag_steps": 1, "zigzag_repeats": 1,
                     "inverse_guidance": 1.0, "inverse_view_scale": 1.0}},
    "5": {"class_type": "T2MVCreateContactSheet", "inputs": {"images": ["4", 0], "rig": ["3", 0]}},
    "6": {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_clip"}},
    "7": {"class_type": "T2MVScoreViews",
          "inputs": {"rewards": ["6", 0], "images": ["4", 0], "prompts": "a red mug"}},
    "8": {"class_type": "T2MVSampleBest",
          "inputs": {"model": ["2", 0], "rewards": ["6", 0], "prompts": "a red mug", "seed": 0,
                     "candidates": 2, "keep": 1, "rank_by": "view reward (mean)", "sampler": "standard",
                     "steps": 2, "guidance": 7.0, "view_scale": 1.0, "zigzag_steps": 1, "zigzag_repeats": 1,
                     "inverse_guidance": 1.0, "inverse_view_scale": 1.0}},
}  # fmt: skip


def changed(node: str, name: str, value: Any) -> dict[str, Any]:
    """The good workflow with one bad value, and only one output node, one which this value concerns.

    ComfyUI queues whatever outputs are left when others are refused.
    """
    workflow = {**GOOD, node: {**GOOD[node], "inputs": {**GOOD[node]["inputs"], name: value}}}
    concerned = {"6": "7", "7": "7", "8": "8"}.get(node, "5")
    return {key: value for key, value in workflow.items() if key not in {"5", "7", "8"} - {concerned}}


@pytest.mark.parametrize(
    ("node", "name", "value", "words"),
    [
        ("1", "model", "../../secret", "is not available here"),
        ("1", "adapter", "../loras/tiny.safetensors", "is not available here"),
        ("1", "unet", "../loras/tiny.safetensors", "is not available here"),
        ("1", "vae", "/etc/passwd", "is not available here"),
        ("2", "lora", "../diffusers/tiny/unet/diffusion_pytorch_model.safetensors", "is not available here"),
        ("2", "strength", 1e9, "bigger than max"),
        ("3", "azimuths", "0, sideways", "is not a number"),
        ("4", "prompt", "  ", "The prompt is empty"),
        ("4", "steps", -3, "smaller than min"),
        ("4", "zigzag_steps", -2, "smaller than min"),
        ("4", "inverse_view_scale", -1.5, "smaller than min"),
        ("4", "steps", 10**9, "bigger than max"),
        ("4", "steps", "many", "Failed to convert"),
        ("4", "zigzag_repeats", 10**9, "bigger than max"),
        ("4", "guidance", 1e9, "bigger than max"),
        ("4", "inverse_view_scale", float("inf"), "bigger than max"),
        ("4", "seed", -1, "smaller than min"),
        ("5", "cell_px", 10**9, "bigger than max"),
        ("6", "reward", "__import__('os')", "is not available here"),
        ("7", "prompts", "", "The prompt is empty"),
        ("8", "prompts", "", "The prompt is empty"),
        ("8", "seed", 2**64, "bigger than max"),
    ],
)
def test_bad_values_are_refused_before_the_run(
    server: ComfyServer, node: str, name: str, value: Any, words: str
) -> None:
    assert words in server.refusal(changed(node, name, value))


@pytest.mark.parametrize(
    ("node", "name", "value", "words"),
    [
        ("1", "precision", "float4", "is not available here"),
        ("1", "sampler", "euler", "is not available here"),
        ("4", "zigzag_steps", 3, "zigzag_steps=3 must lie between 0 and steps=2"),
        ("4", "inverse_view_scale", -0.5, "inverse_view_scale=-0.5 must be a number from 0 to 10, or -1"),
        ("4", "negative_prompt", "x" * 10_000, "negative_prompt has 10000 characters"),
        ("8", "candidates", 10**9, "bigger than max"),
        ("8", "candidates", 0, "smaller than min"),
        ("8", "keep", 3, "keep=3 is more than candidates=2"),
        ("8", "keep", -1, "smaller than min"),
        ("8", "rank_by", "__import__('os')", "is not available here"),
        ("8", "rank_by", "joint reward", "needs a joint reward, and none is connected"),
        ("8", "sampler", "../../euler", "is not available here"),
    ],
)
def test_other_bad_values_are_refused_before_the_model_is_loaded(
    server: ComfyServer, node: str, name: str, value: Any, words: str
) -> None:
    """ComfyUI 0.33 refuses a wrong choice itself, before the run."""
    server.forget()
    workflow = changed(node, name, value)
    status, answer = server.post("/prompt", {"prompt": workflow})
    if status == 400:
        (error,) = answer["node_errors"][node]["errors"]
        assert error["extra_info"]["input_name"] == name
        assert words in error["message"] or "Value not in list" in error["message"]
        return
    run = server.run(workflow)
    assert run.status == "error"
    assert words in run.error
    assert not run.progress
    assert node == "1" or "1" not in run.executing


def test_many_sets_are_refused_by_their_number(server: ComfyServer) -> None:
    lines = "\n".join(f"mug number {i}" for i in range(3))
    workflow = changed("8", "prompts", lines)
    workflow["8"]["inputs"]["candidates"] = 64
    assert "are 192 sets; at most 128" in server.refusal_or_error(workflow)


def test_a_zigzag_that_the_sampler_does_not_read_is_no_reason_to_refuse(server: ComfyServer) -> None:
    workflow = changed(
        "8", "zigzag_steps", 50
    )  # more than the two steps, but the sampler is the standard one
    assert server.run(workflow).status == "success"
    workflow["8"]["inputs"]["sampler"] = "zmv"
    assert "zigzag_steps=50 must lie between 0 and steps=2" in server.refusal_or_error(workflow)


@pytest.mark.parametrize(
    ("node", "name"), [("2", "strength"), ("4", "guidance"), ("8", "inverse_view_scale")]
)
def test_no_number_passes_comfyuis_ranges_and_is_refused_before_sampling(
    server: ComfyServer, node: str, name: str
) -> None:
    workflow = changed(node, name, float("nan"))
    if node == "8":
        workflow["8"]["inputs"]["sampler"] = "zmv"
    run = server.run(workflow)
    assert run.status == "error"
    assert f"{name}=nan must be a number from " in run.error
    assert not run.progress


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [("4", "prompt", " "), ("4", "guidance", 1e9), ("4", "steps", -1), ("7", "prompts", ""),
     ("8", "prompts", ""), ("8", "candidates", 0), ("2", "lora", "../x")],
)  # fmt: skip
def test_one_fault_is_one_error_at_its_input(server: ComfyServer, node: str, name: str, value: Any) -> None:
    """The page paints every input red that a failed `validate_inputs` takes."""
    _, answer = server.post("/prompt", {"prompt": changed(node, name, value)})
    (error,) = answer["node_errors"][node]["errors"]
    assert error["extra_info"]["input_name"] == name


def test_values_that_are_linked_are_refused_when_the_node_runs(server: ComfyServer) -> None:
    for node, name, value, words in (
        ("4", "zigzag_repeats", 10**9, "zigzag_repeats=1000000000 must be a whole number from 1 to 10"),
        ("8", "candidates", 10**9, "candidates=1000000000 must be a whole number from 1 to 64"),
        ("8", "seed", -1, "seed=-1 must be a whole number from 0"),
    ):
        workflow = changed(node, name, ["9", 0])
        run = server.run({**workflow, "9": {"class_type": "PrimitiveInt", "inputs": {"value": value}}})
        assert run.status == "error"
        assert words in run.error
        assert not run.progress


def test_wrong_connections_are_refused(server: ComfyServer) -> None:
    assert "mismatch" in server.refusal(changed("4", "model", ["3", 0]))


def test_a_damaged_file_gives_a_sentence(server: ComfyServer) -> None:
    run = server.run(changed("2", "lora", "damaged.safetensors"))
    assert run.status == "error"
    assert "is damaged or not a safetensors file" in run.error


def test_a_wrong_number_of_views_gives_a_sentence(server: ComfyServer) -> None:
    three = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90, 180", "elevations": "0"}}
    run = server.run({**changed("5", "rig", ["9", 0]), "9": three})
    assert run.status == "error"
    assert "2 pictures do not divide into sets of 3 views" in run.error
