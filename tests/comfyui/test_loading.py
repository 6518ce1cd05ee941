"""Models and LoRAs from ComfyUI's folders: checkpoints, presets of published weights, kohya LoRAs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import ComfyServer

CHECKPOINT = "checkpoints/sd_xl_base_1.0.safetensors"


def load(model: str, **inputs: Any) -> dict[str, Any]:
    """A Load Model node as a script writes it."""
    named = {"model": model, "adapter": "the model's own", "precision": "float32", **inputs}
    return {"class_type": "T2MVLoadModel", "inputs": named}


def drawn(server: ComfyServer, loader: dict[str, Any], lora: str | None = None) -> np.ndarray:
    """Two views in one step by a loaded model, with a LoRA if one is named."""
    rig = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90", "elevations": "0"}}
    settings = {"prompt": "a red mug", "seed": 0, "steps": 1, "guidance": 3.0, "view_scale": 1.0}
    model = ["2", 0] if lora else ["1", 0]
    workflow = {
        "1": loader,
        "3": rig,
        "4": {"class_type": "T2MVSampleStandard", "inputs": {"model": model, "rig": ["3", 0], **settings}},
        "5": {"class_type": "T2MVCreateContactSheet",
              "inputs": {"images": ["4", 0], "rig": ["3", 0], "cell_px": 64}},
    }  # fmt: skip
    if lora:
        named = {"model": ["1", 0], "lora": lora, "strength": 1.0}
        workflow["2"] = {"class_type": "T2MVLoadLoRA", "inputs": named}
    run = server.run(workflow)
    assert run.status == "success", run.error
    return np.asarray(Image.open(io.BytesIO(server.picture(run.outputs["5"]["images"][0]))))


def test_a_checkpoint_its_parts_and_the_presets_draw(server: ComfyServer) -> None:
    whole = drawn(server, load(CHECKPOINT))
    # The same VAE as a file of its own; SDXL finds checkpoint, VAE and adapter by their published names.
    assert np.array_equal(drawn(server, load(CHECKPOINT, vae="sdxl-vae-fp16-fix.safetensors")), whole)
    assert np.array_equal(drawn(server, load("SDXL")), whole)
    few_step = drawn(server, load("LCM-SDXL"))
    assert not np.array_equal(few_step, whole)
    named = {"unet": "lcm-sdxl.safetensors", "vae": "sdxl-vae-fp16-fix.safetensors",
             "adapter": "mvadapter_t2mv_sdxl.safetensors"}  # fmt: skip
    assert np.array_equal(drawn(server, load(CHECKPOINT, **named)), few_step)


def test_a_kohya_lora_acts_and_its_report_says_what_was_left_out(server: ComfyServer) -> None:
    assert not np.array_equal(
        drawn(server, load("LCM-SDXL"), "kohya.safetensors"), drawn(server, load("LCM-SDXL"))
    )
    workflow = {
        "1": load("LCM-SDXL"),
        "2": {"class_type": "T2MVLoadLoRA",
              "inputs": {"model": ["1", 0], "lora": "kohya.safetensors", "strength": 0.5}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }  # fmt: skip
    (report,) = server.run(workflow).outputs["3"]["text"]
    assert "layout: kohya" in report
    assert "matched: 1 modules" in report
    assert "1 keys are for the text encoders" in report


def test_another_kind_of_model_is_refused_by_its_name(server: ComfyServer) -> None:
    sheet = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    run = server.run({"1": load("checkpoints/v_pred.safetensors"), "2": sheet})
    assert run.status == "error"
    assert "is a v-prediction model; T2MV needs an SDXL model" in run.error


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("vae/sdxl-vae-fp16-fix", "huggingface.co/madebyollin/sdxl-vae-fp16-fix"),
        ("diffusion_models/lcm-sdxl", "models/diffusion_models/lcm-sdxl.safetensors"),
        ("checkpoints/sd_xl_base_1.0", "sd_xl_base_1.0.safetensors into models/checkpoints"),
        ("mvadapter/mvadapter_t2mv_sdxl", "mvadapter_t2mv_sdxl.safetensors into models/mvadapter"),
    ],
)
def test_a_preset_says_what_to_fetch_and_where_to_put_it(server: ComfyServer, file: str, words: str) -> None:
    path = server.base_dir / "models" / f"{file}.safetensors"
    away = path.rename(path.with_suffix(".away"))
    try:
        preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
        answer = server.refusal({"1": load("LCM-SDXL"), "2": preview})
    finally:
        away.rename(path)
    assert "LCM-SDXL needs files that are not here: " in answer
    assert words in answer


def test_bundled_models_keep_their_parts(server: ComfyServer) -> None:
    preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    loader = load("toybox", vae="sdxl-vae-fp16-fix.safetensors")
    assert "toybox works with its own vae only" in server.refusal({"1": loader, "2": preview})
