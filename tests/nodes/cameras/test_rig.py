"""Presets, angles and chosen views become a rig or a sentence; a rig becomes text and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from t2mv_pack.nodes.cameras import rig as rigs
from t2mv_pack.t2mv_core import cameras


@pytest.mark.parametrize(
    ("preset", "azimuths"),
    [
        ("six views (default)", (0, 45, 90, 180, 270, 315)),
        ("four around", (0, 90, 180, 270)),
        ("front and back", (0, 180)),
        ("twelve turntable", tuple(range(0, 360, 30))),
    ],
)
def test_presets_ignore_the_angle_boxes(preset: str, azimuths: tuple[float, ...]) -> None:
    rig = rigs.choose_rig("no angles", "20", preset)
    assert rig.azimuths_deg == azimuths
    assert set(rig.elevations_deg) == {0.0}


def test_custom_angles_are_as_before_presets_existed() -> None:
    expected = cameras.CameraRig((0.0, 30.0), (10.0, 10.0))
    assert rigs.choose_rig("0, 30", "10") == expected
    assert rigs.choose_rig("0, 30", "10", "custom", "") == expected


def test_linked_inputs_are_unknown_before_the_run() -> None:
    assert rigs.choose_rig(None, "0") is None
    assert rigs.choose_rig("0", "0", None, "9") is None
    assert rigs.choose_rig("0", "0", "custom", None) is None
    assert rigs.choose_rig(None, None, "four around").num_views == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("0", "0", "eight", ""), "'eight' is not available here"),
        (("0, 90", "0", "custom", "3"), "no view 3; the rig has views 1 to 2"),
        (("0, 90", "0", "custom", "0"), "no view 0"),
        (("0, 90", "0", "custom", "²"), "neither a number nor a name"),
        (("0, 90", "0", "custom", "front, 1"), "names a view twice"),
        (("0, 90", "0", "custom", "back"), "no back view .azimuth 180°.; it has front 0°, right 90°"),
        (("0, 90", "0", "custom", "1 " * 25), "25 entries"),
        (("0, 90", "0", "custom", "x" * 100_000), "'x{40}' is neither"),
    ],
)
def test_impossible_choices_are_refused_in_words(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rigs.choose_rig(*arguments)


def test_a_name_means_every_view_at_that_azimuth() -> None:
    rig = cameras.CameraRig((0, 90, 360, 90), (0, 0, 20, -20))
    assert rigs.read_views("Right, FRONT", rig) == [1, 3, 0, 2]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_numbers_names_and_separators_choose_what_was_written(data: Any) -> None:
    sides = [("front", 0), ("front-right", 45), ("right", 90), ("back-right", 135),
             ("back", 180), ("back-left", 225), ("left", 270), ("front-left", 315)]  # fmt: skip
    shuffled = data.draw(st.permutations(sides))
    wanted = data.draw(st.lists(st.integers(0, 7), unique=True, max_size=8))
    words = [shuffled[i][0] if data.draw(st.booleans()) else str(i + 1) for i in wanted]
    text = data.draw(st.sampled_from([", ", ",", ";", "  ", "\n", " , "])).join(words)
    azimuths = ", ".join(str(angle) for _, angle in shuffled)
    rig = rigs.choose_rig(azimuths, "0", "custom", text)
    assert rig.azimuths_deg == tuple(float(shuffled[i][1]) for i in (wanted or range(8)))


def words_of(*words: str) -> st.SearchStrategy[str]:
    """Texts of these words, which random letters would hardly ever form."""
    return st.lists(st.sampled_from(words), max_size=3).map(", ".join)


@given(st.text(max_size=60) | words_of("1", "2", "6", "7", "front", "Right", "back-right", "", "²", "nan"))
@settings(max_examples=200, deadline=None)
def test_any_text_is_views_of_the_rig_or_a_sentence(text: str) -> None:
    try:
        rig = rigs.choose_rig("", "", "six views (default)", text)
    except ValueError as refusal:
        said = str(refusal)
    else:
        said = "views" if set(rig.azimuths_deg) <= {0, 45, 90, 180, 270, 315} else ""
        assert len(set(rig.azimuths_deg)) == rig.num_views > 0
    assert said.startswith("views")


@given(st.lists(st.floats(-360, 360), min_size=1, max_size=24), st.sampled_from([",", ";", " ", ", "]))
@settings(max_examples=100, deadline=None)
def test_written_angles_are_read_back(angles: list[float], separator: str) -> None:
    rig = rigs.choose_rig(separator.join(map(repr, angles)), "0")
    assert rig.azimuths_deg == tuple(angles)


ANGLES = words_of("0", "-0", "30.5", "-90", "360", "+45", "1e2", "91", "361", "1e9", "nan", "inf", "１", "")


@given(st.text(max_size=60) | ANGLES, st.text(max_size=20) | ANGLES | st.just("0"))
@settings(max_examples=200, deadline=None)
def test_any_angle_text_is_a_possible_rig_or_a_sentence(azimuths: str, elevations: str) -> None:
    try:
        rig = rigs.choose_rig(azimuths, elevations)
    except ValueError:
        return
    assert 1 <= rig.num_views <= 24
    assert all(-360 <= angle <= 360 for angle in rig.azimuths_deg)
    assert all(-90 <= angle <= 90 for angle in rig.elevations_deg)


def test_one_elevation_serves_all_views() -> None:
    assert rigs.read_rig_angles("0, 90;180 -45", "10") == ((0.0, 90.0, 180.0, -45.0), (10.0,) * 4)


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
def test_impossible_rigs_are_refused(azimuths: str, elevations: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rigs.read_rig_angles(azimuths, elevations)


def test_trained_views_give_no_warning() -> None:
    assert rigs.warnings(cameras.DEFAULT_RIG) == []
    assert rigs.warnings(cameras.CameraRig((-45, 360, -90), (0, 0, 0))) == []  # 315, 0, 270
    assert rigs.to_text(cameras.CameraRig((0, 180), (0, 0))) == "2 views: 1 front 0°, 2 back 180°"


def test_new_angles_are_named_once() -> None:
    azimuths, elevations = rigs.warnings(cameras.CameraRig((0, 30, 30, 135), (0, 10, 10, -5.5)))
    assert "azimuths 30, 135 are new" in azimuths
    assert "0, 45, 90, 180, 270, 315 at elevation 0" in azimuths
    assert "elevations 10, -5.5 are new" in elevations


def test_more_views_than_trained_are_said() -> None:
    _, many = rigs.warnings(cameras.CameraRig(tuple(30.0 * i for i in range(12)), (0.0,) * 12))
    assert "12 views at once" in many


def test_json_holds_every_view_and_projects_as_the_convention_says() -> None:
    rig = cameras.CameraRig((0, 90, 30), (0, 0, 40))
    told = json.loads(rigs.to_json(rig))
    assert "z up" in told["convention"]
    assert [view["view"] for view in told["views"]] == [1, 2, 3]
    assert [view["label"] for view in told["views"]] == ["front 0°", "right 90°", "30°/+40°"]
    assert told["views"][2]["elevation_deg"] == 40
    assert told["views"][0]["projection"] == {"type": "orthographic", "half_width": 0.55}
    # By hand: at (0, -1.8, 0), right +x, up +z, backwards -y; at (1.8, 0, 0), right +y, up +z, backwards +x.
    assert told["views"][0]["camera_to_world"] == [[1, 0, 0, 0], [0, 0, -1, -1.8], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert told["views"][1]["camera_to_world"] == [[0, 0, 1, 1.8], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert all(view["distance"] == 1.8 for view in told["views"])
    assert "-0.0" not in rigs.to_json(rig)
