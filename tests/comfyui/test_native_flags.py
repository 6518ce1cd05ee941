"""Native nodes under ComfyUI's own options, each in a server of its own: number types, attention, memory.

`--lowvram` and `--novram` exclude `--cpu`: they run with a card that is imitated. On a card, ComfyUI 0.3.64
keeps what does not fit in the ordinary memory with or without `--lowvram`; `--novram` keeps everything there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.comfyui.small_sdxl import (
    CARD,
    controlled,
    graph,
    latents,
    relative_error,
    sampled,
    write_base,
)
from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer

FLOAT8 = {"--fp8_e4m3fn-unet": torch.float8_e4m3fn, "--fp8_e5m2-unet": torch.float8_e5m2}
OPTIONS = {
    "--fp8_e4m3fn-unet": "manual cast: torch.float32",
    "--fp8_e5m2-unet": "manual cast: torch.float32",
    "--lowvram": "loaded completely",
    "--novram": "loaded partially",
    "--disable-smart-memory": "Disabling smart memory management",
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_a_servers_option_changes_no_result_but_by_its_rounding(
    start_server: Callable[..., AbstractContextManager[ComfyServer]],
    tmp_path: Path,
    option: str,
    dynamic_vram: bool,
) -> None:
    base = tmp_path / "base"
    exact = write_base(base)
    reference = exact.rounded(FLOAT8[option]) if option in FLOAT8 else exact
    # Dynamic VRAM rounds a float32 file to fp8 as it loads, and presumably leaves small layers as they are.
    # Not all of the difference (0.023) is explained: docs/status.md. With fp8 in the file it is 1e-5.
    bound = 0.1 if dynamic_vram and option in FLOAT8 else 1e-4
    loras = {base / "models" / "loras" / "views.safetensors": 0.8}
    plain = sampled("plain", ["small", 0])
    branches = (
        plain,
        sampled("views", ["shift", 0]),
        {**controlled("control", "control.safetensors", 0.7), **sampled("steered", ["shift", 0], "control")},
        {
            "lora": node("T2MVLoadLoRANative", model=["shift", 0], lora="views.safetensors", strength=0.8),
            **sampled("trained", ["lora", 0]),
        },
    )
    for_a_card = option in ("--lowvram", "--novram")
    if for_a_card or dynamic_vram:
        shutil.copytree(CARD, base / "custom_nodes" / CARD.name)
    options = (option, "--force-fp32" if for_a_card else "--cpu")
    environment = {"T2MV_DYNAMIC_VRAM": "1"} if dynamic_vram else {}
    with start_server(base, options=options, environment=environment) as server:

        def unload(messages: int) -> None:
            if messages == 1:  # ComfyUI does so when this run is over, before the next of the queue
                server.post("/free", {"unload_models": True})

        before = latents(server, server.run(graph(plain)), "plain")
        server.forget()
        run = server.run(graph(*branches), unload)
        found = {name: latents(server, run, name) for name in ("plain", "views", "steered", "trained")}
        # Another number to ComfyUI's cache, the same to its sampler.
        again = server.run(graph(sampled("again", ["shift", 0], denoise=0.99995)))
        found["again"] = latents(server, again, "again")
        log = server.log.read_text("utf-8")
    assert ("prepared for dynamic VRAM" if for_a_card and dynamic_vram else OPTIONS[option]) in log
    assert torch.equal(found["plain"], before)
    assert torch.equal(found["again"], found["views"])
    assert relative_error(found["views"], reference.euler()) < bound
    assert relative_error(found["steered"], reference.euler(control_strength=0.7)) < bound
    # ComfyUI rounds weights with a LoRA to fp8 once more, and by chance; the multiview parts are not rounded.
    with_lora = relative_error(found["trained"], reference.euler(loras))
    assert with_lora < (0.2 if option in FLOAT8 else 1e-4)
    if option in FLOAT8:
        assert relative_error(found["views"], exact.euler()) > 1e-3  # or nothing was rounded
