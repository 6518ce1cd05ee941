"""Values from a workflow are read, or refused with a sentence."""

from __future__ import annotations

from types import ModuleType

import pytest


def test_each_line_is_a_prompt(checks: ModuleType) -> None:
    assert checks.read_prompts("a red mug\n\n  a blue chair ") == ["a red mug", "a blue chair"]


def test_linked_inputs_pass_before_the_run(checks: ModuleType) -> None:
    assert checks.read_prompts(None) == []
    assert checks.read_rig_angles(None, "0") == ((), ())
    checks.check_number("guidance", None, 0, 1)
    checks.check_choice("model", None, [], "")


@pytest.mark.parametrize(
    ("text", "words"),
    [(" \n ", "empty"), ("a\n" * 17, "17 prompts"), ("x" * 10_000, "10000 characters")],
)
def test_unusable_prompts_are_refused(checks: ModuleType, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checks.read_prompts(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 30.1, 10**4000, "a lot", [1], True, {}])
def test_numbers_out_of_range_are_refused_nan_included(checks: ModuleType, value: object) -> None:
    with pytest.raises(ValueError, match="guidance=.* must be a number from 0 to 30"):
        checks.check_number("guidance", value, 0, 30)


@pytest.mark.parametrize("value", [0, 101, 2.0, float("nan"), float("inf"), True, "4", [4], 10**9])
def test_what_is_no_whole_number_in_range_is_refused(checks: ModuleType, value: object) -> None:
    checks.check_integer("steps", 4, 1, 100)
    checks.check_integer("steps", None, 1, 100)
    with pytest.raises(ValueError, match="steps=.* must be a whole number from 1 to 100"):
        checks.check_integer("steps", value, 1, 100)


@pytest.mark.parametrize("value", [3, True, ["a"], float("nan"), {"a": 1}])
def test_what_is_no_text_is_refused(checks: ModuleType, value: object) -> None:
    with pytest.raises(ValueError, match="negative_prompt=.* must be a text"):
        checks.check_text("negative_prompt", value)
    with pytest.raises(ValueError, match="The prompt must be a text, one object per line"):
        checks.read_prompts(value)


def test_a_long_text_is_refused(checks: ModuleType) -> None:
    checks.check_text("negative_prompt", "x" * 2000)
    with pytest.raises(ValueError, match="negative_prompt has 2001 characters"):
        checks.check_text("negative_prompt", "x" * 2001)


def test_choices_outside_the_list_are_refused(checks: ModuleType) -> None:
    with pytest.raises(
        ValueError, match=r"'\.\./secret' is not available here \(available: 'a'\)\. Do this\."
    ):
        checks.check_choice("model", "../secret", ["a"], "Do this.")


def test_one_elevation_serves_all_views(checks: ModuleType) -> None:
    assert checks.read_rig_angles("0, 90;180 -45", "10") == ((0.0, 90.0, 180.0, -45.0), (10.0,) * 4)


@pytest.mark.parametrize(
    ("azimuths", "elevations", "words"),
    [
        ("", "0", "holds 0 angles"),
        ("0 " * 25, "0", "holds 25 angles"),
        ("0, front", "0", "'front' is not a number"),
        ("nan", "0", "must be a number from -360 to 360"),
        ("1e9", "0", "must be a number from -360 to 360"),
        ("0, 90", "91", "must be a number from -90 to 90"),
        ("0, 90, 180", "0, 0", "3 azimuths but 2 elevations"),
    ],
)
def test_impossible_rigs_are_refused(checks: ModuleType, azimuths: str, elevations: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        checks.read_rig_angles(azimuths, elevations)


def test_first_problem_gives_the_sentence_and_nothing_else(checks: ModuleType) -> None:
    assert checks.first_problem(lambda: None) is True
    assert checks.first_problem(lambda: None, lambda: checks.read_prompts("")).startswith(
        "The prompt is empty"
    )
