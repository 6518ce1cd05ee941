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
}  # fmt: skip


def changed(node: str, name: str, value: Any) -> dict[str, Any]:
    """The good workflow with one bad value, without the output node that this value does not concern.

    ComfyUI queues whatever outputs are left when others are refused.
    """
    workflow = {**GOOD, node: {**GOOD[node], "inputs": {**GOOD[node]["inputs"], name: value}}}
    del workflow["5" if node in ("6", "7") else "7"]
    return workflow


@pytest.mark.parametrize(
    ("node", "name", "value", "words"),
    [
        ("1", "model", "../../secret", "is not available here"),
        ("1", "model", "/etc", "is not available here"),
        ("1", "model", "diffusers/../loras", "is not available here"),
        ("1", "model", "stabilityai/stable-diffusion-xl-base-1.0", "is not available here"),
        ("1", "adapter", "../loras/tiny.safetensors", "is not available here"),
        ("1", "precision", "float8", "is not available here"),
        ("1", "model", "checkpoints/../loras/tiny.safetensors", "is not available here"),
        ("1", "unet", "../loras/tiny.safetensors", "is not available here"),
        ("1", "unet", "latent-consistency/lcm-sdxl", "is not available here"),
        ("1", "vae", "/etc/passwd", "is not available here"),
        ("2", "lora", "../diffusers/tiny/unet/diffusion_pytorch_model.safetensors", "is not available here"),
        ("2", "lora", "/etc/passwd", "is not available here"),
        ("2", "strength", float("nan"), "must be a number from -10 to 10"),
        ("3", "azimuths", "0, sideways", "is not a number"),
        ("3", "azimuths", "0 " * 1000, "holds 1000 angles"),
        ("3", "elevations", "100", "must be a number from -90 to 90"),
        ("4", "prompt", "  ", "The prompt is empty"),
        ("4", "prompt", "x" * 10_000, "10000 characters"),
        ("4", "steps", 0, "smaller than min"),
        ("4", "steps", -3, "smaller than min"),
        ("4", "steps", 10**9, "bigger than max"),
        ("4", "steps", "many", "Failed to convert"),
        ("4", "guidance", float("nan"), "must be a number from 0 to 30"),
        ("4", "inverse_view_scale", float("inf"), "must be a number from 0 to 10"),
        ("4", "seed", -1, "smaller than min"),
        ("5", "cell_px", 10**9, "bigger than max"),
        ("6", "reward", "__import__('os')", "is not available here"),
        ("7", "prompts", "", "The prompt is empty"),
    ],
)
def test_bad_values_are_refused_before_the_run(
    server: ComfyServer, node: str, name: str, value: Any, words: str
) -> None:
    assert words in server.refusal(changed(node, name, value))


def test_wrong_connections_are_refused(server: ComfyServer) -> None:
    assert "mismatch" in server.refusal(changed("4", "model", ["3", 0]))


def test_a_damaged_file_gives_a_sentence(server: ComfyServer) -> None:
    run = server.run(changed("2", "lora", "damaged.safetensors"))
    assert run.status == "error"
    assert "is damaged or not a safetensors file" in run.error


def test_a_wrong_number_of_views_gives_a_sentence(server: ComfyServer) -> None:
    three = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90, 180", "elevations": "0"}}
    run = server.run({**changed("5", "rig", ["8", 0]), "8": three})
    assert run.status == "error"
    assert "2 pictures do not divide into sets of 3 views" in run.error
