"""Load Model with less memory in a real ComfyUI: the same pictures, or those of rounded weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from conftest import ComfyServer


def draw(server: ComfyServer, model: str, precision: str = "auto", **options: Any) -> np.ndarray:
    """Draw six views in two steps; return them as one sheet with values from 0 to 255."""
    sampled = {"prompt": "a red mug", "seed": 1, "steps": 2, "guidance": 3.0, "view_scale": 1.0}
    workflow = {
        "1": {"class_type": "T2MVLoadModel",
              "inputs": {"model": model, "adapter": "the model's own", "precision": precision, **options}},
        "2": {"class_type": "T2MVSampleStandard", "inputs": {"model": ["1", 0], **sampled}},
        "3": {"class_type": "T2MVCreateContactSheet", "inputs": {"images": ["2", 0], "cell_px": 64}},
    }  # fmt: skip
    run = server.succeed(workflow)
    return np.asarray(server.pictures(run, "3")[0]).astype(float)


@pytest.mark.parametrize("model", ["toybox", "toybox teacher"])
def test_guidance_in_two_passes_draws_the_same(server: ComfyServer, model: str) -> None:
    together = draw(server, model)  # without the input, as workflows from before it
    apart = draw(server, model, sequential_guidance=True)
    assert together.std() > 20
    assert np.abs(apart - together).max() <= 1  # rounding to a byte


def test_float8_is_a_model_of_its_own_beside_the_others(server: ComfyServer) -> None:
    whole = draw(server, "toybox")
    small = draw(server, "toybox", "float8")
    assert 0 < np.abs(small - whole).mean() < 0.5 * whole.std()
    assert np.array_equal(draw(server, "toybox", "float32"), whole)  # not the 8-bit one under its name
