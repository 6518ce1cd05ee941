"""The zigzag sampler in graphs of a running ComfyUI: progress, cancelling, refusals, and its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.comfyui.small_sdxl import (
    CACHE,
    CFG,
    SHIFT,
    STEPS,
    controlled,
    custom_sampled,
    graph,
    latents,
    node,
    relative_error,
    sampled,
    zigzag,
)

if TYPE_CHECKING:
    from conftest import ComfyServer

    from tests.comfyui.small_sdxl import Reference

SMALL = ["small", 0]  # without an adapter: any MODEL zigzags


@pytest.fixture
def server(small_sdxl: tuple[ComfyServer, Reference]) -> ComfyServer:
    return small_sdxl[0]


def zigzagged(
    name: str, model: list[Any] = SHIFT, text: str = "text", cfg: float = CFG, steps: int = STEPS,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    return custom_sampled(name, model, zigzag(**settings), text, cfg, steps)


def test_a_branch_without_zigzags_is_comfyuis_and_one_with_is_another(server: ComfyServer) -> None:
    name = "euler_ancestral"
    workflow = graph(
        zigzagged("some", SMALL, steps=3, sampler_name=name, zigzag_steps=2, zigzag_repeats=2),
        zigzagged("none", SMALL, steps=3, sampler_name=name, zigzag_steps=0),
        custom_sampled("theirs", SMALL, node("KSamplerSelect", sampler_name=name), steps=3),
    )
    runs = []
    for _ in range(2):
        server.forget()  # or ComfyUI would give the last run's latents
        run = server.run(workflow)
        runs.append([latents(server, run, branch) for branch in ("some", "none", "theirs")])
    some, none, theirs = runs[0]
    assert torch.equal(theirs, none)
    assert bool(some.isfinite().all())
    assert float((some - theirs).abs().mean()) > 0.01 * float(theirs.std())
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_progress_counts_every_evaluation(server: ComfyServer) -> None:
    run = server.succeed(graph(zigzagged("progress", SMALL, steps=3, zigzag_steps=2, zigzag_repeats=3)))
    seen = [(value, total) for node, value, total in run.progress if node == "progress"]
    # 3 steps, and 2 more evaluations for each of 3 repeats of 2 steps; ComfyUI may repeat the last message,
    # and newer versions leave out what follows within 0.1 s.
    values = [value for value, _ in seen]
    assert values == sorted(values)
    assert values[-1] == 15
    assert {total for _, total in seen} == {15}


def test_a_cancel_stops_at_the_next_evaluation_and_the_next_run_works(server: ComfyServer) -> None:
    def cancel(messages: int) -> None:
        if messages == 2:
            server.post("/interrupt", {})

    run = server.run(
        graph(zigzagged("cancelled", SMALL, steps=100, zigzag_steps=100, zigzag_repeats=10)), cancel
    )
    assert run.status == "interrupted"
    assert len(run.progress) < 200
    assert server.run(graph(zigzagged("next", SMALL, inverse_guidance=0.25))).status == "success"


def test_what_only_the_run_can_know_is_refused_in_it(server: ComfyServer) -> None:
    run = server.run(graph(zigzagged("bad", inverse_guidance=float("nan"))))
    assert run.status == "error"
    assert "inverse_guidance=nan must be a number from 0 to 30" in run.error
    assert not [name for name, _, _ in run.progress if name == "bad"]


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler_name": "heun"}, {"zigzag_steps": -1}, {"zigzag_repeats": 0}, {"inverse_view_scale": -0.5},
    ],
)  # fmt: skip
def test_values_that_no_run_could_use_are_refused_before_it(
    server: ComfyServer, settings: dict[str, Any]
) -> None:
    assert next(iter(settings)) in server.refusal(graph(zigzagged("bad", **settings)))


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
