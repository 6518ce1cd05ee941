"""SDXL's real widths in a running ComfyUI: nothing helps its loaders; a ControlNet in diffusers' layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.sdxl_files import FULL, create_modules, original_unet, unet_settings
from t2mv_core.unet.adapter import create_camera_encoder, save_adapter
from t2mv_core.unet.attention import install_multiview_attention
from tests.comfyui.small_sdxl import PX, controlled, graph, latents, relative_error, sampled, write_base

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference

# Fewer blocks than SDXL, the sizes of Segmind-Vega, which ComfyUI knows: 0.7 billion weights.
WIDE = replace(FULL, depths=(0, 1, 2))
SETTINGS = {"steps": 2, "cfg": 1.0}


@torch.no_grad()
def widen(base: Path, reference: Reference) -> Reference:
    """Wide files in place of the small ones, half precision on disk, and the other side of them."""
    models = base / "models"
    unet = create_modules(WIDE)["unet"]
    for parameter in unet.parameters():
        parameter.copy_(parameter.half())
    halves = {name: tensor.half() for name, tensor in original_unet(unet.state_dict(), WIDE).items()}
    save_file(halves, models / "diffusion_models" / "small.safetensors")
    del halves
    install_multiview_attention(unet)
    encoder = create_camera_encoder(unet, 8)
    save_adapter(unet, encoder, models / "mvadapter" / "small.safetensors")
    controlnet = create_small_controlnet()
    save_file(copy.deepcopy(controlnet).half().state_dict(), models / "controlnet" / "control.safetensors")
    text = reference.condition
    wide = {
        "prompt_embeds": torch.randn(1, 77, 2048), "prompt_pooled": torch.randn(1, 1280),
        "negative_embeds": torch.randn(1, 77, 2048), "negative_pooled": torch.randn(1, 1280),
    }  # fmt: skip
    save_file(wide, base / "input" / "conditions.safetensors")
    condition = replace(
        text, prompt_embeds=wide["prompt_embeds"], pooled_embeds=wide["prompt_pooled"],
        negative_embeds=wide["negative_embeds"], negative_pooled=wide["negative_pooled"],
    )  # fmt: skip
    for module in (unet, encoder, controlnet):
        module.eval().requires_grad_(False)
    bundle = replace(reference.bundle, unet=unet, camera_encoder=encoder)
    return replace(reference, bundle=bundle, controlnet=controlnet, condition=condition)


def create_small_controlnet() -> Any:
    """Of the sizes of diffusers' small ControlNets for SDXL: no attention, in its place projections alone."""
    from diffusers import ControlNetModel

    unused = ("sample_size", "up_block_types", "time_cond_proj_dim", "down_block_types")
    settings = {name: value for name, value in unet_settings(WIDE).items() if name not in unused}
    settings |= {"down_block_types": ("DownBlock2D",) * 3, "transformer_layers_per_block": [1, 1, 0]}
    controlnet = ControlNetModel(**settings)
    for name, parameter in controlnet.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            parameter.normal_(std=0.1)
        parameter.copy_(parameter.half())
    return controlnet


@pytest.mark.slow
def test_ksampler_with_a_controlnet_in_diffusers_layout_is_the_diffusers_path(
    start_server: Callable[..., AbstractContextManager[ComfyServer]], tmp_path: Path
) -> None:
    """10 GB of memory."""
    base = tmp_path / "base"
    reference = widen(base, write_base(base))
    with start_server(base) as server:
        run = server.run(graph(
            sampled("views", ["shift", 0], **SETTINGS),
            {
                **controlled("control", "control.safetensors", 0.7),
                **sampled("steered", ["shift", 0], "control", **SETTINGS),
            },
        ))  # fmt: skip
        views, steered = latents(server, run, "views"), latents(server, run, "steered")
    assert views.shape[-1] == PX // 8
    expected = reference.euler(control_strength=0.7, **SETTINGS)
    assert relative_error(views, reference.euler(**SETTINGS)) < 1e-4
    assert relative_error(steered, expected) < 1e-4
    assert relative_error(steered, views) > 1e-2
