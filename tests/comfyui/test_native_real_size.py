"""SDXL's real widths with random weights: one evaluation, and a running ComfyUI that loads them unaided."""

from __future__ import annotations

import copy
import json
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

FULL_SIZE = """
import math
from dataclasses import replace
from native_pair import create_camera_encoder, create_modules, install_multiview_attention
from native_pair import original_unet, save_adapter
from benchmarks.sdxl_files import FULL
from pack.t2mv_core.bundle import ModelBundle
from pack.t2mv_core.formats.strict import without_weights
from pack.t2mv_core.scheduler_config import schedule_from_config
from comfy.model_patcher import ModelPatcher
import comfy.model_detection

dtype, depths = getattr(torch, more[0]), json.loads(more[1])
size = replace(FULL, depths=tuple(depths))
torch.manual_seed(0)

def fill(module):
    # Memory for one copy only; layers as torch initialises them, norms left out.
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:
            continue
        if parameter.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            tensor = torch.full(parameter.shape, float(is_scale), dtype=dtype)
        else:
            bound = 1 / math.sqrt(parameter[0].numel())
            tensor = torch.empty(parameter.shape, dtype=dtype).uniform_(-bound, bound)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))

with torch.inference_mode(False), torch.no_grad():
    unet = create_modules(size, is_empty=True)["unet"]
    fill(unet)
    weights = original_unet(unet.state_dict(), size)  # the same memory under other names
    config = comfy.model_detection.model_config_from_unet(dict(weights), "")
    facts["class"] = type(config).__name__
    config.set_inference_dtype(dtype, None)
    base = config.get_model(weights, "", device="meta")
    base.diffusion_model.load_state_dict(weights, assign=True)
    model = ModelPatcher(base.eval(), torch.device("cpu"), torch.device("cpu"))
    with without_weights():
        install_multiview_attention(unet)
        encoder = create_camera_encoder(unet, 8)
    fill(unet)
    fill(encoder)
    unet.eval(), encoder.eval()
    save_adapter(unet, encoder, folder / "mvadapter.safetensors")
    schedule = schedule_from_config({"_class_name": "LCMScheduler"})
    bundle = ModelBundle(unet, None, None, None, encoder, schedule)
    pair = Pair(bundle, model, folder / "mvadapter.safetensors", size)
    facts["parameters"] = sum(p.numel() for p in unet.parameters())
    x, condition = torch.randn(1, 2, 4, 16, 16), pair.condition(1, (128, 128))
    rig = CameraRig((0.0, 90.0), (0.0, 0.0))
    ours = predict_noise(bundle, x, 620, condition, pair.cameras(rig, 16, 16), 1.0).float()
    theirs = evaluate(pair.patched(rig), x, 620, condition)
    plain = evaluate(model, x, 620, condition)
    rms = lambda y: float(y.float().square().mean().sqrt())
    facts["error"], facts["rms error"] = relative_error(theirs, ours), rms(theirs - ours) / rms(ours)
    facts["plain"], facts["plain rms"] = relative_error(plain, ours), rms(plain - ours) / rms(ours)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "depths", "bound"),
    [("float32", [0, 1, 2], 1e-4), ("bfloat16", [0, 2, 10], 0.05)],
    ids=["few blocks in float32", "SDXL in bfloat16"],
)
def test_one_evaluation_at_sdxls_width(
    native_facts: Callable[..., dict[str, Any]], dtype: str, depths: list[int], bound: float
) -> None:
    """8 GB of memory; bfloat16 rounds differently in the two implementations, hence its bound."""
    facts = native_facts(FULL_SIZE, dtype, json.dumps(depths))
    assert facts["class"] == ("SDXL" if depths[-1] == 10 else "Segmind_Vega")
    assert facts["error"] < bound
    assert facts["plain"] > 2 * bound
    assert facts["parameters"] > (2.9e9 if depths[-1] == 10 else 8e8)


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
