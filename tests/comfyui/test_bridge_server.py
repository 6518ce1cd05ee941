"""Model from ComfyUI (T2MV) in a running ComfyUI: one loaded model for its own samplers and for ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

HERE, PACK_DIR = Path(__file__).parent, Path(__file__).parents[2]
STYLE_LAYER = "lora_unet_input_blocks_7_1_transformer_blocks_0_attn2_to_v"


def write_files(models: Path) -> None:
    """A checkpoint of small widths, its MV-Adapter, a LoRA of ours and one in kohya's layout."""
    from benchmarks.sdxl_files import Size, create_modules, original_checkpoint
    from t2mv_core.adapter import create_camera_encoder, save_adapter
    from t2mv_core.attention import install_multiview_attention
    from t2mv_core.lora import add_lora, save_lora, trainable_parameters

    torch.manual_seed(0)
    size = Size(
        widths=(64, 128, 128), depths=(0, 1, 2), text=((64, 3, 96, 49408), (128, 3, 160, 49408)), pooled=128,
        vae_widths=(32, 64), vae_layers=1,
    )  # fmt: skip
    modules = create_modules(size)
    for folder in ("checkpoints", "mvadapter", "loras"):
        (models / folder).mkdir(parents=True)
    tensors = original_checkpoint({name: module.state_dict() for name, module in modules.items()}, size)
    save_file({k: x.contiguous() for k, x in tensors.items()}, models / "checkpoints" / "small.safetensors")
    unet = modules["unet"]
    install_multiview_attention(unet)
    save_adapter(
        unet, create_camera_encoder(unet, vae_scale_factor=2), models / "mvadapter" / "small.safetensors"
    )
    add_lora(unet, rank=2, alpha=2)
    with torch.no_grad():
        for parameter in trainable_parameters(unet):
            parameter.normal_(std=0.2)
    save_lora(unet, models / "loras" / "views.safetensors", {})
    style = {
        f"{STYLE_LAYER}.lora_down.weight": 5 * torch.randn(2, 192),
        f"{STYLE_LAYER}.lora_up.weight": 5 * torch.randn(128, 2),
    }
    save_file(style, models / "loras" / "style.safetensors")


@pytest.fixture(scope="module")
def bridge_server(
    start_server: Callable[..., AbstractContextManager[ComfyServer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy bridge")
    for name in ("custom_nodes", "user/default"):
        (base / name).mkdir(parents=True)
    write_files(base / "models")
    (base / "custom_nodes" / "small.py").symlink_to(HERE / "small_checkpoint_node.py")
    (base / "custom_nodes" / "ComfyUI-T2MV").symlink_to(PACK_DIR, target_is_directory=True)
    with start_server(base) as running:
        yield running


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


NUMBERS = {"steps": 2, "guidance": 1.0, "view_scale": 1.0, "negative_prompt": "", "tiled_decode": False}
COMMON = {
    "small": node("SmallCheckpoint"),
    "model": node(
        "T2MVModelFromComfy", model=["small", 0], clip=["small", 1], vae=["small", 2],
        adapter="small.safetensors",
    ),
    "rig": node("T2MVCreateCameraRig", azimuths="0, 90", elevations="0", preset="custom", views=""),
}  # fmt: skip


def views(name: str, model: list[Any], **changed: Any) -> dict[str, Any]:
    """A sampler of ours and its latents in a file."""
    numbers = {"prompt": "a red mug", "seed": 5, "rig": ["rig", 0], **NUMBERS, **changed}
    return {
        name: node("T2MVSampleStandard", model=model, **numbers),
        f"save {name}": node("SaveLatent", samples=[name, 1], filename_prefix=name),
    }


NATIVE = {
    "words": node("CLIPTextEncode", clip=["small", 1], text="a red mug"),
    "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "native": node(
        "KSampler", model=["small", 0], positive=["words", 0], negative=["words", 0],
        latent_image=["empty", 0], steps=2, denoise=1.0, sampler_name="euler", scheduler="normal", cfg=1.0,
        seed=5,
    ),
    "save native": node("SaveLatent", samples=["native", 0], filename_prefix="native"),
}  # fmt: skip


def latents(server: ComfyServer, run: Run, name: str) -> torch.Tensor:
    assert run.status == "success", run.error
    saved = run.outputs[f"save {name}"]["latents"][0]
    return load_file(server.base_dir / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def test_one_loaded_model_serves_both_and_neither_sees_the_other(bridge_server: ComfyServer) -> None:
    server = bridge_server
    alone = latents(server, server.run(COMMON | NATIVE), "native")
    server.forget()
    plain = latents(server, server.run(COMMON | views("plain", ["model", 0])), "plain")
    assert plain.shape == (2, 4, 96, 96)
    server.forget()

    upstream = {
        "style": node(
            "LoraLoader", model=["small", 0], clip=["small", 1], lora_name="style.safetensors",
            strength_model=1.0, strength_clip=1.0,
        ),
        "styled model": node("T2MVModelFromComfy", **{
            **COMMON["model"]["inputs"], "model": ["style", 0], "clip": ["style", 1],
        }),
        **views("upstream", ["styled model", 0]),
    }  # fmt: skip
    behind = {
        "lora": node("T2MVLoadLoRA", model=["model", 0], lora="style.safetensors", strength=1.0),
        "trained": node("T2MVLoadLoRA", model=["model", 0], lora="views.safetensors", strength=1.0),
        **views("behind", ["lora", 0]),
        **views("ours", ["trained", 0]),
    }
    together = server.run(COMMON | NATIVE | views("plain", ["model", 0]) | upstream | behind)
    assert torch.equal(latents(server, together, "native"), alone)
    assert torch.equal(latents(server, together, "plain"), plain)
    styled = latents(server, together, "upstream")
    size = plain.abs().max()
    assert (latents(server, together, "behind") - styled).abs().max() < 1e-5 * size
    assert (styled - plain).abs().max() > 1e-3 * size
    assert (latents(server, together, "ours") - plain).abs().max() > 1e-3 * size

    # Unloaded while the queue goes on: what is asked next comes back from where ComfyUI put it.
    server.post("/free", {"unload_models": True})
    again = server.run(COMMON | views("again", ["model", 0], seed=6))
    assert not torch.equal(latents(server, again, "again"), plain)
    server.post("/free", {"unload_models": True})
    once_more = server.run(COMMON | views("once more", ["model", 0]))
    assert torch.equal(latents(server, once_more, "once more"), plain)


def test_its_sampler_is_the_models_or_the_one_chosen(bridge_server: ComfyServer) -> None:
    def load(sampler: str) -> dict[str, Any]:
        named = {"model": "checkpoints/small.safetensors", "adapter": "small.safetensors"}
        return node("T2MVLoadModel", precision="float32", sampler=sampler, **named)

    chosen = node("T2MVModelFromComfy", **COMMON["model"]["inputs"], sampler="ddim-trailing")
    few_step = {
        "lcm": node("T2MVShiftSNR", model=["small", 0], sampling="lcm", scale=8.0),
        "behind lcm": node("T2MVModelFromComfy", **{**COMMON["model"]["inputs"], "model": ["lcm", 0]}),
    }
    workflow = COMMON | few_step | {"chosen": chosen, "load": load("ddim-trailing"), "load lcm": load("lcm")}
    for name, model in (
        ("ours", "chosen"),
        ("file", "load"),
        ("lcm ours", "behind lcm"),
        ("lcm file", "load lcm"),
    ):
        workflow |= views(name, [model, 0])
    run = bridge_server.run(workflow)
    trailing = latents(bridge_server, run, "file")
    assert torch.equal(latents(bridge_server, run, "ours"), trailing)
    assert torch.equal(latents(bridge_server, run, "lcm ours"), latents(bridge_server, run, "lcm file"))
    assert not torch.equal(latents(bridge_server, run, "lcm file"), trailing)


def test_rewards_rank_its_sets(bridge_server: ComfyServer) -> None:
    best = {
        "reward": node("T2MVLoadReward", reward="toybox_clip", precision="float32"),
        "best": node(
            "T2MVSampleBest", model=["model", 0], rewards=["reward", 0], prompts="a red mug", seed=5,
            candidates=2, keep=1, rank_by="sum of normalised rewards", sampler="zmv", zigzag_steps=1,
            zigzag_repeats=1, inverse_guidance=1.0, inverse_view_scale=1.0, rig=["rig", 0], **NUMBERS,
        ),
    }  # fmt: skip
    run = bridge_server.run(COMMON | best)
    assert run.status == "success", run.error
    assert "seed" in run.outputs["best"]["text"][0]
    assert run.previews


def test_refusals_are_sentences(bridge_server: ComfyServer) -> None:
    freed = {
        "patch": node("FreeU_V2", model=["small", 0], b1=1.3, b2=1.4, s1=0.9, s2=0.2),
        "model": node("T2MVModelFromComfy", **{**COMMON["model"]["inputs"], "model": ["patch", 0]}),
    }
    run = bridge_server.run(COMMON | freed | views("plain", ["model", 0]))
    assert run.status == "error"
    assert "would not obey" in run.error
    assert "FreeU" in run.error
    outside = node("T2MVModelFromComfy", **{**COMMON["model"]["inputs"], "adapter": "../../etc/passwd"})
    refused = bridge_server.refusal(COMMON | {"model": outside} | views("plain", ["model", 0]))
    assert "models/mvadapter" in refused
