"""Stage `export`: the trained networks in the layout that `load_bundle` reads, fp16, ready to be shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2mv_core.formats.atomic import replaced
from t2mv_core.formats.components import SHARED_KEY
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.toybox.prompt_lists import FILE_NAME
from t2mv_core.unet.adapter import save_adapter

from ..data.captions import prompt_lists_json
from .adapter import load_teacher
from .lcm import load_student
from .networks import STUDENT_SCHEDULER, TEACHER_SCHEDULER, MultiviewNetworks
from .stage import StageConfig

UNET_FILE = "diffusion_pytorch_model.safetensors"
MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "LCMScheduler"],
}


def run(config: StageConfig) -> None:
    """Write model (student), teacher, MV-Adapter, prompt lists; the reward and judge stages add theirs."""
    folder = config.export_dir
    teacher, student = load_teacher(config), load_student(config)
    export_unet(student, folder / "model", STUDENT_SCHEDULER)
    export_unet(teacher, folder / "teacher", TEACHER_SCHEDULER, shared_with=student)
    save_adapter_half(teacher, folder / "mvadapter.safetensors")
    export_shared(config, teacher, folder / "model")
    (folder / FILE_NAME).write_text(prompt_lists_json(), encoding="utf-8")


def export_unet(
    networks: MultiviewNetworks,
    folder: Path,
    scheduler: Mapping[str, Any],
    shared_with: MultiviewNetworks | None = None,
) -> None:
    """A UNet without its multiview attention, and the scheduler it was made for.

    Args:
        networks: whose UNet.
        folder: gets `unet/` and `scheduler/`.
        scheduler: configuration.
        shared_with: leave out the weights that equal those of this one's UNet.
    """
    own = half({key: t for key, t in networks.unet.state_dict().items() if ".processor." not in key})
    metadata = {"format": "pt"}
    if shared_with is not None:
        other = half(shared_with.unet.state_dict())
        own = {key: tensor for key, tensor in own.items() if not torch.equal(tensor, other[key])}
        metadata[SHARED_KEY] = "model"
    write_safetensors(own, folder / "unet" / UNET_FILE, metadata)
    write_json(config_of(networks.unet), folder / "unet" / "config.json")
    write_json(dict(scheduler), folder / "scheduler" / "scheduler_config.json")


def save_adapter_half(networks: MultiviewNetworks, path: Path) -> None:
    """The MV-Adapter file in fp16."""
    save_adapter(networks.unet, networks.camera_encoder, path)
    tensors, metadata = read_safetensors(path)
    write_safetensors(half(tensors), path, metadata)


def export_shared(config: StageConfig, networks: MultiviewNetworks, folder: Path) -> None:
    """Text encoders and VAE, which teacher and student share."""
    from diffusers import AutoencoderKL

    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(networks, name)
        # The published layout has the prefix; whether a class shows it depends on transformers' version.
        tensors = {
            key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": tensor
            for key, tensor in encoder.state_dict().items()
        }
        write_safetensors(half(tensors), folder / name / "model.safetensors", {"format": "pt"})
        write_json(encoder.config.to_diff_dict(), folder / name / "config.json")
    vae = AutoencoderKL.from_pretrained(config.out_dir / "vae")
    write_safetensors(half(vae.state_dict()), folder / "vae" / UNET_FILE, {"format": "pt"})
    write_json(config_of(vae), folder / "vae" / "config.json")
    write_json(MODEL_INDEX, folder / "model_index.json")


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def config_of(model: Any) -> dict[str, Any]:
    """A diffusers model's configuration without what is private to this machine."""
    return {
        "_class_name": type(model).__name__,
        **{k: v for k, v in model.config.items() if not k.startswith("_")},
    }


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write JSON atomically."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
