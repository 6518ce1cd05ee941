"""Model files as people keep them: endings, other programs' caches, equal names, folders of other models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.comfyui.workflows import drawn, load

if TYPE_CHECKING:
    from conftest import ComfyServer

CHECKPOINT = "checkpoints/sd_xl_base_1.0.safetensors"
REPOSITORY = "models--stabilityai--stable-diffusion-xl-base-1.0"
SHA, OLD_SHA = "462165984030d82259a11f4367a4eed129e94a7b", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def models(server: ComfyServer) -> Iterator[Path]:
    """ComfyUI's models; what a test adds is taken away again."""
    folder = server.base_dir / "models"
    before = {path for path in folder.rglob("*")}
    yield folder
    for path in sorted({path for path in folder.rglob("*")} - before, reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def preview(loader: dict[str, Any]) -> dict[str, Any]:
    return {"1": loader, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}


def offered(server: ComfyServer, node: str, name: str) -> list[str]:
    inputs = json.loads(server.get(f"/object_info/{node}"))[node]["input"]
    options = {**inputs.get("required", {}), **inputs.get("optional", {})}[name]
    return options[0] if isinstance(options[0], list) else options[1]["options"]


def save_diffusers(folder: Path, scheduler: dict[str, Any]) -> None:
    """The random small SDXL of the checkpoint as a folder in diffusers' layout."""
    import torch

    from benchmarks.sdxl_files import TINY, create_modules, save_folder

    torch.manual_seed(0)
    save_folder({part: dict(x.state_dict()) for part, x in create_modules(TINY).items()}, TINY, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """Move a model's folder into a Hub's cache: files are links into `blobs`; return the snapshot."""
    snapshot, blobs = cache / REPOSITORY / "snapshots" / SHA, cache / REPOSITORY / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob, link = blobs / f"{number:064x}", snapshot / path.relative_to(folder)
        path.rename(blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (cache / REPOSITORY / "refs").mkdir()
    (cache / REPOSITORY / "refs" / "main").write_text(SHA)
    older = cache / REPOSITORY / "snapshots" / OLD_SHA
    older.mkdir()
    (older / "model_index.json").symlink_to(os.path.relpath(blobs / f"{0:064x}", older))
    return snapshot


def test_another_programs_hub_cache_is_found_and_offered(
    server: ComfyServer, models: Path, tmp_path: Path
) -> None:
    whole = drawn(server, load("SDXL"))
    checkpoint = models / "checkpoints" / "sd_xl_base_1.0.safetensors"
    save_diffusers(tmp_path / "model", {"_class_name": "EulerDiscreteScheduler"})
    as_hub_cache(tmp_path / "model", models / "diffusers")
    away = checkpoint.rename(tmp_path / "away.safetensors")
    try:
        assert np.array_equal(drawn(server, load("SDXL")), whole)
        assert len(drawn(server, load("LCM-SDXL")))
        name = f"diffusers/{REPOSITORY}/snapshots/{SHA}"
        assert name in offered(server, "T2MVLoadModel", "model")
        adapter = "mvadapter_t2mv_sdxl.safetensors"
        assert np.array_equal(drawn(server, load(name, adapter=adapter)), whole)
        # The same for the adapter, and a snapshot whose download was broken off is not taken.
        shutil.rmtree(models / "diffusers" / REPOSITORY / "snapshots" / SHA / "text_encoder_2")
        assert "SDXL needs files that are not here: SDXL base 1.0" in server.refusal(preview(load("SDXL")))
    finally:
        shutil.move(away, checkpoint)


def test_the_adapter_and_the_vae_are_found_in_a_hub_cache_too(
    server: ComfyServer, models: Path, tmp_path: Path
) -> None:
    whole = drawn(server, load("SDXL"))
    moved = {
        models / "mvadapter" / "mvadapter_t2mv_sdxl.safetensors": "models--huanngzh--mv-adapter",
        models / "vae" / "sdxl-vae-fp16-fix.safetensors": "models--madebyollin--sdxl-vae-fp16-fix",
    }
    save_diffusers(tmp_path / "model", {})
    for number, (path, repository) in enumerate(moved.items()):
        snapshot = models / "diffusers" / repository / "snapshots" / SHA
        snapshot.mkdir(parents=True)
        name = path.name if number == 0 else "diffusion_pytorch_model.safetensors"
        shutil.copy(path, snapshot / name)
        path.rename(tmp_path / f"{number}")
        if number:
            shutil.copy(tmp_path / "model" / "vae" / "config.json", snapshot)
    try:
        assert np.array_equal(drawn(server, load("SDXL")), whole)
    finally:
        for number, path in enumerate(moved):
            shutil.move(tmp_path / f"{number}", path)


def test_endings_in_capitals_and_sft_are_offered_as_comfyui_offers_them_and_read(
    server: ComfyServer, models: Path
) -> None:
    whole = drawn(server, load(CHECKPOINT))
    shutil.copy(
        models / "checkpoints" / "sd_xl_base_1.0.safetensors", models / "checkpoints" / "B.SAFETENSORS"
    )
    for folder, old in (("vae", "sdxl-vae-fp16-fix"), ("mvadapter", "mvadapter_t2mv_sdxl")):
        shutil.copy(models / folder / f"{old}.safetensors", models / folder / "other.sft")
    assert "B.SAFETENSORS" in offered(server, "CheckpointLoaderSimple", "ckpt_name")
    assert "other.sft" in offered(server, "VAELoader", "vae_name")
    assert "checkpoints/B.SAFETENSORS" in offered(server, "T2MVLoadModel", "model")
    for part in ("vae", "adapter"):
        assert "other.sft" in offered(server, "T2MVLoadModel", part)
    found = drawn(server, load("checkpoints/B.SAFETENSORS", vae="other.sft", adapter="other.sft"))
    assert np.array_equal(found, whole)


def test_one_name_in_two_folders_is_the_file_of_each(server: ComfyServer, models: Path) -> None:
    whole, few_step = drawn(server, load("SDXL")), drawn(server, load("LCM-SDXL"))
    shutil.copy(models / "diffusion_models" / "lcm-sdxl.safetensors", models / "checkpoints")
    shutil.copy(
        models / "diffusion_models" / "lcm-sdxl.safetensors",
        models / "diffusion_models" / "sd_xl_base_1.0.safetensors",
    )
    assert np.array_equal(drawn(server, load("SDXL")), whole)
    assert np.array_equal(drawn(server, load(CHECKPOINT, unet="lcm-sdxl.safetensors")), few_step)
    assert np.array_equal(drawn(server, load(CHECKPOINT, unet="sd_xl_base_1.0.safetensors")), few_step)
    run = server.run(preview(load("checkpoints/lcm-sdxl.safetensors")))
    assert "holds no vae of SDXL: it is a UNet alone" in run.error


@pytest.mark.parametrize("name", ["model.ckpt", "model.PT", "model.bin"])
def test_a_pickle_is_refused_by_name_before_the_run(server: ComfyServer, models: Path, name: str) -> None:
    (models / "checkpoints" / name).write_bytes(b"\x80\x02")
    assert f"checkpoints/{name}" not in offered(server, "T2MVLoadModel", "model")
    answer = server.refusal(preview(load(f"checkpoints/{name}")))
    assert f"checkpoints/{name} is a pickle, which can run programs" in answer
    assert "Save Checkpoint" in answer


def test_linspace_works_where_a_solver_is_named_and_the_node_says_so(
    server: ComfyServer, models: Path
) -> None:
    spacing = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "unheard_of": 1}
    save_diffusers(models / "diffusers" / "linspace", spacing)
    name, whole = "diffusers/linspace", drawn(server, load(CHECKPOINT, sampler="ddim-trailing"))
    run = server.run(preview(load(name)))
    assert "timestep_spacing='linspace' is not supported" in run.error
    assert np.array_equal(drawn(server, load(name, sampler="ddim-trailing")), whole)
    run = server.run(preview(load(name, sampler="ddim")))
    text = run.texts["1"][-1]
    assert "timestep_spacing='linspace' has no effect: the solver has its own" in text
    assert "T2MV does not know the scheduler's unheard_of" in text
    # The weights are in use by now; a refusal does not depend on what ran before.
    run = server.run(preview(load(name)))
    assert "timestep_spacing='linspace' is not supported" in run.error


def test_what_is_left_over_in_a_checkpoint_is_shown_on_the_node(server: ComfyServer, models: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    whole = drawn(server, load(CHECKPOINT))
    tensors = load_file(models / "checkpoints" / "sd_xl_base_1.0.safetensors")
    stray = {"cond_stage_model.logit_scale": torch.ones(1)}
    save_file({**tensors, **stray}, models / "checkpoints" / "stray.safetensors")
    run = server.run(preview(load("checkpoints/stray.safetensors")))
    text = run.texts["1"][-1]
    assert "holds 1 tensors that SDXL does not have, cond_stage_model.logit_scale" in text
    assert np.array_equal(drawn(server, load("checkpoints/stray.safetensors")), whole)
    assert not any(text.strip() for text in server.run(preview(load(CHECKPOINT))).texts.get("1", []))


def test_a_folder_of_another_model_is_refused_by_its_name(server: ComfyServer, models: Path) -> None:
    folder = models / "diffusers" / "FLUX.1-schnell"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    run = server.run(preview(load("diffusers/FLUX.1-schnell")))
    assert "FLUX.1-schnell is a Flux model; T2MV needs an SDXL model" in run.error
