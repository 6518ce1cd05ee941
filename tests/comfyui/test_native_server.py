"""Native nodes in a running ComfyUI: its own samplers, LoRA loader and patches around a small random SDXL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.comfyui.small_sdxl import graph, latents, node, sampled

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference


@pytest.fixture
def server(small_sdxl: tuple[ComfyServer, Reference]) -> ComfyServer:
    return small_sdxl[0]


def test_plain_ksamplers_draw_views_and_other_branches_keep_their_bits(server: ComfyServer) -> None:
    plain = sampled("plain", ["small", 0])
    views = sampled("views", ["shift", 0])
    lora = {
        "lora": node("T2MVLoadLoRANative", model=["shift", 0], lora="views.safetensors", strength=1.0),
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
    assert "matched: 204 modules" in together.outputs["lora"]["text"][0]

    # Unloaded while the queue goes on: the sampler runs again, its model comes back from where it was put.
    server.post("/free", {"unload_models": True})
    again = server.run(graph(sampled("views", ["shift", 0], cfg=4.5)))
    assert not torch.equal(latents(server, again, "views"), only_views)
    server.post("/free", {"unload_models": True})
    once_more = server.run(graph(views))
    assert torch.equal(latents(server, once_more, "views"), only_views)


def test_sets_of_a_batch_do_not_see_each_other(server: ComfyServer) -> None:
    two = {"two": node("T2MVEmptyLatent", rig=["rig", 0], width=128, height=128, sets=2)}
    run = server.run(graph(
        {**two, **sampled("both", ["shift", 0], latent_image=["two", 0])}, sampled("views", ["shift", 0])
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
    run = server.run(graph({**empty, **sampled("views", ["shift", 0], latent_image=["empty", 0])}))
    assert run.status == "error"
    assert "batch of 3, which is no multiple of the 4 views" in run.error
    twice = {"twice": node("T2MVApplyAdapter", **{**graph()["adapter"]["inputs"], "model": ["shift", 0]})}
    run = server.run(graph({**twice, **sampled("views", ["twice", 0])}))
    assert "already has an MV-Adapter" in run.error
    wrong = graph(sampled("views", ["shift", 0]))
    wrong["latent"]["inputs"]["width"] = 120
    assert "multiple of 16" in server.refusal(wrong)
    wrong["latent"]["inputs"]["width"] = 128
    wrong["adapter"]["inputs"]["adapter"] = "../../etc/passwd"
    assert "models/mvadapter" in server.refusal(wrong)
    lora = {
        "lora": node("T2MVLoadLoRANative", model=["small", 0], lora="views.safetensors", strength=1.0),
        **sampled("views", ["lora", 0]),
    }
    assert "put Apply MV-Adapter (T2MV) before" in server.run(graph(lora)).error
