"""Native nodes in a running ComfyUI: its own samplers, LoRA loader and patches around a small random SDXL.

ComfyUI knows an SDXL by its real size only, so a node written here gives the small one and text features to
the graph; everything else is ComfyUI's and ours.
"""

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

PACK_DIR = Path(__file__).parents[2]
SMALL_MODEL_NODE = """
import comfy.model_detection, comfy.model_management, comfy.supported_models, comfy.utils, folder_paths, torch
from comfy.model_patcher import ModelPatcher

class SmallModel:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CONDITIONING", "CONDITIONING"), "make", "tests"

    def make(self):
        path = folder_paths.get_full_path("diffusion_models", "small.safetensors")
        weights = comfy.utils.load_torch_file(path)
        config = comfy.supported_models.SDXL(comfy.model_detection.detect_unet_config(weights, ""))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(weights, "", device="cpu")
        model.load_model_weights(weights, "")
        torch.manual_seed(1)
        sides = [[[torch.randn(1, 12, 192), {"pooled_output": torch.randn(1, 64)}]] for _ in range(2)]
        return (ModelPatcher(model, comfy.model_management.get_torch_device(), torch.device("cpu")), *sides)

NODE_CLASS_MAPPINGS = {"SmallModel": SmallModel}
"""


def write_files(models: Path) -> None:
    """The small UNet, its MV-Adapter, and two LoRAs: one with multiview parts, one in kohya's layout."""
    from benchmarks.sdxl_files import Size, create_modules, original_unet
    from t2mv_core.adapter import create_camera_encoder, save_adapter
    from t2mv_core.attention import install_multiview_attention
    from t2mv_core.lora import add_lora, save_lora, trainable_parameters

    torch.manual_seed(0)
    size = Size(
        widths=(64, 128, 128), depths=(0, 1, 2), text=((64, 2, 96, 600), (128, 3, 160, 600)), pooled=64,
        vae_widths=(32, 64), vae_layers=1, tokens=12,
    )  # fmt: skip
    unet = create_modules(size)["unet"]
    for folder in ("diffusion_models", "mvadapter", "loras"):
        (models / folder).mkdir(parents=True)
    save_file(original_unet(unet.state_dict(), size), models / "diffusion_models" / "small.safetensors")
    install_multiview_attention(unet)
    save_adapter(unet, create_camera_encoder(unet, 8), models / "mvadapter" / "small.safetensors")
    add_lora(unet, rank=2, alpha=2, name="views")
    with torch.no_grad():
        for parameter in trainable_parameters(unet, "views"):
            parameter.normal_(std=0.2)
    save_lora(unet, models / "loras" / "views.safetensors", {}, name="views")
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    style = {f"{layer}.lora_down.weight": torch.randn(2, 192), f"{layer}.lora_up.weight": torch.randn(128, 2)}
    save_file({**style, f"{layer}.alpha": torch.tensor(1.0)}, models / "loras" / "style.safetensors")


@pytest.fixture(scope="module")
def native_server(
    start_server: Callable[..., AbstractContextManager[ComfyServer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy native")
    for name in ("custom_nodes", "user/default"):
        (base / name).mkdir(parents=True)
    write_files(base / "models")
    (base / "custom_nodes" / "small_model.py").write_text(SMALL_MODEL_NODE)
    (base / "custom_nodes" / "ComfyUI-T2MV").symlink_to(PACK_DIR, target_is_directory=True)
    with start_server(base) as running:
        yield running


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def sampled(name: str, model: list[Any], latent: list[Any], **settings: Any) -> dict[str, Any]:
    """A KSampler and a SaveLatent behind a model."""
    settings = {"sampler_name": "euler", "scheduler": "normal", "cfg": 4.0, "seed": 5, **settings}
    return {
        name: node(
            "KSampler", model=model, positive=["small", 1], negative=["small", 2], latent_image=latent,
            steps=3, denoise=1.0, **settings,
        ),
        f"save {name}": node("SaveLatent", samples=[name, 0], filename_prefix=name),
    }  # fmt: skip


def graph(**branches: dict[str, Any]) -> dict[str, Any]:
    """The small model, four views, the adapter applied; and more nodes."""
    common = {
        "small": node("SmallModel"),
        "rig": node(
            "T2MVCreateCameraRig", azimuths="0", elevations="0", preset="four around", views=""
        ),
        "latent": node("T2MVEmptyLatent", rig=["rig", 0], width=128, height=128, sets=1),
        "adapter": node(
            "T2MVApplyAdapter", model=["small", 0], adapter="small.safetensors", rig=["rig", 0],
            view_scale=1.0, mv_scale=1.0,
        ),
        "shift": node("T2MVShiftSNR", model=["adapter", 0], sampling="the model's own", scale=8.0),
    }  # fmt: skip
    merged = {name: item for branch in branches.values() for name, item in branch.items()}
    return {**common, **merged}


def latents(server: ComfyServer, run: Run, name: str) -> torch.Tensor:
    assert run.status == "success", run.error
    saved = run.outputs[f"save {name}"]["latents"][0]
    return load_file(server.base_dir / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


LATENT = ["latent", 0]


def test_plain_ksamplers_draw_views_and_other_branches_keep_their_bits(native_server: ComfyServer) -> None:
    plain = sampled("plain", ["small", 0], LATENT)
    views = sampled("views", ["shift", 0], LATENT)
    lora = {
        "lora": node("T2MVLoadLoRANative", model=["shift", 0], lora="views.safetensors", strength=1.0),
        "style": node(
            "LoraLoaderModelOnly", model=["lora", 0], lora_name="style.safetensors", strength_model=1.0
        ),
        **sampled("trained", ["lora", 0], LATENT),
        **sampled("styled", ["style", 0], LATENT),
    }
    alone = latents(native_server, native_server.run(graph(a=plain)), "plain")
    assert alone.shape == (4, 4, 16, 16)
    native_server.forget()
    only_views = latents(native_server, native_server.run(graph(a=views)), "views")
    assert not torch.equal(only_views, alone)
    native_server.forget()  # what was loaded leaves, what was computed is forgotten

    together = native_server.run(graph(a=lora, b=views, c=plain))
    assert torch.equal(latents(native_server, together, "plain"), alone)
    assert torch.equal(latents(native_server, together, "views"), only_views)
    trained, styled = (latents(native_server, together, name) for name in ("trained", "styled"))
    for first, second in ((trained, only_views), (styled, trained), (styled, only_views)):
        assert (first - second).abs().max() > 1e-3 * only_views.abs().max()
    assert "matched: 204 modules" in together.outputs["lora"]["text"][0]

    # Unloaded while the queue goes on: the sampler runs again, its model comes back from where it was put.
    native_server.post("/free", {"unload_models": True})
    again = native_server.run(graph(a=sampled("views", ["shift", 0], LATENT, cfg=4.5)))
    assert not torch.equal(latents(native_server, again, "views"), only_views)
    native_server.post("/free", {"unload_models": True})
    once_more = native_server.run(graph(a=views))
    assert torch.equal(latents(native_server, once_more, "views"), only_views)


def test_sets_of_a_batch_do_not_see_each_other(native_server: ComfyServer) -> None:
    two = {"two": node("T2MVEmptyLatent", rig=["rig", 0], width=128, height=128, sets=2)}
    run = native_server.run(graph(
        a={**two, **sampled("both", ["shift", 0], ["two", 0])}, b=sampled("views", ["shift", 0], LATENT)
    ))  # fmt: skip
    both, one = latents(native_server, run, "both"), latents(native_server, run, "views")
    assert both.shape == (8, 4, 16, 16)
    size = one.abs().max()
    assert (both[:4] - one).abs().max() < 1e-4 * size  # same noise for the first set
    assert (both[4:] - one).abs().max() > 1e-2 * size


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
        ("PerturbedAttentionGuidance", {"scale": 3.0}),
        ("RescaleCFG", {"multiplier": 0.7}),
    ],
)
def test_other_patches_work_before_and_after_the_adapter(
    native_server: ComfyServer, kind: str, inputs: dict[str, Any]
) -> None:
    adapter = graph()["adapter"]["inputs"]
    branches = {
        "patch": node(kind, model=["small", 0], **inputs),
        "adapter 2": node("T2MVApplyAdapter", **{**adapter, "model": ["patch", 0]}),
        "patch 2": node(kind, model=["adapter", 0], **inputs),
        **sampled("before", ["adapter 2", 0], LATENT),
        **sampled("after", ["patch 2", 0], LATENT),
        **sampled("neither", ["adapter", 0], LATENT),
    }
    run = native_server.run(graph(a=branches))
    before, after, neither = (latents(native_server, run, x) for x in ("before", "after", "neither"))
    assert torch.equal(before, after)
    assert not torch.equal(before, neither)


def test_refusals_are_sentences(native_server: ComfyServer) -> None:
    empty = {"empty": node("EmptyLatentImage", width=128, height=128, batch_size=3)}
    run = native_server.run(graph(a={**empty, **sampled("views", ["shift", 0], ["empty", 0])}))
    assert run.status == "error"
    assert "batch of 3, which is no multiple of the 4 views" in run.error
    twice = {"twice": node("T2MVApplyAdapter", **{**graph()["adapter"]["inputs"], "model": ["shift", 0]})}
    run = native_server.run(graph(a={**twice, **sampled("views", ["twice", 0], LATENT)}))
    assert "already has an MV-Adapter" in run.error
    wrong = graph(a=sampled("views", ["shift", 0], LATENT))
    wrong["latent"]["inputs"]["width"] = 120
    assert "multiple of 16" in native_server.refusal(wrong)
    wrong["latent"]["inputs"]["width"] = 128
    wrong["adapter"]["inputs"]["adapter"] = "../../etc/passwd"
    assert "models/mvadapter" in native_server.refusal(wrong)
    lora = {
        "lora": node("T2MVLoadLoRANative", model=["small", 0], lora="views.safetensors", strength=1.0),
        **sampled("views", ["lora", 0], LATENT),
    }
    assert "put Apply MV-Adapter (T2MV) before" in native_server.run(graph(a=lora)).error
