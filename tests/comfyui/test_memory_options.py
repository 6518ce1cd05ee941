"""A model with smaller memory in a real ComfyUI: the same pictures, or those of rounded weights."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import ComfyServer


def drawn(server: ComfyServer, model: str, precision: str = "auto", **memory: Any) -> np.ndarray:
    """Six views in two steps as one sheet, values 0 to 255; with Set Memory Use if it is told something."""
    sampled = {"prompt": "a red mug", "seed": 1, "steps": 2, "guidance": 3.0, "view_scale": 1.0}
    workflow = {
        "1": {"class_type": "T2MVLoadModel",
              "inputs": {"model": model, "adapter": "the model's own", "precision": precision}},
        "3": {"class_type": "T2MVSampleStandard",
              "inputs": {"model": ["2" if memory else "1", 0], **sampled}},
        "4": {"class_type": "T2MVCreateContactSheet", "inputs": {"images": ["3", 0], "cell_px": 64}},
    }  # fmt: skip
    if memory:
        workflow["2"] = {"class_type": "T2MVSetMemory", "inputs": {"model": ["1", 0], **memory}}
    run = server.run(workflow)
    assert run.status == "success", run.error
    picture = Image.open(io.BytesIO(server.picture(run.outputs["4"]["images"][0])))
    return np.asarray(picture).astype(float)


@pytest.mark.parametrize("model", ["toybox", "toybox teacher"])
def test_smaller_pieces_draw_the_same(server: ComfyServer, model: str) -> None:
    whole = drawn(server, model)
    in_pieces = drawn(server, model, sequential_guidance=True, feed_forward_views=1)
    assert whole.std() > 20
    assert np.abs(in_pieces - whole).max() <= 1  # rounding to a byte


def test_float8_is_a_model_of_its_own_beside_the_others(server: ComfyServer) -> None:
    whole = drawn(server, "toybox")
    small = drawn(server, "toybox", "float8")
    assert 0 < np.abs(small - whole).mean() < 0.5 * whole.std()
    assert np.array_equal(drawn(server, "toybox", "float32"), whole)  # not the 8-bit one under its name


def test_a_linked_number_that_means_nothing_is_refused_when_it_is_known(server: ComfyServer) -> None:
    options = {"sequential_guidance": True, "feed_forward_views": ["4", 0]}
    workflow = {
        "1": {"class_type": "T2MVLoadModel",
              "inputs": {"model": "toybox", "adapter": "the model's own", "precision": "auto"}},
        "2": {"class_type": "T2MVSetMemory", "inputs": {"model": ["1", 0], **options}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        "4": {"class_type": "PrimitiveInt", "inputs": {"value": -1}},
    }  # fmt: skip
    run = server.run(workflow)
    assert run.status == "error"
    assert "feed_forward_views=-1 must be a whole number from 0 to 64" in run.error
