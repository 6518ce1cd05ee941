"""How the example workflows look: columns of nodes with titles, and room where pictures appear.

What they compute is in docs/api/<name>.json, the note for people in notes/<name>.md; all together give
example_workflows/<name>.json (make.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_files import named_in

API_DIR = Path(__file__).parents[1] / "api"
# What a node needs below its widgets in the new design to show a text, a sheet of views, or both.
TEXT, VIEWS, BOTH = 130, 280, 400


@dataclass(frozen=True)
class Column:
    """Nodes under each other.

    Attributes:
        title: of the group around them.
        nodes: ids in docs/api/<name>.json, from top to bottom.
        width: of the nodes, in the graph's units.
        note_height: of the workflow's note above the nodes; 0 is none.
    """

    title: str
    nodes: tuple[str, ...]
    width: int = 320
    note_height: int = 0


@dataclass(frozen=True)
class Layout:
    """A workflow on the canvas.

    Attributes:
        columns: from left to right.
        room: node id -> height below its widgets, for the pictures and texts it shows after a run.
        after_run: what happens to seeds after a run, a word of ComfyUI's control_after_generate.
        runs: ids of the output nodes that make.py runs for the picture; None runs all, () nothing.
        result: ids of the nodes whose pictures make the thumbnail; () shows a column of the graph instead.
        closeup: number of that column, from 0.
    """

    columns: tuple[Column, ...]
    room: dict[str, int] = field(default_factory=dict)
    after_run: str = "randomize"
    runs: tuple[str, ...] | None = None
    result: tuple[str, ...] = ()
    closeup: int = 0


LAYOUTS: dict[str, Layout] = {
    "1 Text to views": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 340, note_height=250),
            Column("2 Sample", ("3", "4"), 420),
            Column("3 Turn", ("5", "6"), 340),
            Column("4 Single views", ("7", "8"), 260),
            Column("5 Single views", ("9", "10"), 260),
        ),
        room={"2": TEXT, "3": VIEWS, "4": VIEWS, "5": 310, "7": VIEWS, "8": VIEWS, "9": VIEWS, "10": VIEWS},
        result=("4",),
    ),
    "2 Standard and zigzag": Layout(
        columns=(
            Column("1 The same for both", ("1", "2", "3", "4"), 340, note_height=220),
            Column("2 Sample twice", ("5", "6"), 340),
            Column("3 Score", ("7", "8", "9", "10"), 440),
            Column("4 Compare", ("13", "14", "11", "12"), 520),
        ),
        room={
            "2": 60,
            "4": TEXT,
            "5": VIEWS,
            "6": VIEWS,
            "9": BOTH,
            "10": BOTH,
            "13": VIEWS,
            "14": VIEWS,
            "11": 110,
            "12": 110,
        },  # fmt: skip
        after_run="fixed",
        result=("13", "14"),
    ),
    "3 Train a LoRA": Layout(
        columns=(
            Column("1 Train", ("4",), 400, note_height=330),
            Column("2 With and without", ("1", "5", "2", "3"), 340),
            Column("3 Sample", ("6", "7"), 320),
            Column("4 Score", ("8", "9", "12", "13"), 440),
            Column("5 Compare", ("10", "11"), 520),
        ),
        room={
            "2": 90,
            "4": 500,
            "5": TEXT,
            "6": VIEWS,
            "7": VIEWS,
            "10": 720,
            "11": 720,
            "12": 300,
            "13": 210,
        },
        after_run="fixed",
        result=("12",),
    ),
    "4 Best of eight": Layout(
        columns=(
            Column("1 Model, cameras and rewards", ("1", "2", "3", "4"), 340, note_height=190),
            Column("2 Sample and rank", ("5",), 560),
            Column("3 The best", ("6", "7", "8"), 520),
        ),
        room={"2": TEXT, "5": 1000, "6": VIEWS, "7": 180, "8": 420},
        result=("6",),
    ),
    "5 LCM-SDXL - download": Layout(
        columns=(
            Column("1 Model, LoRA and cameras", ("1", "2", "3"), 520, note_height=330),
            Column("2 Sample", ("4",), 420),
            Column("3 Look and keep", ("5", "6"), 620),
        ),
        room={"2": TEXT, "3": TEXT, "4": VIEWS, "5": VIEWS, "6": 420},
        runs=(),
        closeup=1,
    ),
    "6 Views to mesh - download": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2", "18", "19"), 400, note_height=300),
            Column("2 Views", ("3", "4", "5"), 420),
            Column("3 What Hunyuan3D sees", ("6", "7", "8", "9", "10"), 360),
            Column("4 Shape", ("11", "12", "13", "14"), 340),
            Column("5 Mesh", ("15", "16", "20", "17"), 400),
        ),
        room={"2": TEXT, "3": VIEWS, "4": VIEWS, "17": 400, "19": 100, "20": TEXT},
        runs=("4", "19"),
        result=("4",),
    ),
    "7 Native LCM-LoRA - download": Layout(
        columns=(
            Column("1 ComfyUI's SDXL", ("1", "2", "3"), 520, note_height=360),
            Column("2 Views on it", ("4", "5", "6"), 400),
            Column("3 What to draw", ("7", "8", "9"), 400),
            Column("4 Sample", ("10", "11"), 340),
            Column("5 Look and keep", ("12", "13"), 620),
        ),
        room={"4": TEXT, "7": 120, "8": 120, "12": VIEWS, "13": 420},
        runs=(),
        closeup=1,
    ),
    "8 Native ControlNet - download": Layout(
        columns=(
            Column("1 ComfyUI's SDXL with views", ("1", "2", "3", "4", "5", "6"), 460, note_height=340),
            Column("2 A set for its shape", ("7", "8", "9", "10", "11"), 400),
            Column("3 Its outlines", ("12", "13", "14", "15"), 400),
            Column("4 Another set, with zigzags", ("16", "17", "18", "19", "20", "21"), 360),
            Column("5 Look and keep", ("22", "23", "24"), 620),
        ),
        room={"4": TEXT, "7": 100, "8": 100, "14": 100, "22": VIEWS, "23": VIEWS, "24": 300},
        runs=(),
        closeup=3,
    ),
    "9 Native LCM-SDXL - download": Layout(
        columns=(
            Column("1 Files", ("1", "3", "2"), 520, note_height=400),
            Column("2 Views, LoRA and guidance on it", ("4", "5", "14", "6", "15"), 400),
            Column("3 What to draw", ("7", "8", "9"), 400),
            Column("4 Sample", ("10", "11"), 340),
            Column("5 Look and keep", ("12", "13"), 620),
        ),
        room={"4": TEXT, "7": 120, "8": 120, "14": TEXT, "12": VIEWS, "13": 420},
        runs=(),
        closeup=1,
    ),
    "10 Text to mesh": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 340, note_height=300),
            Column("2 Views", ("3", "4"), 420),
            Column("3 Mesh", ("5", "6"), 420),
        ),
        room={"2": TEXT, "3": VIEWS, "4": VIEWS, "5": TEXT, "6": 420},
        closeup=2,
    ),
    "11 Views to Pixal3D - download": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 400, note_height=430),
            Column("2 Views", ("3", "4"), 420),
            Column("3 Without background, one by one", ("5", "6", "7", "8", "9", "10", "11", "12"), 340),
            Column("4 What Pixal3D sees", ("13", "14", "15", "16"), 420),
            Column("5 Where it is", ("17", "18", "19", "20", "21", "22"), 340),
            Column("6 Shape", ("23", "24", "25", "26", "27", "28"), 340),
            Column("7 Mesh", ("29", "30", "33", "31", "32"), 400),
        ),
        room={"2": TEXT, "3": VIEWS, "4": VIEWS, "31": TEXT, "32": 400},
        runs=("4",),
        result=("4",),
    ),
    "12 Picture to mesh": Layout(
        columns=(
            Column("1 Model and cameras", ("1", "2"), 340, note_height=300),
            Column("2 The picture", ("7",), 340),
            Column("3 Views", ("3", "4"), 420),
            Column("4 Mesh", ("5", "6"), 420),
        ),
        room={"2": TEXT, "7": 340, "3": VIEWS, "4": VIEWS, "5": TEXT, "6": 420},
        closeup=3,
    ),
    "13 Picture to views - download": Layout(
        columns=(
            Column("1 ComfyUI's SDXL", ("1", "2", "3"), 520, note_height=400),
            Column("2 The picture", ("14", "15", "16"), 400),
            Column("3 Views on it", ("4", "5", "6"), 400),
            Column("4 What to draw", ("7", "8", "9"), 400),
            Column("5 Sample", ("10", "11"), 340),
            Column("6 Look and keep", ("12", "13"), 620),
        ),
        room={"4": TEXT, "7": 120, "8": 120, "14": 300, "15": VIEWS, "12": VIEWS, "13": 420},
        runs=("15",),
        closeup=1,
    ),
}


def to_page(name: str) -> dict[str, Any]:
    """A workflow's layout as page.js reads it."""
    layout = LAYOUTS[name]
    note = (Path(__file__).parent / "notes" / f"{name}.md").read_text("utf-8")
    return {
        "columns": [
            {**vars(column), "note": note if column.note_height else ""} for column in layout.columns
        ],
        "room": layout.room,
        "after_run": layout.after_run,
        "models": named_in(read_api(name)),
    }


def read_api(name: str) -> dict[str, Any]:
    """Read what a workflow computes, in API format."""
    return json.loads((API_DIR / f"{name}.json").read_text("utf-8"))
