"""Each of ComfyUI's caches: a change recomputes what depends on it, and draws what a fresh server draws."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall, ComfyServer

START = {
    "load": {"class_type": "T2MVLoadModel",
             "inputs": {"model": "diffusers/tiny", "adapter": "the model's own", "precision": "auto"}},
    "lora": {"class_type": "T2MVLoadLoRA",
             "inputs": {"model": ["load", 0], "lora": "tiny.safetensors", "strength": 1.0}},
    "sample": {"class_type": "T2MVSampleStandard",
               "inputs": {"model": ["lora", 0], "prompt": "a red mug", "seed": 1, "steps": 2,
                          "guidance": 7.0, "view_scale": 1.0}},
    "sheet": {"class_type": "T2MVCreateContactSheet", "inputs": {"images": ["sample", 0], "cell_px": 32}},
}  # fmt: skip
# What changes, one after the other and never back -> the nodes that depend on it.
CHANGES: list[tuple[str, str, Any, set[str]]] = [
    ("sample", "seed", 1, set()),
    ("sample", "seed", 2, {"sample", "sheet"}),
    ("lora", "strength", 0.5, {"lora", "sample", "sheet"}),
    ("sample", "prompt", "a blue chair", {"sample", "sheet"}),
]
OPTIONS = [(), ("--cache-lru", "5"), ("--cache-classic",), ("--cache-ram", "0.1", "0.1")]
StartServer = Callable[..., AbstractContextManager["ComfyServer"]]


def draw(server: ComfyServer, workflow: dict[str, Any]) -> tuple[set[str], bytes]:
    """Run a workflow: the nodes that ran, and the pixels of the sheet."""
    run = server.succeed(workflow)
    assert set(run.cached) | set(run.executing) == set(workflow)
    assert not set(run.cached) & set(run.executing)
    (picture,) = server.pictures(run, "sheet")
    for node in json.loads(picture.info["prompt"]).values():  # ComfyUI adds fingerprints to a kept workflow
        assert str(server.base_dir.parent) not in str(node), (
            "the picture would tell where its maker's files lie"
        )
    return set(run.executing), picture.tobytes()


def draw_all(server: ComfyServer) -> Iterator[tuple[set[str], bytes]]:
    """Run the workflow as it starts, and after every change."""
    workflow = copy.deepcopy(START)
    yield draw(server, workflow)
    for node, name, value, _ in CHANGES:
        workflow[node]["inputs"][name] = value
        yield draw(server, workflow)


@pytest.fixture(scope="module")
def fresh(start_server: StartServer, comfy_base: Path) -> list[bytes]:
    """The sheets of a server that keeps nothing."""
    with start_server(comfy_base, options=("--cpu", "--cache-none")) as server:
        runs = list(draw_all(server))
    assert all(ran == set(START) for ran, _ in runs)
    sheets = [sheet for _, sheet in runs]
    assert len(set(sheets)) == len(CHANGES)  # every change is seen, but the first, which is none
    return sheets


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_change_recomputes_what_depends_on_it_and_nothing_else(
    start_server: StartServer,
    comfy_install: ComfyInstall,
    comfy_base: Path,
    fresh: list[bytes],
    options: tuple[str, ...],
) -> None:
    if options and options[0] not in (comfy_install.folder / "comfy" / "cli_args.py").read_text("utf-8"):
        pytest.skip(f"This ComfyUI has no {options[0]}.")
    with start_server(comfy_base, options=("--cpu", *options)) as server:
        runs = list(draw_all(server))
    assert [sheet for _, sheet in runs] == fresh
    assert [ran for ran, _ in runs] == [set(START), *(depending for *_, depending in CHANGES)]
