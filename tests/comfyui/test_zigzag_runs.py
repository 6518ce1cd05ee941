"""The zigzag sampler in graphs of a running ComfyUI, with SDXL's real classes at a tiny size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

if TYPE_CHECKING:
    from conftest import ComfyServer

PACK_DIR = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def server(
    start_server: Callable[..., AbstractContextManager[ComfyServer]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A ComfyUI with the pack and with a node that makes a tiny SDXL."""
    base = tmp_path_factory.mktemp("zigzag")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "ComfyUI-T2MV").symlink_to(PACK_DIR, target_is_directory=True)
    shutil.copy(Path(__file__).with_name("tiny_sdxl_node.py"), base / "custom_nodes")
    with start_server(base) as running:
        yield running


def zigzag(**inputs: Any) -> dict[str, Any]:
    values = {
        "sampler_name": "lcm", "zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0,
        "inverse_view_scale": 1.0, **inputs,
    }  # fmt: skip
    return {"class_type": "T2MVCreateZigzagSampler", "inputs": values}


def comfyuis(name: str) -> dict[str, Any]:
    return {"class_type": "KSamplerSelect", "inputs": {"sampler_name": name}}


def cfg_guider(cfg: float = 6.0) -> dict[str, Any]:
    inputs = {"model": ["model", 0], "positive": ["model", 1], "negative": ["model", 2], "cfg": cfg}
    return {"class_type": "CFGGuider", "inputs": inputs}


def graph(
    samplers: dict[str, dict[str, Any]], guider: dict[str, Any] | None = None, steps: int = STEPS
) -> dict[str, Any]:
    """One branch per sampler over the same model, noise and latent; each saves its latent under its name."""
    nodes = {
        "model": {"class_type": "TestTinySDXL", "inputs": {"seed": 0}},
        "guider": guider or cfg_guider(),
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "sigmas": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["model", 0], "scheduler": "simple", "steps": steps, "denoise": 1.0},
        },
    }
    for name, sampler in samplers.items():
        inputs = {key: [key, 0] for key in ("noise", "guider", "sigmas")}
        inputs |= {"sampler": [f"sampler {name}", 0], "latent_image": ["latent", 0]}
        saved = {"samples": [f"run {name}", 0], "filename_prefix": name}
        nodes |= {
            f"sampler {name}": sampler,
            f"run {name}": {"class_type": "SamplerCustomAdvanced", "inputs": inputs},
            f"save {name}": {"class_type": "SaveLatent", "inputs": saved},
        }
    return nodes


def latent(server: ComfyServer, name: str) -> torch.Tensor:
    newest = max((server.base_dir / "output").glob(f"{name}_*.latent"))
    return load_file(newest)["latent_tensor"]


@pytest.mark.parametrize("name", ["lcm", "euler", "euler_ancestral"])
def test_a_branch_without_zigzags_is_comfyuis_and_one_with_is_another(server: ComfyServer, name: str) -> None:
    samplers = {
        f"some-{name}": zigzag(sampler_name=name, zigzag_steps=2, zigzag_repeats=2),
        f"none-{name}": zigzag(sampler_name=name, zigzag_steps=0),
        f"theirs-{name}": comfyuis(name),
    }

    def latents() -> list[torch.Tensor]:
        server.forget()  # or ComfyUI would give the last run's latents
        run = server.run(graph(samplers))
        assert run.status == "success", run.error
        return [latent(server, branch) for branch in samplers]

    some, none, theirs = latents()
    assert torch.equal(theirs, none)
    assert bool(some.isfinite().all())
    assert float((some - theirs).abs().mean()) > 0.01 * float(theirs.std())
    assert all(torch.equal(*pair) for pair in zip((some, none, theirs), latents(), strict=True))


def test_progress_counts_every_evaluation(server: ComfyServer) -> None:
    run = server.run(graph({"progress": zigzag(zigzag_steps=2, zigzag_repeats=3, inverse_guidance=0.5)}))
    assert run.status == "success", run.error
    seen = [(value, total) for node, value, total in run.progress if node == "run progress"]
    # 3 steps, and 2 more evaluations for each of 3 repeats of 2 steps; ComfyUI may repeat the last message.
    assert [value for value, _ in seen][:15] == list(range(1, 16))
    assert {total for _, total in seen} == {15}


def test_a_cancel_stops_at_the_next_evaluation_and_the_next_run_works(server: ComfyServer) -> None:
    def cancel(messages: int) -> None:
        if messages == 2:
            server.post("/interrupt", {})

    long = graph({"cancelled": zigzag(zigzag_steps=100, zigzag_repeats=10)}, steps=100)
    run = server.run(long, cancel)
    assert run.status == "interrupted"
    assert len(run.progress) < 200
    assert server.run(graph({"next": zigzag(inverse_guidance=0.25)})).status == "success"


def test_a_guider_without_negative_is_told_what_to_use(server: ComfyServer) -> None:
    basic = {
        "class_type": "BasicGuider",
        "inputs": {"model": ["model", 0], "conditioning": ["model", 1]},
    }
    run = server.run(graph({"basic": zigzag(inverse_guidance=0.0)}, basic))
    assert run.status == "error"
    assert "Use CFGGuider, or inverse_guidance=1" in run.error
    assert server.run(graph({"basic": zigzag()}, basic)).status == "success"


def test_more_zigzags_than_steps_are_refused_when_the_sigmas_are_known(server: ComfyServer) -> None:
    run = server.run(graph({"many": zigzag(zigzag_steps=4)}))
    assert run.status == "error"
    assert "zigzag_steps=4 must lie between 0 and the number of steps, here 3" in run.error


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"sampler_name": "heun"}, "heun"),
        ({"zigzag_steps": -1}, "zigzag_steps"),
        ({"zigzag_repeats": 0}, "zigzag_repeats"),
        ({"inverse_guidance": float("nan")}, "inverse_guidance=nan must be a number from 0 to 30"),
        ({"inverse_view_scale": -0.5}, "inverse_view_scale"),
    ],
)
def test_values_that_no_run_could_use_are_refused_before_it(
    server: ComfyServer, inputs: dict[str, Any], words: str
) -> None:
    assert words in server.refusal(graph({"bad": zigzag(**inputs)}))
