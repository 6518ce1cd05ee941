"""Models and LoRAs from ComfyUI's folders: checkpoints, presets of published weights, kohya LoRAs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.comfyui.workflows import drawn, load

if TYPE_CHECKING:
    from conftest import ComfyServer

CHECKPOINT = "checkpoints/sd_xl_base_1.0.safetensors"


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
    assert "1 modules act, 1 are left out" in report
    assert "1 modules (1 keys) are for the text encoders" in report


def test_alphas_that_a_configuration_states_later_act_at_once(server: ComfyServer) -> None:
    folder = server.base_dir / "models" / "loras" / "peft"
    folder.mkdir()
    tensors = load_file(folder.parent / "kohya.safetensors")
    silent = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    save_file(silent, folder / "style.safetensors")
    lora = {"model": ["1", 0], "lora": "peft/style.safetensors", "strength": 1.0}
    workflow = {
        "1": load("LCM-SDXL"),
        "2": {"class_type": "T2MVLoadLoRA", "inputs": lora},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }
    (report,) = server.run(workflow).outputs["3"]["text"]
    assert "alpha is not stated" in report
    (folder / "adapter_config.json").write_text('{"lora_alpha": 16}')
    (report,) = server.run(workflow).outputs["3"]["text"]
    assert "alpha is not stated" not in report


def test_a_workflow_from_windows_finds_its_files(server: ComfyServer) -> None:
    models = server.base_dir / "models"
    for folder, name in (("loras", "kohya"), ("checkpoints", "sd_xl_base_1.0")):
        (models / folder / "my own").mkdir(exist_ok=True)
        shutil.copy(models / folder / f"{name}.safetensors", models / folder / "my own" / "x.safetensors")
    shutil.copytree(models / "diffusers/tiny", models / "diffusers/my own/tiny", dirs_exist_ok=True)
    here = drawn(server, load(CHECKPOINT), "kohya.safetensors")
    written = load("checkpoints/my own\\x.safetensors")
    assert np.array_equal(drawn(server, written, "my own\\x.safetensors"), here)
    assert np.array_equal(
        drawn(server, load("diffusers/my own\\tiny")), drawn(server, load("diffusers/tiny"))
    )


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


def test_a_chosen_sampler_acts_and_auto_is_what_the_files_say(server: ComfyServer) -> None:
    # At one step LCM and trailing DDIM both predict from the last timestep: the same picture.
    for model, own, other in (("SDXL", "ddim", "ddim-trailing"), ("LCM-SDXL", "lcm", "ddim")):
        pictures = {word: drawn(server, load(model, sampler=word)) for word in ("auto", own, other)}
        assert np.array_equal(pictures["auto"], pictures[own])
        assert not np.array_equal(pictures["auto"], pictures[other])
        assert np.array_equal(drawn(server, load(model)), pictures["auto"])  # workflows of before
    preview = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    answer = server.refusal_or_error({"1": load("SDXL", sampler="euler"), "2": preview})
    assert "sampler='euler' is not available here" in answer or "Value not in list" in answer


def few_step_lora(path: Path, model: Path) -> None:
    """A random LoRA on layers that a trained one does not reach, strong enough to be seen."""
    import torch

    from t2mv_core.loading import load_bundle
    from t2mv_core.lora.adapters import add_lora
    from t2mv_core.lora.files import lora_state_dict, save_lora

    unet = load_bundle(str(model)).unet
    add_lora(unet, rank=2, alpha=2, name="few", targets=("conv1", "ff.net.2", "to_q"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in lora_state_dict(unet, "few").values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    save_lora(unet, path, {}, name="few")


def test_a_few_step_lora_and_a_trained_one_in_a_row_draw_what_the_core_draws(server: ComfyServer) -> None:
    """In the core such a pair draws what training drew (tests/training/test_base_loras.py)."""
    import torch

    from t2mv_core.cameras import CameraRig
    from t2mv_core.denoiser import encode_cameras
    from t2mv_core.images import decode_latents
    from t2mv_core.loading import load_bundle
    from t2mv_core.lora.files import load_lora
    from t2mv_core.samplers import SamplingSettings, sample_standard
    from t2mv_core.text import encode_text
    from t2mv_core.trajectory import SeededNoise

    models = server.base_dir / "models"
    loras = [models / "loras" / name for name in ("few_step.safetensors", "tiny.safetensors")]
    few_step_lora(loras[0], models / "diffusers" / "tiny")
    rig = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": "0, 90", "elevations": "0"}}
    settings = {"prompt": "a red mug", "seed": 4, "steps": 2, "guidance": 1.0, "view_scale": 1.0}
    names = [("2", "1", loras[0].name, 0.8), ("3", "2", loras[1].name, 1.0)]
    workflow = {
        "1": load("diffusers/tiny", sampler="ddim-trailing"),
        **{node: {"class_type": "T2MVLoadLoRA", "inputs": {"model": [to, 0], "lora": name, "strength": by}}
           for node, to, name, by in names},
        "4": rig,
        "5": {"class_type": "T2MVSampleStandard",
              "inputs": {"model": ["3", 0], "rig": ["4", 0], **settings}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    run = server.succeed(workflow)
    views = [np.asarray(picture) for picture in server.pictures(run, "6")]

    plain = load_bundle(str(models / "diffusers" / "tiny")).with_solver("ddim-trailing")
    expected = {}
    for name, strengths in (("both", (0.8, 1.0)), ("few_step", (0.8, 0.0))):
        bundle = plain
        for path, strength in zip(loras, strengths, strict=True):
            bundle = load_lora(bundle, path, strength)
        with torch.no_grad():
            cameras = encode_cameras(bundle, CameraRig((0.0, 90.0), (0.0, 0.0)))
            found = sample_standard(
                bundle, encode_text(bundle, ["a red mug"]), cameras, SeededNoise([4]),
                SamplingSettings(num_steps=2, guidance_scale=1.0),
            )  # fmt: skip
            images = decode_latents(bundle.vae, found.denoised)[0]
        expected[name] = (images.movedim(1, -1) * 255).numpy()
    both, alone = (np.abs(np.stack(views) - expected[name]).max() for name in ("both", "few_step"))
    assert both < 1.5  # of 255: rounding, and another torch
    assert alone > 5
