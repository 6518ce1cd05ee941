"""Native nodes in a running ComfyUI beside its own: samplers, LoRAs, ControlNet, T2I-Adapter, patches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.comfyui.small_sdxl import SHIFT, controlled, graph, latents, relative_error, sampled
from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference


@pytest.fixture
def server(small_sdxl: tuple[ComfyServer, Reference]) -> ComfyServer:
    return small_sdxl[0]


def test_plain_ksamplers_draw_views_and_other_branches_keep_their_bits(server: ComfyServer) -> None:
    plain = sampled("plain", ["small", 0])
    views = sampled("views", SHIFT)
    lora = {
        "lora": node("T2MVLoadLoRANative", model=SHIFT, lora="views.safetensors", strength=1.0),
        "style": node(
            "LoraLoaderModelOnly", model=["lora", 0], lora_name="style.safetensors", strength_model=1.0
        ),
        **sampled("trained", ["lora", 0]),
        **sampled("styled", ["style", 0]),
    }
    alone = latents(server, server.run(graph(plain)), "plain")
    assert alone.shape == (4, 4, 16, 16)
    server.forget()
    only_views = latents(server, server.run(graph(views)), "views")
    assert not torch.equal(only_views, alone)
    server.forget()  # what was loaded leaves, what was computed is forgotten

    together = server.run(graph(lora, views, plain))
    assert torch.equal(latents(server, together, "plain"), alone)
    assert torch.equal(latents(server, together, "views"), only_views)
    trained, styled = (latents(server, together, name) for name in ("trained", "styled"))
    for first, second in ((trained, only_views), (styled, trained), (styled, only_views)):
        assert (first - second).abs().max() > 1e-3 * only_views.abs().max()
    assert "204 modules act, 0 are left out" in together.outputs["lora"]["text"][0]

    # Unloaded while the queue goes on: the sampler runs again, its model comes back from where it was put.
    server.post("/free", {"unload_models": True})
    again = server.run(graph(sampled("views", SHIFT, cfg=4.5)))
    assert not torch.equal(latents(server, again, "views"), only_views)
    server.post("/free", {"unload_models": True})
    once_more = server.run(graph(views))
    assert torch.equal(latents(server, once_more, "views"), only_views)


def test_sets_of_a_batch_do_not_see_each_other(server: ComfyServer) -> None:
    two = {"two": node("T2MVEmptyLatent", rig=["rig", 0], width=128, height=128, sets=2)}
    run = server.run(graph(
        {**two, **sampled("both", SHIFT, latent_image=["two", 0])}, sampled("views", SHIFT)
    ))  # fmt: skip
    both, one = latents(server, run, "both"), latents(server, run, "views")
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
    server: ComfyServer, kind: str, inputs: dict[str, Any]
) -> None:
    adapter = graph()["adapter"]["inputs"]
    branches = {
        "patch": node(kind, model=["small", 0], **inputs),
        "adapter 2": node("T2MVApplyAdapter", **{**adapter, "model": ["patch", 0]}),
        "patch 2": node(kind, model=["adapter", 0], **inputs),
        **sampled("before", ["adapter 2", 0]),
        **sampled("after", ["patch 2", 0]),
        **sampled("neither", ["adapter", 0]),
    }
    run = server.run(graph(branches))
    before, after, neither = (latents(server, run, x) for x in ("before", "after", "neither"))
    assert torch.equal(before, after)
    assert not torch.equal(before, neither)


def test_refusals_are_sentences(server: ComfyServer) -> None:
    empty = {"empty": node("EmptyLatentImage", width=128, height=128, batch_size=3)}
    run = server.run(graph({**empty, **sampled("views", SHIFT, latent_image=["empty", 0])}))
    assert run.status == "error"
    assert "batch of 3, which is no multiple of the 4 views" in run.error
    wrong = graph(sampled("views", SHIFT))
    wrong["latent"]["inputs"]["width"] = 120
    assert "multiple of 16" in server.refusal(wrong)
    wrong["latent"]["inputs"]["width"] = 128
    wrong["adapter"]["inputs"]["adapter"] = "../../etc/passwd"
    assert "models/mvadapter" in server.refusal(wrong)


LORAS = {
    "lora": node("T2MVLoadLoRANative", model=SHIFT, lora="views.safetensors", strength=0.8),
    "style": node(
        "LoraLoaderModelOnly", model=["lora", 0], lora_name="style.safetensors", strength_model=0.6
    ),
}


def test_ksampler_with_a_controlnet_a_t2i_adapter_and_loras_is_the_diffusers_path(
    small_sdxl: tuple[ComfyServer, Reference],
) -> None:
    server, reference = small_sdxl
    folder = server.base_dir / "models" / "loras"
    loras = {folder / "views.safetensors": 0.8, folder / "style.safetensors": 0.6}
    run = server.run(graph(
        LORAS,
        controlled("control", "control.safetensors", 0.7),
        controlled("t2i", "t2i.safetensors", 0.5),
        controlled("both", "t2i.safetensors", 0.5, text="control"),
        sampled("views", SHIFT),
        sampled("with control", SHIFT, "control"),
        sampled("with t2i", SHIFT, "t2i"),
        sampled("with loras", ["style", 0]),
        sampled("with all", ["style", 0], "both"),
    ))  # fmt: skip
    expected = {
        "views": reference.euler(),
        "with control": reference.euler(control_strength=0.7),
        "with t2i": reference.euler(t2i_strength=0.5),
        "with loras": reference.euler(loras),
        "with all": reference.euler(loras, 0.7, 0.5),
    }
    for name, numbers in expected.items():
        found = latents(server, run, name)
        assert relative_error(found, numbers) < 1e-4, name
        if name != "views":  # each of them acts, or the comparison would show nothing
            assert relative_error(found, expected["views"]) > 1e-2, name
    assert not torch.equal(expected["with t2i"], expected["with all"])


def test_one_picture_alone_steers_every_view(small_sdxl: tuple[ComfyServer, Reference]) -> None:
    server, reference = small_sdxl
    control = controlled("control", "control.safetensors", 0.7)
    control["control"]["inputs"]["image"] = ["hint0", 0]
    run = server.run(graph(control, sampled("steered by one", SHIFT, "control")))
    same = replace(reference, hints=reference.hints[:1].expand_as(reference.hints))
    assert relative_error(latents(server, run, "steered by one"), same.euler(control_strength=0.7)) < 1e-4
