"""Many runs on end, and runs that were cancelled: memory comes back, results stay what they were.

Memory is that of the server's whole process, as the system counts it (/proc). The tolerances are a third and
half of what the runs would leave if they kept their pictures, or what was recorded when they were cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.comfyui.workflows import TOYBOX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ComfyServer, Run

pytestmark = pytest.mark.slow

NUM_RUNS = 50
NUM_WARM_UP = 10  # the allocator's pools and ComfyUI's caches fill up first
MAX_GROWTH_MIB_PER_RUN = 0.1  # the pictures of a run are 6 * 64 * 64 * 3 float32: 0.28 MiB
NUM_CANCELLED, CANCEL_AT = 5, 20
# State and action of 18 steps of 24 views, 4 * 16 * 16 float32 each: 3.4 MiB per run, 17 MiB of five.
MAX_LEFT_MIB = 8.0
ANGLES = ", ".join(str(15 * i) for i in range(24))
RIG = {"class_type": "T2MVCreateCameraRig", "inputs": {"azimuths": ANGLES, "elevations": "0"}}


@pytest.fixture(scope="module")
def server(start_server: Any, comfy_base: Path) -> Iterator[ComfyServer]:
    """A ComfyUI of its own, whose memory goes back to the system as soon as it is freed.

    glibc otherwise keeps what was freed for later, tens of MiB in which a leak would not be seen.
    """
    with start_server(comfy_base, environment={"MALLOC_MMAP_THRESHOLD_": "131072"}) as running:
        yield running


def workflow(seed: int, steps: int, **rig: Any) -> dict[str, dict[str, Any]]:
    """Views of the toybox: six, or as many as the rig has."""
    inputs = {"model": ["1", 0], "prompt": "a red mug", "seed": seed, "steps": steps,
              "guidance": 2.0, "view_scale": 1.0, "zigzag_steps": 1, "zigzag_repeats": 1,
              "inverse_guidance": 1.0, "inverse_view_scale": 1.0, **rig}  # fmt: skip
    return {
        "1": TOYBOX,
        "2": RIG,
        "3": {"class_type": "T2MVSampleZMV", "inputs": inputs},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }


def pictures(server: ComfyServer, run: Run) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in server.pictures(run, "4")])


def test_cancelled_runs_leave_no_memory_and_the_next_run_is_as_ever(server: ComfyServer) -> None:
    rig = ["2", 0]
    before = pictures(server, server.succeed(workflow(1, 2, rig=rig)))
    for seed in range(2, 4):
        assert server.run(workflow(seed, 20, rig=rig)).status == "success"
    start = server.resident_mib()

    def cancel(num_reports: int) -> None:
        if num_reports == CANCEL_AT:
            server.post("/interrupt", {})

    for seed in range(10, 10 + NUM_CANCELLED):
        run = server.run(workflow(seed, 40, rig=rig), on_progress=cancel)
        assert run.status == "interrupted"
        # The evaluation during which the button was pressed, and one that ended while it was on its way.
        assert len(run.progress) <= CANCEL_AT + 2
    assert server.resident_mib() - start < MAX_LEFT_MIB
    assert np.array_equal(pictures(server, server.succeed(workflow(1, 2, rig=rig))), before)


def test_fifty_runs_neither_grow_nor_change(server: ComfyServer) -> None:
    first: dict[int, np.ndarray] = {}
    memory = []
    for number in range(NUM_RUNS):
        seed = number % 2  # another seed than the run before, so that nothing comes from ComfyUI's cache
        run = server.run(workflow(seed, 2))
        assert [node for node, _, _ in run.progress if node == "3"]
        assert np.array_equal(first.setdefault(seed, pictures(server, run)), pictures(server, run))
        memory.append(server.resident_mib())
    late = np.array(memory[NUM_WARM_UP:])
    growth = float(np.polyfit(np.arange(len(late)), late, 1)[0])
    assert growth < MAX_GROWTH_MIB_PER_RUN
    assert not np.array_equal(first[0], first[1])
