"""Nodes in API format, as a script sends them to ComfyUI, and what most tests build of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from conftest import ComfyServer


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node."""
    return {"class_type": kind, "inputs": inputs}


def load(model: str, precision: str = "float32", **inputs: Any) -> dict[str, Any]:
    """A Load Model node."""
    named = {"model": model, "adapter": "the model's own", "precision": precision}
    return node("T2MVLoadModel", **named | inputs)


TOYBOX = load("toybox", precision="auto")


def drawn(server: ComfyServer, loader: dict[str, Any], lora: str | None = None) -> np.ndarray:
    """Two views in one step by a loaded model, with a LoRA if one is named, on a sheet: [H, W, 3] uint8."""
    settings = {"prompt": "a red mug", "seed": 0, "steps": 1, "guidance": 3.0, "view_scale": 1.0}
    model = ["2", 0] if lora else ["1", 0]
    workflow = {
        "1": loader,
        "3": node("T2MVCreateCameraRig", azimuths="0, 90", elevations="0"),
        "4": node("T2MVSampleStandard", model=model, rig=["3", 0], **settings),
        "5": node("T2MVCreateContactSheet", images=["4", 0], rig=["3", 0], cell_px=64),
    }
    if lora:
        workflow["2"] = node("T2MVLoadLoRA", model=["1", 0], lora=lora, strength=1.0)
    (sheet,) = server.pictures(server.succeed(workflow), "5")
    return np.asarray(sheet)
