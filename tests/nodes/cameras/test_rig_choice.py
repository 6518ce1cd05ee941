"""Presets, own angles and chosen views become a rig, or a sentence."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def choice(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.nodes.cameras.rig_choice")


@pytest.fixture(scope="module")
def cameras(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.t2mv_core.cameras")


@pytest.mark.parametrize(
    ("preset", "azimuths"),
    [
        ("six views (default)", (0, 45, 90, 180, 270, 315)),
        ("four around", (0, 90, 180, 270)),
        ("front and back", (0, 180)),
        ("twelve turntable", tuple(range(0, 360, 30))),
    ],
)
def test_presets_ignore_the_angle_boxes(choice: ModuleType, preset: str, azimuths: tuple[float, ...]) -> None:
    rig = choice.choose_rig("no angles", "20", preset)
    assert rig.azimuths_deg == azimuths
    assert set(rig.elevations_deg) == {0.0}


def test_custom_angles_are_as_before_presets_existed(choice: ModuleType, cameras: ModuleType) -> None:
    expected = cameras.CameraRig((0.0, 30.0), (10.0, 10.0))
    assert choice.choose_rig("0, 30", "10") == expected
    assert choice.choose_rig("0, 30", "10", "custom", "") == expected


def test_linked_inputs_are_unknown_before_the_run(choice: ModuleType) -> None:
    assert choice.choose_rig(None, "0") is None
    assert choice.choose_rig("0", "0", None, "9") is None
    assert choice.choose_rig("0", "0", "custom", None) is None
    assert choice.choose_rig(None, None, "four around").num_views == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("0", "0", "eight", ""), "'eight' is not available here"),
        (("nan", "0"), "must be a number from -360 to 360"),
        (("0, 90", "0", "custom", "3"), "no view 3; the rig has views 1 to 2"),
        (("0, 90", "0", "custom", "0"), "no view 0"),
        (("0, 90", "0", "custom", "-1"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "1e9"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "1000000000"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "nan"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "²"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "front, 1"), "names a view twice"),
        (("0, 90", "0", "custom", "back"), "no back view .azimuth 180°.; it has front 0°, right 90°"),
        (("0, 90", "0", "custom", "1 " * 25), "25 entries"),
        (("0, 90", "0", "custom", "x" * 100_000), "'x{40}' is neither"),
    ],
)
def test_impossible_choices_are_refused_in_words(
    choice: ModuleType, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        choice.choose_rig(*arguments)


def test_a_name_means_every_view_at_that_azimuth(choice: ModuleType, cameras: ModuleType) -> None:
    rig = cameras.CameraRig((0, 90, 360, 90), (0, 0, 20, -20))
    assert choice.read_views("Right, FRONT", rig) == [1, 3, 0, 2]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_numbers_names_and_separators_choose_what_was_written(choice: ModuleType, data: Any) -> None:
    sides = [("front", 0), ("front-right", 45), ("right", 90), ("back-right", 135),
             ("back", 180), ("back-left", 225), ("left", 270), ("front-left", 315)]  # fmt: skip
    shuffled = data.draw(st.permutations(sides))
    wanted = data.draw(st.lists(st.integers(0, 7), unique=True, max_size=8))
    words = [shuffled[i][0] if data.draw(st.booleans()) else str(i + 1) for i in wanted]
    text = data.draw(st.sampled_from([", ", ",", ";", "  ", "\n", " , "])).join(words)
    azimuths = ", ".join(str(angle) for _, angle in shuffled)
    rig = choice.choose_rig(azimuths, "0", "custom", text)
    assert rig.azimuths_deg == tuple(float(shuffled[i][1]) for i in (wanted or range(8)))


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_views_of_the_rig_or_a_sentence(choice: ModuleType, text: str) -> None:
    try:
        rig = choice.choose_rig("", "", "six views (default)", text)
    except ValueError as refusal:
        said = str(refusal)
    else:
        said = "views" if set(rig.azimuths_deg) <= {0, 45, 90, 180, 270, 315} else ""
    assert said.startswith("views")


@given(st.lists(st.floats(-360, 360), min_size=1, max_size=24), st.sampled_from([",", ";", " ", ", "]))
@settings(max_examples=100, deadline=None)
def test_written_angles_are_read_back(choice: ModuleType, angles: list[float], separator: str) -> None:
    rig = choice.choose_rig(separator.join(map(repr, angles)), "0")
    assert rig.azimuths_deg == tuple(angles)


@given(st.text(max_size=60), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_angle_text_is_a_possible_rig_or_a_sentence(
    choice: ModuleType, azimuths: str, elevations: str
) -> None:
    try:
        rig = choice.choose_rig(azimuths, elevations)
    except ValueError:
        return
    assert 1 <= rig.num_views <= 24
