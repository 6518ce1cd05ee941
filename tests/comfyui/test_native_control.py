"""ControlNet, T2I-Adapter and LoRA files through a running ComfyUI's own nodes, beside the cameras."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tests.comfyui.small_sdxl import controlled, graph, latents, node, relative_error, sampled

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference

SHIFT = ["shift", 0]
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
