"""The judge's verdicts from known logits, its refusals and its file."""

from __future__ import annotations

import pytest
import torch

from t2mv_core.toybox.judge import Judge, JudgeLogits, load_judge, save_judge
from t2mv_core.toybox.prompt_lists import PromptSpec

FAMILIES, COLOURS, MATERIALS = ("mug", "car"), ("red", "green", "blue"), ("wooden",)


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(FAMILIES, COLOURS, MATERIALS, 6).eval()


def say(judge, monkeypatch, **logits):
    """Make the judge answer with these logits, one row per picture; all zero where none are given."""
    answers = {name: torch.zeros(6, 4) for name in JudgeLogits._fields} | logits
    monkeypatch.setattr(judge, "forward", lambda pictures: JudgeLogits(**answers))


def test_sets_are_judged_by_mean_log_probability_and_views_one_by_one(judge, monkeypatch):
    # Family: five views lean to "car" by 1, one view says "mug" by 7; the mean log-probability is for "mug".
    family = torch.tensor([[0.0, 1.0]] * 5 + [[7.0, 0.0]])
    colour = torch.tensor([[0.0, 0.0, 2.0]] * 6)
    azimuth = torch.eye(6) * 5
    azimuth[3] = azimuth[2]  # view 3 looks like view 2
    say(judge, monkeypatch, family=family, colour=colour, azimuth=azimuth)
    specs = [PromptSpec("a red mug", "mug", "red")]
    verdict = judge.judge_views(torch.rand(1, 6, 3, 64, 64), specs)
    assert verdict.family.tolist() == [True]
    assert verdict.colour.tolist() == [False]
    assert verdict.azimuth.tolist() == [[True, True, True, False, True, True]]


@pytest.mark.parametrize(
    ("part_colour", "companion_colour", "part", "companion"),
    [("wooden", "green", True, True), ("blue", "red", False, False), (None, None, False, False)],
)
def test_the_views_that_show_a_part_decide_on_it(
    judge, monkeypatch, part_colour, companion_colour, part, companion
):
    # Classes: red, green, blue, then "wooden" for the part and "none" for the companion.
    unsure = [[0.0, 0.0, 0.0, 0.0]] * 5
    say(
        judge,
        monkeypatch,
        part=torch.tensor([*unsure, [0.0, 0.0, 0.0, 3.0]]),
        companion=torch.tensor([*unsure, [0.0, 3.0, 0.0, 1.0]]),
    )
    spec = PromptSpec("", "mug", "red", part_colour, companion_colour)
    verdict = judge.judge_views(torch.rand(1, 6, 3, 64, 64), [spec])
    assert (verdict.part.item(), verdict.companion.item()) == (part, companion)


def test_sets_do_not_influence_each_other(judge, monkeypatch):
    def see_colour(pictures):
        answers = {name: torch.zeros(len(pictures), 6) for name in JudgeLogits._fields}
        return JudgeLogits(**answers | {"colour": pictures.mean(dim=(2, 3))})

    monkeypatch.setattr(judge, "forward", see_colour)
    images = torch.eye(3)[:, None, :, None, None].expand(3, 6, 3, 64, 64)  # a red, a green, a blue set
    specs = [PromptSpec("", "mug", colour) for colour in COLOURS]
    assert judge.judge_views(images, specs).colour.tolist() == [True] * 3


def test_judging_does_not_change_the_judge(judge):
    before = {name: t.clone() for name, t in judge.state_dict().items()}
    judge.train().judge_views(torch.rand(1, 6, 3, 64, 64), [PromptSpec("", "mug", "red")])
    assert all(torch.equal(before[name], t) for name, t in judge.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "spec", "words"),
    [
        ((1, 5, 3, 64, 64), PromptSpec("", "mug", "red"), r"the judge takes \[B, 6, 3, 64, 64\]"),
        ((2, 6, 3, 64, 64), PromptSpec("", "mug", "red"), "for 1 prompts"),
        ((1, 6, 3, 64, 64), PromptSpec("", "tree", "red"), "no family 'tree'; it knows: mug, car"),
        ((1, 6, 3, 64, 64), PromptSpec("", "mug", "teal"), "no colour 'teal'"),
        ((1, 6, 3, 64, 64), PromptSpec("", "mug", "red", "velvet"), "no part colour 'velvet'; it .* wooden"),
        ((1, 6, 3, 64, 64), PromptSpec("", "mug", "red", None, "teal"), "no companion colour 'teal'"),
    ],
)
def test_what_it_cannot_judge_is_refused_in_words(judge, shape, spec, words):
    with pytest.raises(ValueError, match=words):
        judge.judge_views(torch.rand(shape), [spec])


def test_a_saved_judge_gives_the_same_verdicts(judge, tmp_path):
    save_judge(judge, tmp_path / "judge.safetensors")
    loaded = load_judge(tmp_path / "judge.safetensors")
    images = torch.rand(6, 3, 64, 64)
    for answer, again in zip(judge(images), loaded(images), strict=True):
        torch.testing.assert_close(again, answer, atol=2e-2, rtol=0)  # stored in half precision
    assert (loaded.families, loaded.colours, loaded.materials) == (FAMILIES, COLOURS, MATERIALS)
    assert not loaded.training


def test_another_file_is_refused(judge, tmp_path):
    from t2mv_core.formats.safetensors_io import write_safetensors

    write_safetensors({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"architecture": "hyperscore"})
    with pytest.raises(ValueError, match="holds hyperscore, not toybox-judge"):
        load_judge(tmp_path / "x.safetensors")
