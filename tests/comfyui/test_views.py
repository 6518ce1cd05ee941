"""The camera and view nodes in a real ComfyUI: what they give, show and write, and what they refuse."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

Workflow = dict[str, dict[str, Any]]
# A colour per picture; ComfyUI's EmptyImage makes plain ones.
COLOURS = [0xFF0000, 0x00FF00, 0x0000FF, 0xFFFF00, 0x00FFFF, 0xFF00FF]
NAMES = ("front", "front_right", "right", "back", "left", "front_left")


def rig(**inputs: Any) -> dict[str, Any]:
    return node("T2MVCreateCameraRig", **{"azimuths": "0, 45, 90, 180, 270, 315", "elevations": "0"} | inputs)


def coloured(colours: list[int]) -> Workflow:
    """Nodes of a batch of plain pictures; the batch is the output of "images"."""
    made = {f"c{i}": node("EmptyImage", width=24, height=16, batch_size=1, color=colour)
            for i, colour in enumerate(colours)}  # fmt: skip
    last = "c0"
    for i in range(1, len(colours)):
        name = "images" if i == len(colours) - 1 else f"b{i}"
        made[name] = node("ImageBatch", image1=[last, 0], image2=[f"c{i}", 0])
        last = name
    return made


def text(run: Run, name: str) -> str:
    return run.outputs[name]["text"][0]


def colour_of(server: ComfyServer, run: Run, name: str) -> int:
    red, green, blue = Image.open(
        io.BytesIO(server.picture(run.outputs[name]["images"][0]))
    ).getpixel((5, 5))[:3]  # fmt: skip
    return red << 16 | green << 8 | blue


def test_a_rig_says_which_angles_are_new(server: ComfyServer) -> None:
    run = server.succeed(
        {
            "1": rig(),  # as workflows were before there were presets
            "2": rig(preset="twelve turntable", views="2, front, 5"),
            "11": node("PreviewAny", source=["1", 1]),
            "12": node("PreviewAny", source=["2", 1]),
        },
    )
    assert text(run, "11") == text(run, "1")
    assert text(run, "11").startswith("6 views: 1 front 0°, 2 front-right 45°, 3 right 90°")
    assert "Warning" not in text(run, "11")
    assert text(run, "12").startswith("Warning: azimuths 30, 120 are new")
    assert text(run, "12").endswith("\n3 views: 1 30°, 2 front 0°, 3 120°")


def test_views_are_split_by_name_set_by_set(server: ComfyServer) -> None:
    reverse = rig(azimuths="315, 270, 180, 90, 45, 0")
    workflow = coloured([*COLOURS, *COLOURS[::-1]]) | {
        "rig": reverse,
        "first": node("T2MVSplitViews", images=["images", 0]),
        "second": node("T2MVSplitViews", images=["images", 0], rig=["rig", 0], set=2),
    }
    for slot, name in enumerate(NAMES):
        workflow[f"first {name}"] = node("PreviewImage", images=["first", slot])
        workflow[f"second {name}"] = node("PreviewImage", images=["second", slot])
    run = server.succeed(workflow)
    assert [colour_of(server, run, f"first {name}") for name in NAMES] == COLOURS
    # The second set's colours run backwards, and so does its rig.
    assert [colour_of(server, run, f"second {name}") for name in NAMES] == COLOURS


def test_a_batch_that_no_sheet_can_show_is_still_split(server: ComfyServer) -> None:
    workflow = {
        "images": node("EmptyImage", width=8, height=8, batch_size=396, color=0),
        "split": node("T2MVSplitViews", images=["images", 0], set=66),
        "front": node("PreviewImage", images=["split", 0]),
    }
    server.succeed(workflow)
    sheet = {"images": workflow["images"], "sheet": node("T2MVCreateContactSheet", images=["images", 0])}
    assert "396 pictures are too many for one sheet" in server.run(sheet).error


def test_a_missing_view_stops_only_what_asks_for_it(server: ComfyServer) -> None:
    workflow = coloured(COLOURS[:2]) | {
        "rig": rig(preset="front and back"),
        "split": node("T2MVSplitViews", images=["images", 0], rig=["rig", 0]),
        "front": node("PreviewImage", images=["split", 0]),
        "back": node("PreviewImage", images=["split", 3]),
    }
    run = server.succeed(workflow)
    assert [colour_of(server, run, name) for name in ("front", "back")] == COLOURS[:2]
    server.forget()
    run = server.run({**workflow, "right": node("PreviewImage", images=["split", 2])})
    assert run.status == "error"
    assert "the rig has no right view, only front 0°, back 180°" in run.error
    shown = _last_outputs(server)
    assert {"front", "back"} <= set(shown)
    assert "right" not in shown


def _last_outputs(server: ComfyServer) -> dict[str, Any]:
    """What the newest run showed, once it is over."""
    deadline = time.monotonic() + 60
    while json.loads(server.get("/queue"))["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    return list(json.loads(server.get("/history")).values())[-1]["outputs"]


def _frames(path: Path) -> list[int]:
    """The strongest of red, green and blue of every frame, as bits, which lossy coding leaves alone."""
    opened = Image.open(path)
    found = []
    for index in range(opened.n_frames):
        opened.seek(index)
        pixel = opened.convert("RGB").getpixel((5, 5))
        found.append(sum(0xFF << shift for shift, part in zip((16, 8, 0), pixel, strict=True) if part > 127))
    return found


def test_a_turntable_goes_around_in_order_and_is_numbered(server: ComfyServer) -> None:
    out = server.base_dir / "output" / "mugs ü"
    table = {"images": ["images", 0], "rig": ["rig", 0], "filename_prefix": "mugs ü/turn"}
    workflow = coloured(COLOURS) | {
        "rig": rig(azimuths="180, 0, 270, 45, 315, 90"),
        "table": node("T2MVCreateTurntable", **table),
        "frames": node("PreviewImage", images=["table", 0]),
    }
    run = server.succeed(workflow)
    shown = run.outputs["table"]
    assert shown["animated"] == [True]
    assert shown["images"] == [{"filename": "turn_00001_.webp", "subfolder": "mugs ü", "type": "output"}]
    order = [COLOURS[i] for i in (1, 3, 5, 0, 2, 4)]  # 0, 45, 90, 180, 270, 315
    assert _frames(out / "turn_00001_.webp") == order
    assert [picture.getpixel((5, 5))[:3] for picture in server.pictures(run, "frames")] == [
        (colour >> 16, colour >> 8 & 255, colour & 255) for colour in order
    ]  # fmt: skip
    carried = Image.open(out / "turn_00001_.webp").getexif()[0x0110]
    assert json.loads(carried.removeprefix("prompt:"))["table"]["class_type"] == "T2MVCreateTurntable"

    table["filename_prefix"] = "mugs ü\\turn"  # as a workflow from Windows has it
    faster = node("T2MVCreateTurntable", **table, frames_per_second=10.0, ping_pong=True)
    server.succeed({**workflow, "table": faster})
    assert _frames(out / "turn_00002_.webp") == order + order[-2:0:-1]
    assert Image.open(out / "turn_00002_.webp").n_frames == 10
    assert sorted(path.name for path in out.iterdir()) == ["turn_00001_.webp", "turn_00002_.webp"]


def test_a_turntable_can_be_shown_without_being_kept(server: ComfyServer) -> None:
    table = node("T2MVCreateTurntable", images=["images", 0], folder="temp", filename_prefix="only_shown")
    run = server.succeed(coloured(COLOURS) | {"table": table})
    (shown,) = run.outputs["table"]["images"]
    assert shown["type"] == "temp"
    assert Image.open(io.BytesIO(server.picture(shown))).n_frames == 6
    assert not list((server.base_dir / "output").glob("**/only_shown*"))


def test_camera_data_are_json_and_comfyuis_own_camera(server: ComfyServer) -> None:
    run = server.succeed(
        {
            "rig": rig(azimuths="0, 90", elevations="0"),
            "data": node("T2MVCreateCameraData", rig=["rig", 0], view=2),
            "json": node("PreviewAny", source=["data", 0]),
            "viewer": node("Preview3D", model_file="", camera_info=["data", 1]),
        },
    )
    views = json.loads(text(run, "json"))["views"]
    assert [view["azimuth_deg"] for view in views] == [0, 90]
    camera = run.outputs["viewer"]["result"][1]
    assert {"position", "target", "zoom", "cameraType"} <= set(camera)
    assert camera["position"]["x"] > 5 > abs(camera["position"]["z"])
    if "quaternion" in camera:  # in today's ComfyUI the mesh keeps its place and size
        assert camera["target"] == {"x": 0, "y": 0, "z": 0}
        assert {"fov", "aspect", "near", "far", "frustum"} <= set(camera)


GOOD: Workflow = coloured(COLOURS) | {
    "rig": rig(),
    "split": node("T2MVSplitViews", images=["images", 0], rig=["rig", 0], set=1),
    "front": node("PreviewImage", images=["split", 0]),
    "table": node("T2MVCreateTurntable", images=["images", 0], rig=["rig", 0]),
    "data": node("T2MVCreateCameraData", rig=["rig", 0], view=1),
    "json": node("PreviewAny", source=["data", 0]),
}
END_OF = {"rig": "json", "split": "front", "table": "table", "data": "json"}


def changed(name: str, field: str, value: Any) -> Workflow:
    """The good workflow with one value changed, and only the output node behind it."""
    ends = {"front", "table", "json"} - {END_OF[name]}
    kept = {key: made for key, made in GOOD.items() if key not in ends}
    return kept | {name: {**GOOD[name], "inputs": {**GOOD[name]["inputs"], field: value}}}


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("rig", "preset", "eight around", "is not available here"),
        ("rig", "views", "7", "no view 7; the rig has views 1 to 6"),
        ("rig", "azimuths", "nan", "must be a number from -360 to 360"),
        ("split", "set", 0, "smaller than min"),
        ("table", "frames_per_second", 0, "smaller than min"),
        ("table", "filename_prefix", "../../outside", "leaves ComfyUI's folder"),
        ("table", "set", -1, "smaller than min"),
        ("data", "view", 0, "smaller than min"),
    ],
)
def test_bad_values_are_refused_before_the_run(
    server: ComfyServer, name: str, field: str, value: Any, words: str
) -> None:
    assert words in server.refusal(changed(name, field, value))


@pytest.mark.parametrize("folder", ["input", "../output"])
def test_another_folder_is_refused(server: ComfyServer, folder: str) -> None:
    """By ComfyUI 0.33 before the run, else by the node."""
    answer = server.refusal_or_error(changed("table", "folder", folder))
    assert "is not available here" in answer or "Value not in list" in answer


@pytest.mark.parametrize(
    ("name", "field", "source", "words"),
    [
        ("rig", "views", node("PrimitiveString", value="9"), "no view 9"),
        ("rig", "preset", node("PrimitiveString", value="eight"), "mismatch"),
        (
            "table",
            "filename_prefix",
            node("PrimitiveString", value="../../linked"),
            "leaves ComfyUI's folder",
        ),
        ("table", "frames_per_second", node("PrimitiveFloat", value=1e9), "from 0.1 to 60"),
        ("split", "set", node("PrimitiveInt", value=2), "set=2 is not in this batch; 6 pictures of 6 views"),
        ("table", "set", node("PrimitiveInt", value=-5), "set=-5 is not in this batch"),
        ("data", "view", node("PrimitiveInt", value=7), "view=7 is not in this rig; it has views 1 to 6"),
        (
            "table",
            "images",
            node("EmptyImage", width=8, height=8, batch_size=5, color=0),
            "5 pictures do not",
        ),
    ],
)
def test_bad_linked_values_are_refused_in_words(
    server: ComfyServer, name: str, field: str, source: dict[str, Any], words: str
) -> None:
    workflow = changed(name, field, ["linked", 0]) | {"linked": source}
    if words == "mismatch":
        assert words in server.refusal(workflow)
        return
    run = server.run(workflow)
    assert run.status == "error"
    assert words in run.error


def test_a_speed_that_is_no_number_passes_comfyuis_range_and_is_refused_in_words(server: ComfyServer) -> None:
    run = server.run(changed("table", "frames_per_second", float("nan")))
    assert run.status == "error"
    assert "frames_per_second=nan must be a number from 0.1 to 60" in run.error
