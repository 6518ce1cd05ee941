"""Workflows 1 and 2 in two more shapes: as apps, and as blueprints of ComfyUI's node library.

An app is a workflow that opens as a form: `extra.linearData` names its inputs and outputs. It is written as
example_workflows/<name>.app.json. A blueprint is one node, a subgraph, in subgraphs/<name>.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODEL = ("1", "model")


@dataclass(frozen=True)
class Blueprint:
    """A part of a workflow as one node.

    Attributes:
        name: of the file, which ComfyUI shows.
        description: shown with it.
        aliases: words that find it.
        nodes: ids of the workflow's nodes that are in it.
        inputs: (node, widget, name on the blueprint).
        outputs: (node, slot, name on the blueprint).
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    nodes: tuple[str, ...]
    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[tuple[str, int, str], ...]


# Name of a workflow -> (node, widget) of what people set, nodes whose pictures they see.
APPS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "1 Text to views": ((("3", "prompt"), ("3", "seed"), MODEL), ("4",)),
    "2 Standard and zigzag": ((("2", "value"), ("3", "value"), MODEL), ("13", "14")),
}
BLUEPRINTS = {
    "1 Text to views": Blueprint(
        "Text to Views (T2MV)",
        "A prompt becomes six views of one object, and a contact sheet of them.",
        ("multiview", "text to multiview", "t2mv", "turnaround"),
        ("1", "2", "3", "4"),
        (("3", "prompt", "prompt"), ("3", "seed", "seed"), ("1", "model", "model")),
        (("3", 0, "views"), ("4", 0, "sheet")),
    ),
    "2 Standard and zigzag": Blueprint(
        "Views with and without Zigzag (T2MV)",
        "A prompt becomes two sets of six views from one seed, sampled without and with a zigzag.",
        ("multiview", "zmv", "compare samplers", "t2mv"),
        ("1", "2", "3", "4", "5", "6", "13", "14"),
        (("2", "value", "prompt"), ("3", "value", "seed"), ("1", "model", "model")),
        (("13", 0, "standard"), ("14", 0, "zigzag")),
    ),
}


def to_app(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow in ComfyUI's own format as an app."""
    inputs, outputs = APPS[name]
    linear = {"inputs": [list(each) for each in inputs], "outputs": list(outputs)}
    return {**workflow, "extra": {**workflow["extra"], "linearMode": True, "linearData": linear}}
