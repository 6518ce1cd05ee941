"""Best of N in a real ComfyUI, on the bundled model: what is kept, and that it can be had again."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.comfyui.workflows import TOYBOX, node

if TYPE_CHECKING:
    from conftest import ComfyServer

VIEW_REWARD = {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_clip"}}
BOTH_REWARDS = {"class_type": "T2MVLoadReward",
                "inputs": {"reward": "toybox_hyperscore", "rewards": ["2", 0]}}  # fmt: skip
SAMPLING = {"steps": 2, "guidance": 2.0, "view_scale": 1.0}
ZIGZAG = {"zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0, "inverse_view_scale": 1.0}
LINES = "a red mug\na yellow chair"


def best(**changes: Any) -> dict[str, Any]:
    """The node: two lines, three candidates each, the best two kept."""
    inputs = {"model": ["1", 0], "rewards": ["3", 0], "prompts": LINES, "seed": 5, "candidates": 3, "keep": 2,
              "rank_by": "joint reward", "sampler": "standard", **SAMPLING, **ZIGZAG}  # fmt: skip
    return {"class_type": "T2MVSampleBest", "inputs": inputs | changes}


def preview(source: list[Any]) -> dict[str, Any]:
    return {"class_type": "PreviewImage", "inputs": {"images": source}}


def text(source: list[Any]) -> dict[str, Any]:
    return {"class_type": "PreviewAny", "inputs": {"source": source}}


@pytest.mark.parametrize("sampler", ["standard", "zmv"])
def test_what_is_kept_is_the_best_and_comes_again_with_its_seed(server: ComfyServer, sampler: str) -> None:
    workflow = {
        "1": TOYBOX, "2": VIEW_REWARD, "3": BOTH_REWARDS, "4": best(sampler=sampler),
        "5": preview(["4", 0]), "6": text(["4", 2]), "7": text(["4", 3]), "8": text(["4", 4]),
    }  # fmt: skip
    run = server.succeed(workflow)
    evaluations = 2 if sampler == "standard" else 4
    *ticks, last = [(value, total) for node, value, total in run.progress if node == "4"]
    total = 6 * evaluations + 12  # six sets, two rewards each
    assert ticks[: 6 * evaluations] == [(i, total) for i in range(1, 6 * evaluations + 1)]
    # Scores come without a preview: since 2026 ComfyUI leaves out reports within 0.1 s, but not the last.
    assert ticks == sorted(set(ticks))
    assert ticks[-1] == (total, total)
    # The page leaves the last preview on the node: it has to be the ranking, pixel for pixel in size.
    assert last == (1, 1)
    (ranking,) = server.pictures(run, "4")
    assert Image.open(io.BytesIO(run.previews[-1])).size == ranking.size
    assert len(run.previews) >= 6 * evaluations
    seeds = [int(seed) for seed in run.outputs["6"]["text"]]
    scores = [float(score) for score in run.outputs["7"]["text"]]
    assert {*seeds[:2]} < {5, 6, 7}  # the first line's candidates
    assert {*seeds[2:]} < {8, 9, 10}
    assert scores[0] >= scores[1]
    assert scores[2] >= scores[3]
    kept = server.pictures(run, "5")
    assert len(kept) == 4 * 6
    assert run.outputs["8"]["text"][0].count("seed") == 6  # the report ranks what was not kept as well

    # Every candidate again, by a sampler node alone with its seed: pictures and scores.
    name = "Standard" if sampler == "standard" else "ZMV"
    zigzag = {} if sampler == "standard" else ZIGZAG
    again: dict[int, tuple[list[np.ndarray], float]] = {}
    for seed in range(5, 11):
        prompt = LINES.splitlines()[seed > 7]
        drawn = {"model": ["1", 0], "prompt": prompt, "seed": seed, **SAMPLING, **zigzag}
        score = {"rewards": ["3", 0], "images": ["4", 0], "prompts": prompt}
        alone = server.succeed({
            "1": TOYBOX, "2": VIEW_REWARD, "3": BOTH_REWARDS,
            "4": {"class_type": f"T2MVSample{name}", "inputs": drawn},
            "5": preview(["4", 0]),
            "6": {"class_type": "T2MVScoreViews", "inputs": score},
            "7": text(["6", 3]),
        })  # fmt: skip
        (facts,) = json.loads(alone.outputs["7"]["text"][0])
        again[seed] = server.pictures(alone, "5"), facts["joint_scores"]["toybox_hyperscore"]
    for line, candidates in enumerate((range(5, 8), range(8, 11))):
        order = sorted(candidates, key=lambda seed: -again[seed][1])[:2]
        assert seeds[2 * line : 2 * line + 2] == order
        assert scores[2 * line : 2 * line + 2] == pytest.approx([again[seed][1] for seed in order], abs=1e-5)
        for place, seed in enumerate(order):
            start = (2 * line + place) * 6
            assert all(
                np.array_equal(one, other)
                for one, other in zip(kept[start : start + 6], again[seed][0], strict=True)
            )


def test_the_ranking_and_the_scores_are_drawn(server: ComfyServer) -> None:
    score = {"rewards": ["3", 0], "images": ["4", 0], "prompts": "a red mug\na red mug"}
    run = server.succeed({
        "1": TOYBOX, "2": VIEW_REWARD, "3": BOTH_REWARDS,
        "4": best(prompts="a red mug", seed=20),
        "5": preview(["4", 5]),
        "6": {"class_type": "T2MVScoreViews", "inputs": score},
        "7": preview(["6", 5]),
    })  # fmt: skip
    for ranked, output, rows in (("4", "5", 3), ("6", "7", 2)):
        (sheet,), (given,) = server.pictures(run, ranked), server.pictures(run, output)
        assert np.array_equal(sheet, given)
        # A row: 18 px of title, 16 px of scores, six views of 128 px.
        assert sheet.height == rows * (18 + 16 + 128)
        assert sheet.width >= 6 * 128
        pixels = np.asarray(sheet)
        for row in range(rows):
            top = row * (18 + 16 + 128)
            assert pixels[top : top + 18].min() < 128  # the title
            for view in range(6):
                label = pixels[top + 18 : top + 34, view * 128 : (view + 1) * 128]
                assert label.min() < 128


def test_cameras_that_a_reward_cannot_score_are_refused_at_once(
    server: ComfyServer,
) -> None:
    workflow = {
        "1": TOYBOX, "3": BOTH_REWARDS | {"inputs": {"reward": "geometry"}},
        "rig": node("T2MVCreateCameraRig", azimuths="0", elevations="0", preset="front and back"),
        "4": best(rig=["rig", 0]),
    }  # fmt: skip
    assert "see no surface in common" in server.refusal_or_error(workflow)


def test_cancel_while_scoring(server: ComfyServer) -> None:
    """A cancel while sampling is test_runs.py's."""
    sampling_ticks = 6 * 2

    def cancel(num_reports: int) -> None:
        if num_reports == sampling_ticks + 2:
            server.post("/interrupt", {})

    workflow = {"1": TOYBOX, "2": VIEW_REWARD, "3": BOTH_REWARDS, "4": best(seed=100)}
    run = server.run(workflow, on_progress=cancel)
    assert run.status == "interrupted"
    assert len(run.progress) < sampling_ticks + 12
