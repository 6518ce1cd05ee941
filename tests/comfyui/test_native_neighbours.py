"""ComfyUI's own nodes around the adapter and under the zigzag: tiles, merged tokens, caches, hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.comfyui.small_sdxl import (
    CFG,
    SEED,
    STEPS,
    controlled,
    graph,
    latents,
    node,
    relative_error,
    sampled,
)

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference

SHIFT = ["shift", 0]
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}


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


def zigzagged(name: str, model: list[Any], text: str = "text", **settings: Any) -> dict[str, Any]:
    """SamplerCustomAdvanced with the zigzag sampler behind a model, and a SaveLatent."""
    settings = {
        "sampler_name": "euler", "zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0,
        "inverse_view_scale": 0.5, "cfg": CFG, **settings,
    }  # fmt: skip
    cfg = settings.pop("cfg")
    return {
        f"guider {name}": node("CFGGuider", model=model, positive=[text, 0], negative=[text, 1], cfg=cfg),
        f"sampler {name}": node("T2MVCreateZigzagSampler", **settings),
        f"sigmas {name}": node("BasicScheduler", model=model, scheduler="simple", steps=STEPS, denoise=1.0),
        f"noise {name}": node("RandomNoise", noise_seed=SEED),
        name: node(
            "SamplerCustomAdvanced", noise=[f"noise {name}", 0], guider=[f"guider {name}", 0],
            sampler=[f"sampler {name}", 0], sigmas=[f"sigmas {name}", 0], latent_image=["latent", 0],
        ),
        f"save {name}": node("SaveLatent", samples=[name, 0], filename_prefix=name.replace(" ", "-")),
    }  # fmt: skip


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


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_a_cache_may_begin_behind_the_zigzags_and_is_refused_in_them(server: ComfyServer, kind: str) -> None:
    early = {"early": node(kind, model=SHIFT, **CACHE)}
    run = server.run(graph(early, zigzagged("refused", ["early", 0], cfg=1.0)))
    assert run.status == "error"
    assert f"{kind} may skip evaluations of the zigzag steps" in run.error
    assert (
        server.run(graph(early, zigzagged("none", ["early", 0], cfg=1.0, zigzag_steps=0))).status == "success"
    )

    # From the second step on, behind the zigzag: it skips there, and the rest is what it is without it.
    late = {"late": node(kind, model=SHIFT, **{**CACHE, "start_percent": 0.2})}
    never = {"never": node(kind, model=SHIFT, **{**CACHE, "start_percent": 0.2, "reuse_threshold": 0.0})}
    run = server.run(graph(
        late, never, zigzagged("zigzag", SHIFT, cfg=1.0), zigzagged("late skips", ["late", 0], cfg=1.0),
        zigzagged("never skips", ["never", 0], cfg=1.0),
    ))  # fmt: skip
    zigzag, skipped, unskipped = (
        latents(server, run, name) for name in ("zigzag", "late skips", "never skips")
    )
    assert torch.equal(unskipped, zigzag)
    assert 1e-4 < relative_error(skipped, zigzag)
    assert bool(skipped.isfinite().all())


def test_zigzags_with_a_controlnet_are_the_method_over_the_diffusers_path(
    small_sdxl: tuple[ComfyServer, Reference],
) -> None:
    server, reference = small_sdxl
    settings = {"zigzag_steps": 2, "inverse_guidance": 1.0, "inverse_view_scale": 0.5}
    run = server.run(graph(
        controlled("control", "control.safetensors", 0.7),
        zigzagged("steered zigzag", SHIFT, "control", **settings),
    ))  # fmt: skip
    found = latents(server, run, "steered zigzag")
    expected = reference.euler(control_strength=0.7, zigzag=(2, 1.0, 0.5))
    assert relative_error(found, expected) < 1e-4
    for other in (
        reference.euler(control_strength=0.7),
        reference.euler(zigzag=(2, 1.0, 0.5)),
        reference.euler(control_strength=0.7, zigzag=(2, 1.0, 1.0)),
    ):
        assert relative_error(found, other) > 1e-3


def test_a_lora_by_hooks_is_the_lora_also_under_the_zigzag(server: ComfyServer) -> None:
    hooked = {
        "hook": node("CreateHookLoraModelOnly", lora_name="style.safetensors", strength_model=0.7),
        "hooked": node(
            "PairConditioningSetProperties", positive_NEW=["text", 0], negative_NEW=["text", 1],
            hooks=["hook", 0], strength=1.0, set_cond_area="default",
        ),
        "lora": node(
            "LoraLoaderModelOnly", model=SHIFT, lora_name="style.safetensors", strength_model=0.7
        ),
        "half": node(
            "ConditioningSetProperties", cond_NEW=["text", 0], hooks=["hook", 0], strength=1.0,
            set_cond_area="default",
        ),
    }  # fmt: skip
    half = zigzagged("half zigzag", SHIFT)
    half["guider half zigzag"]["inputs"]["positive"] = ["half", 0]
    run = server.run(graph(
        hooked, half, sampled("views", SHIFT), sampled("by lora", ["lora", 0]),
        sampled("by hook", SHIFT, "hooked"), zigzagged("zigzag", SHIFT),
        zigzagged("zigzag by lora", ["lora", 0]), zigzagged("zigzag by hook", SHIFT, "hooked"),
        sampled("views after", SHIFT, denoise=0.99995),
    ))  # fmt: skip
    for plain, lora, hook in (
        ("views", "by lora", "by hook"), ("zigzag", "zigzag by lora", "zigzag by hook"),
    ):  # fmt: skip
        expected = latents(server, run, lora)
        assert relative_error(latents(server, run, hook), expected) < 1e-4
        assert relative_error(latents(server, run, plain), expected) > 1e-3
    # On one condition only, it acts on that one: the result is neither with the LoRA nor without it.
    one = latents(server, run, "half zigzag")
    for name in ("zigzag", "zigzag by lora"):
        assert relative_error(one, latents(server, run, name)) > 1e-3, name
    assert torch.equal(latents(server, run, "views after"), latents(server, run, "views"))
