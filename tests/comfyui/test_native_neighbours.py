"""ComfyUI's own nodes that change tokens or skip evaluations, around the adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.comfyui.small_sdxl import CACHE, SHIFT, graph, latents, relative_error, sampled
from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference


@pytest.fixture
def server(small_sdxl: tuple[ComfyServer, Reference]) -> ComfyServer:
    return small_sdxl[0]


def again_with(model: str) -> dict[str, Any]:
    """The adapter behind another node, and the schedule behind it."""
    adapter = graph()["adapter"]["inputs"] | {"model": [model, 0]}
    return {
        f"adapter {model}": node("T2MVApplyAdapter", **adapter),
        f"shift {model}": node(
            "T2MVShiftSNR", model=[f"adapter {model}", 0], sampling="the model's own", scale=8.0
        ),
    }


@pytest.mark.parametrize("behind", [False, True], ids=["before the adapter", "behind it"])
def test_hypertile_is_refused_where_it_tiles(server: ComfyServer, behind: bool) -> None:
    settings = {"tile_size": 32, "swap_size": 1, "scale_depth": False}
    model = ["adapter", 0] if behind else ["small", 0]
    tiled = {"tiles": node("HyperTile", model=model, max_depth=1, **settings)}
    tiled |= {} if behind else again_with("tiles")
    run = server.run(graph(tiled, sampled("tiled", ["tiles" if behind else "adapter tiles", 0])))
    assert run.status == "error"
    assert "Another patch (HyperTile" in run.error
    # At max_depth 0 it tiles the first level only, where SDXL has no attention.
    tiled["tiles"]["inputs"]["max_depth"] = 0
    last = ["tiles" if behind else "adapter tiles", 0]
    run = server.run(graph(tiled, sampled("untiled", last), sampled("without", ["adapter", 0])))
    assert torch.equal(latents(server, run, "untiled"), latents(server, run, "without"))


@pytest.mark.parametrize("behind", [False, True], ids=["before the adapter", "behind it"])
def test_deep_shrink_is_refused(server: ComfyServer, behind: bool) -> None:
    model = ["adapter", 0] if behind else ["small", 0]
    shrunk = {
        "shrunk": node(
            "PatchModelAddDownscale", model=model, block_number=3, downscale_factor=2.0, start_percent=0.0,
            end_percent=0.35, downscale_after_skip=True, downscale_method="bicubic", upscale_method="bicubic",
        )
    }  # fmt: skip
    shrunk |= {} if behind else again_with("shrunk")
    run = server.run(graph(shrunk, sampled("views", ["shrunk" if behind else "adapter shrunk", 0])))
    assert run.status == "error"
    assert "resized a level of 8x8 to 4x4" in run.error
    assert "remove that node" in run.error


def test_comfyuis_token_merging_does_nothing_to_sdxl(server: ComfyServer) -> None:
    """It merges tokens of the first level only; an SDXL has its attention further down."""
    merged = {
        "merged": node("TomePatchModel", model=["small", 0], ratio=0.5),
        "merged later": node("TomePatchModel", model=SHIFT, ratio=0.5),
        **again_with("merged"),
    }
    run = server.run(graph(
        merged, sampled("plain", ["small", 0]), sampled("plain merged", ["merged", 0]),
        sampled("views", SHIFT), sampled("before", ["shift merged", 0]),
        sampled("behind", ["merged later", 0]),
    ))  # fmt: skip
    assert torch.equal(latents(server, run, "plain merged"), latents(server, run, "plain"))
    for name in ("before", "behind"):
        assert torch.equal(latents(server, run, name), latents(server, run, "views")), name


class Cache:
    """A `denoise` for `Reference.euler` that skips as ComfyUI's caches do, written after their description.

    EasyCache keeps what the UNet adds to its input, LazyCache what the guider adds to its latents.
    """

    def __init__(self, reference: Reference, kind: str, threshold: float) -> None:
        self._reference, self._ask = reference, reference.predictor()
        self._is_lazy, self._threshold = kind == "LazyCache", threshold
        self._changed, self.num_skipped = 0.0, 0
        self._rate: Any = None
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor, timestep: int, guidance: float) -> torch.Tensor:
        sigma = self._reference.sigma(timestep)
        shown = x * (1 + sigma**2) ** 0.5 if self._is_lazy else x

        def noise_of(output: torch.Tensor) -> torch.Tensor:
            return (shown - output) / sigma if self._is_lazy else output

        change = None
        if self._kept is not None:
            was_shown, was_output = self._kept
            change = distance(shown, was_shown)
            if self._rate is not None:
                self._changed += self._rate * change / was_output.abs().mean()
                if self._changed < self._threshold:
                    self.num_skipped += 1
                    return noise_of(shown + was_output - was_shown)
                self._changed = 0.0
        noise = self._ask(x, timestep, guidance)
        output = shown - sigma * noise if self._is_lazy else noise
        if change is not None:
            self._rate = distance(output, self._kept[1]) / change
        self._kept = shown, output
        return noise


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """On every eighth pixel, as the caches look."""
    return float((first - second)[..., ::8, ::8].abs().mean())


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_caches_skip_evaluations_with_the_adapter_as_without(
    small_sdxl: tuple[ComfyServer, Reference], kind: str
) -> None:
    server, reference = small_sdxl
    cached = {
        "never": node(kind, model=SHIFT, **{**CACHE, "reuse_threshold": 0.0}),
        "cached": node(kind, model=SHIFT, **CACHE),
        "cached first": node(kind, model=["small", 0], **CACHE),
        **again_with("cached first"),
    }
    settings = {"cfg": 1.0, "steps": 12}
    run = server.run(graph(
        cached, sampled("views", SHIFT, **settings), sampled("unskipped", ["never", 0], **settings),
        sampled("skipped", ["cached", 0], **settings),
        sampled("skipped first", ["shift cached first", 0], **settings),
    ))  # fmt: skip
    views, unskipped, skipped, first = (
        latents(server, run, name) for name in ("views", "unskipped", "skipped", "skipped first")
    )
    assert torch.equal(unskipped, views)
    assert torch.equal(first, skipped)
    cache = Cache(reference, kind, CACHE["reuse_threshold"])
    assert relative_error(skipped, reference.euler(denoise=cache, **settings)) < 1e-4
    assert cache.num_skipped > 0
    assert f"{kind} - skipped {cache.num_skipped}/12 steps" in server.log.read_text("utf-8")
    assert relative_error(skipped, views) > 1e-3


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_caches_under_guidance_work_or_fail_with_the_adapter_as_without(
    server: ComfyServer, kind: str
) -> None:
    """ComfyUI 0.3.64's EasyCache cannot skip two conditions that are evaluated together, on any SDXL."""
    cached = {
        "cached": node(kind, model=["small", 0], **CACHE),
        "cached views": node(kind, model=SHIFT, **CACHE),
    }
    runs = [
        server.run(graph(cached, sampled(f"{name} guided", [name, 0]))) for name in ("cached", "cached views")
    ]
    assert runs[0].status == runs[1].status
    assert runs[0].error == runs[1].error
