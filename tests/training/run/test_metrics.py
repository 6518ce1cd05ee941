"""The metrics file and the curves picture."""

import os
from itertools import pairwise

import pytest
from PIL import Image, ImageColor

from training.run.console import TEXTS
from training.run.curves import COLOURS, PANELS, draw_curves, draw_panel
from training.run.metrics import METRICS, append_record, check_names, drop_records, read_metrics


def record(iteration: int) -> dict[str, float]:
    return {**{name: float(iteration) for name in METRICS}, "iteration": iteration}


def is_joint(name: str) -> bool:
    """Whether runs without a joint reward lack it."""
    return name.startswith("joint") or name in ("lambda", "threshold")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.jsonl"
    for iteration in (1, 2, 3):
        append_record(path, record(iteration))
    return path


def test_lines_are_appended_and_read_back(path):
    assert read_metrics(path) == [record(1), record(2), record(3)]


def test_a_line_is_on_the_disk_when_append_record_returns(path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    append_record(path, record(4))
    assert flushed == [path.stat().st_size]  # all of it was handed to the system before


def test_no_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "m.jsonl") == []
    drop_records(tmp_path / "m.jsonl", 3)
    assert not (tmp_path / "m.jsonl").exists()


def test_resuming_drops_iterations_that_are_computed_again(path):
    with path.open("a") as file:
        file.write('{"iteration": 4, "lo')  # killed while writing
    drop_records(path, last_iteration=2)
    append_record(path, record(3))
    assert [r["iteration"] for r in read_metrics(path)] == [1, 2, 3]
    drop_records(path, last_iteration=0)
    assert read_metrics(path) == []


@pytest.mark.parametrize("wrong", [{"speed": 1.0}, {"iteration": 1}, {"speed/redness": 1.0}])
def test_names_are_the_documented_ones(wrong):
    values = wrong if "iteration" in wrong else {**record(1), **wrong}
    with pytest.raises(ValueError, match="unknown or missing"):
        check_names(values)


def test_rewards_by_name_are_known_and_those_of_a_missing_role_may_lack():
    check_names({**record(1), "view_reward_zmv/redness": 0.25})
    view_only = {name: value for name, value in record(2).items() if not is_joint(name)}
    check_names(view_only)
    with pytest.raises(ValueError, match="'advantage_gap'"):
        check_names({name: value for name, value in view_only.items() if name != "advantage_gap"})


def test_the_rewards_of_every_kind_of_trajectory_are_shown():
    rewards = {name for name in METRICS if "_reward_" in name}
    assert len(rewards) == 8
    assert rewards <= {name for series in PANELS.values() for name in series}
    assert rewards <= set(TEXTS)


def test_all_of_many_curves_are_drawn():
    """Flat lines at heights of their own: a column of pixels crosses each."""
    curves = {f"{number}": [float(number)] * 3 for number in range(len(COLOURS) + 2)}
    panel = draw_panel("", 1, curves)
    column = [panel.getpixel((panel.width // 2, y)) for y in range(panel.height)]
    is_line = [pixel in map(ImageColor.getrgb, COLOURS) for pixel in column]
    assert sum(here and not before for before, here in pairwise(is_line)) == len(curves)


def test_curves_are_drawn_from_known_metrics(tmp_path):
    assert {name for series in PANELS.values() for name in series} <= set(METRICS)
    draw_curves([record(1), record(2)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500
        whole = picture.copy()
    # a run without a joint reward: the panels of joint reward, upper right, and lambda stay empty, and the
    # row of the gap is not there
    view_only = [{k: v for k, v in record(i).items() if not is_joint(k)} for i in (1, 2)]
    draw_curves(view_only, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        width, height = picture.width // 2, picture.height // 2
        assert whole.size == (2 * width, 3 * height)
        assert whole.crop((0, 2 * height, width, 3 * height)).getextrema() != ((255, 255),) * 3
        for left, top in ((width, 0), (0, height)):
            empty = (left, top, left + width, top + height)
            assert picture.crop(empty).getextrema() == ((255, 255),) * 3
            assert whole.crop(empty).getextrema() != ((255, 255),) * 3
        for left, top in ((0, 0), (width, height)):
            box = (left, top, left + width, top + height)
            assert picture.crop(box).tobytes() == whole.crop(box).tobytes()
