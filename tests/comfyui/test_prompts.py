"""Prompts and pictures as people bring them, in a real ComfyUI: what is read, and what nodes say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.comfyui.workflows import TOYBOX, load, node

if TYPE_CHECKING:
    from conftest import ComfyServer, Run

Workflow = dict[str, dict[str, Any]]
PLAIN, SYNTAX = "a red mug", "a (red:1.5) mug BREAK"
READ_AS_WORDS = "T2MV reads as plain words, unlike other programs: “(red:1.5)”, “BREAK”"
NUMBERS = {"seed": 1, "steps": 1, "guidance": 2.0, "view_scale": 1.0}
ZIGZAG = {"zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0, "inverse_view_scale": 1.0}
BEST = {"candidates": 1, "keep": 1, "rank_by": "view reward (mean)", "sampler": "standard"}


REWARD = node("T2MVLoadReward", reward="toybox_clip")


def pixels(server: ComfyServer, run: Run, name: str) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in server.pictures(run, name)])


def mean_score(run: Run, name: str) -> float:
    return float(run.outputs[name]["text"][0].split("mean ")[1].split()[0])


def pictures(count: int, alpha: int | None = None) -> Workflow:
    """Nodes of red pictures, with an alpha of 0 or 1 if wished; the batch is the output of "images"."""
    red = node("EmptyImage", width=64, height=64, batch_size=count, color=0xFF0000)
    if alpha is None:
        return {"images": red}
    white = node("EmptyImage", width=64, height=64, batch_size=count, color=0xFFFFFF * (1 - alpha))
    mask = node("ImageToMask", image=["white", 0], channel="red")  # white is transparent
    joined = node("JoinImageWithAlpha", image=["red", 0], alpha=["mask", 0])
    return {"red": red, "white": white, "mask": mask, "images": joined}


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("T2MVSampleStandard", "prompt", {}),
        ("T2MVSampleBest", "prompts", {"rewards": ["2", 0], **BEST, **ZIGZAG}),
    ],
)
def test_samplers_name_what_they_do_not_read(server: ComfyServer, kind: str, name: str, more: Any) -> None:
    def texts(prompt: str, negative_prompt: str = "") -> list[str]:
        inputs = NUMBERS | more | {name: prompt, "negative_prompt": negative_prompt}
        workflow = {"1": TOYBOX, "2": REWARD, "3": node(kind, model=["1", 0], **inputs)}
        workflow["4"] = node("PreviewImage", images=["3", 0])
        return server.succeed(workflow).texts.get("3", [])

    # The toybox reads 22 tokens.
    too_long = f"{PLAIN} on a table " + "with a very very very long handle " * 3 + "and with wooden legs"
    assert not any("words" in shown or "tokens" in shown for shown in texts(PLAIN + " (with milk)"))
    assert READ_AS_WORDS in texts(SYNTAX)[-1]
    (shown,) = [line for line in texts(too_long)[-1].splitlines() if "tokens" in line]
    assert shown.startswith("The text encoders read 22 tokens of a prompt; they do not read “")
    assert "wooden legs" in shown
    assert "“(worst quality:1.4)” (in 1 of 2 prompts)" in texts(PLAIN, "(worst quality:1.4)")[-1]
    # With nothing to say, the text of the run before goes away.
    assert not any("words" in shown for shown in texts(PLAIN))


def test_a_negative_prompt_of_blanks_is_none(server: ComfyServer) -> None:
    workflow: Workflow = {"1": load("toybox teacher", precision="auto")}
    for name, negative_prompt in (("none", ""), ("blank", " \n\u00a0"), ("some", "blue")):
        inputs = NUMBERS | {"prompt": PLAIN, "negative_prompt": negative_prompt}
        workflow[name] = node("T2MVSampleStandard", model=["1", 0], **inputs)
        workflow[f"{name} shown"] = node("PreviewImage", images=[name, 0])
    run = server.succeed(workflow)
    none, blank, some = (pixels(server, run, f"{name} shown") for name in ("none", "blank", "some"))
    assert np.array_equal(none, blank)
    assert not np.array_equal(none, some)


def test_scores_say_where_counts_divide_by_chance(server: ComfyServer) -> None:
    def score(count: int, prompts: str, **more: Any) -> Workflow:
        inputs = {"rewards": ["1", 0], "images": ["images", 0], "prompts": prompts, **more}
        return pictures(count) | {"1": REWARD, "2": node("T2MVScoreViews", **inputs)}

    rig = {"rig": node("T2MVCreateCameraRig", azimuths="0, 45, 90, 180, 270, 315", elevations="0")}
    chance = "12 pictures for 3 prompt lines are scored as sets of 4 views, but could be sets of 6; connect"
    run = server.succeed(score(12, "a\nb\nc"))
    assert chance in run.texts["2"][-1]
    assert chance in run.outputs["2"]["text"][0]
    for count, prompts in ((12, "a\nb"), (8, "a\nb"), (6, "a")):  # as it must be, or no other way
        assert "could be" not in server.succeed(score(count, prompts)).texts["2"][-1]
    run = server.run(score(12, "a\nb\nc", rig=["rig", 0]) | rig)
    assert "12 pictures are not one set of the rig's 6 views for each of 3 prompt lines" in run.error
    assert "could be" not in server.succeed(score(12, "a\nb", rig=["rig", 0]) | rig).texts["2"][-1]
    assert READ_AS_WORDS in server.succeed(score(6, SYNTAX)).texts["2"][-1]
    run = server.succeed(score(6, "a red mug" + " with a very very long handle" * 6 + " and a lid"))
    assert "toybox_clip reads 22 tokens of a prompt; it does not read “" in run.outputs["2"]["text"][0]
    assert "and a lid”." in run.texts["2"][-1]


def test_views_say_where_counts_divide_by_chance(server: ComfyServer) -> None:
    rig = node("T2MVCreateCameraRig", azimuths="0, 90, 180, 270", elevations="0")
    labelled = {"images": ["images", 0], "row_labels": "a\nb\nc\n"}
    workflow = pictures(12) | {
        "rig": rig,
        "sheet": node("T2MVCreateContactSheet", **labelled),
        "sheet of 4": node("T2MVCreateContactSheet", **labelled, rig=["rig", 0]),
        "table": node("T2MVCreateTurntable", images=["images", 0], folder="temp"),
        "table of 4": node("T2MVCreateTurntable", images=["images", 0], folder="temp", rig=["rig", 0]),
        "split": node("T2MVSplitViews", images=["images", 0]),
        "front": node("PreviewImage", images=["split", 0]),
    }
    texts = server.succeed(workflow).texts
    assert texts["sheet"][0].startswith("3 row labels for 2 rows of 6 views: the last ones are not drawn.")
    for name in ("table", "split"):
        assert texts[name][0].startswith("12 pictures are taken for 2 sets of the six default views")
    assert not {"sheet of 4", "table of 4"} & set(texts)
    one_set = pictures(6) | {"split": workflow["split"], "front": workflow["front"]}
    assert not any(shown.strip() for shown in server.succeed(one_set).texts.get("split", []))


def test_what_is_transparent_is_grey_wherever_pictures_come_in(server: ComfyServer) -> None:
    workflow = pictures(6, alpha=0) | {
        "split": node("T2MVSplitViews", images=["images", 0]),
        "front": node("PreviewImage", images=["split", 0]),
        "table": node("T2MVCreateTurntable", images=["images", 0], folder="temp"),
        "frames": node("PreviewImage", images=["table", 0]),
        "sheet": node("T2MVCreateContactSheet", images=["images", 0]),
        "1": REWARD,
        "score": node("T2MVScoreViews", rewards=["1", 0], images=["images", 0], prompts=PLAIN),
        "grey": node("EmptyImage", width=64, height=64, batch_size=6, color=0x808080),
        "score grey": node("T2MVScoreViews", rewards=["1", 0], images=["grey", 0], prompts=PLAIN),
    }
    run = server.succeed(workflow)
    for name in ("front", "frames", "sheet"):
        middle = pixels(server, run, name)[0, -30, 30, :3]
        assert abs(middle.astype(int) - 128).max() <= 1, name
    score, grey = mean_score(run, "score"), mean_score(run, "score grey")
    red = pictures(6, alpha=1) | {"1": REWARD, "score": workflow["score"]}
    # Half is not 128 / 255.
    assert abs(score - grey) < 0.003 < abs(mean_score(server.succeed(red), "score") - grey)
