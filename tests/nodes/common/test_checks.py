"""Values from a workflow are read, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from t2mv_pack.nodes.common import checks
from t2mv_pack.nodes.train import settings


def test_each_line_is_a_prompt() -> None:
    assert checks.read_prompts("a red mug\n\n  a blue chair ") == ["a red mug", "a blue chair"]


def test_a_box_and_a_file_have_the_same_lines(tmp_path: Path) -> None:
    from training.data.prompts import load_prompts

    text = "a\u00a0red\u2028mug\r\n\u200b\n\ufeffa blue\x0bcar\x85\ra “wood\u00aden” boat\x0c"
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    expected = ["a red mug", "a blue car", "a “wooden” boat"]
    for read in (checks.read_prompts, settings.read_training_prompts):
        assert read(text) == expected
    assert load_prompts(str(tmp_path / "prompts.txt")) == expected


def test_linked_inputs_pass_before_the_run() -> None:
    assert checks.read_prompts(None) == []
    checks.check_number("guidance", None, 0, 1)
    checks.check_choice("model", None, [], "")


def test_a_path_is_found_as_another_system_writes_it() -> None:
    listed = ["a/b.safetensors", "c\\d.safetensors", "e.safetensors"]
    assert checks.find_choice("a\\b.safetensors", listed) == "a/b.safetensors"
    assert checks.find_choice("c/d.safetensors", listed) == "c\\d.safetensors"
    assert checks.find_choice("e.safetensors", listed) == "e.safetensors"
    assert checks.find_choice("a\\b", ["a/b", "a\\b"]) == "a\\b"  # a name on Linux may hold one
    for foreign in ("..\\e.safetensors", "C:\\a\\b.safetensors", "b.safetensors", {"a": 1}, 3):
        assert checks.find_choice(foreign, listed) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n ", "empty"),
        ("a\n" * 17, "17 prompts"),
        ("x" * 10_000, "10000 characters"),
        ("a \ud83d", "half a character"),
    ],
)
def test_unusable_prompts_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checks.read_prompts(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 30.1, 10**4000, "a lot", [1], True, {}])
def test_numbers_out_of_range_are_refused_nan_included(value: object) -> None:
    with pytest.raises(ValueError, match="guidance=.* must be a number from 0 to 30"):
        checks.check_number("guidance", value, 0, 30)


@pytest.mark.parametrize("value", [0, 101, 2.0, float("nan"), float("inf"), True, "4", [4], 10**9])
def test_what_is_no_whole_number_in_range_is_refused(value: object) -> None:
    checks.check_integer("steps", 4, 1, 100)
    checks.check_integer("steps", None, 1, 100)
    with pytest.raises(ValueError, match="steps=.* must be a whole number from 1 to 100"):
        checks.check_integer("steps", value, 1, 100)


@pytest.mark.parametrize("value", [3, True, ["a"], float("nan"), {"a": 1}])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="negative_prompt=.* must be a text"):
        checks.check_text("negative_prompt", value)
    with pytest.raises(ValueError, match="The prompt must be a text, one object per line"):
        checks.read_prompts(value)


def test_a_long_text_is_refused() -> None:
    checks.check_text("negative_prompt", "x" * 2000)
    with pytest.raises(ValueError, match="negative_prompt has 2001 characters"):
        checks.check_text("negative_prompt", "x" * 2001)


def test_choices_outside_the_list_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'\.\./secret' is not available here \(available: 'a'\)\. Do this\."
    ):
        checks.check_choice("model", "../secret", ["a"], "Do this.")


def test_a_field_checks_what_its_widget_shows() -> None:
    fields = [
        checks.Field("steps", 4, "", 1, 100),
        checks.Field("guidance", 7.0, "", high=30),
        checks.Field("resume", True, ""),
        checks.Field("name", "a", ""),
        checks.Field("file", None, "", choices=lambda: ["a", "b"], remedy="Put it there."),
    ]
    checks.check_fields(fields, {"steps": 100, "guidance": 0.0, "resume": False, "name": "b", "file": "b"})
    checks.check_fields(fields, dict.fromkeys(("steps", "guidance", "resume", "name", "file")))  # linked
    for name, value, words in (
        ("steps", 0, "steps=0 must be a whole number from 1 to 100"),
        ("guidance", 30.1, "guidance=30.1 must be a number from 0 to 30"),
        ("resume", 1, "resume=1 must be true or false"),
        ("name", 5, "name=5 must be a text"),
        ("file", "c", r"file='c' is not available here \(available: 'a', 'b'\). Put it there."),
    ):
        with pytest.raises(ValueError, match=words):
            checks.check_fields(fields, {name: value})


def test_a_number_for_the_models_own_passes_beside_the_range() -> None:
    steps = checks.Field("steps", 0, "", 1, 100, own=0)
    scale = checks.Field("inverse_view_scale", -1.0, "", high=10, own=-1)
    checks.check_fields([steps, scale], {"steps": 0, "inverse_view_scale": -1.0})
    checks.check_fields([steps, scale], {"steps": 1, "inverse_view_scale": 0.0})
    for name, value, words in (
        ("steps", -1, "steps=-1 must be a whole number from 1 to 100, or 0 for the model's own."),
        ("steps", False, "steps=False must be a whole number from 1 to 100, or 0"),
        ("steps", 0.0, "steps=0.0 must be a whole number"),
        ("inverse_view_scale", -0.5, "=-0.5 must be a number from 0 to 10, or -1 for the model's own."),
        ("inverse_view_scale", float("nan"), "=nan must be a number from 0 to 10, or -1"),
    ):
        with pytest.raises(ValueError, match=words):
            checks.check_fields([steps, scale], {name: value})


def test_first_problem_gives_the_sentence_and_nothing_else() -> None:
    assert checks.first_problem(lambda: None) is True
    assert checks.first_problem(lambda: None, lambda: checks.read_prompts("")).startswith(
        "The prompt is empty"
    )
