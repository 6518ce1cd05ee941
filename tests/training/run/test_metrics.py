"""The metrics file and the curves picture."""

import pytest
from PIL import Image

from training.run.curves import PANELS, draw_curves
from training.run.metrics import METRICS, MetricsLog, read_metrics


def record(iteration: int) -> dict[str, float]:
    return {**{name: float(iteration) for name in METRICS}, "iteration": iteration}


def is_joint(name: str) -> bool:
    """Whether runs without a joint reward lack it."""
    return name.startswith("joint_reward") or name == "threshold"


def test_lines_are_appended_and_read_back(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for iteration in (1, 2, 3):
        log.append(record(iteration))
    assert read_metrics(log.path) == [record(1), record(2), record(3)]
    assert log.means(2)["loss"] == 2.5


def test_means_of_an_empty_file_are_empty(tmp_path):
    assert MetricsLog(tmp_path / "m.jsonl").means(5) == {}


def test_resuming_drops_iterations_that_are_computed_again(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for iteration in (1, 2, 3):
        log.append(record(iteration))
    with log.path.open("a") as file:
        file.write('{"iteration": 4, "lo')  # killed while writing
    log = MetricsLog(log.path, last_iteration=2)
    log.append(record(3))
    assert [r["iteration"] for r in read_metrics(log.path)] == [1, 2, 3]


@pytest.mark.parametrize("wrong", [{"speed": 1.0}, {"iteration": 1}, {"speed/redness": 1.0}])
def test_names_are_the_documented_ones(tmp_path, wrong):
    values = wrong if "iteration" in wrong else {**record(1), **wrong}
    with pytest.raises(ValueError, match="unknown or missing"):
        MetricsLog(tmp_path / "m.jsonl").append(values)


def test_rewards_by_name_are_known_and_those_of_a_missing_role_may_lack(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    named = {**record(1), "view_reward_zmv/redness": 0.25}
    view_only = {name: value for name, value in record(2).items() if not is_joint(name)}
    log.append(named)
    log.append(view_only)
    assert read_metrics(log.path) == [named, view_only]
    with pytest.raises(ValueError, match="'view_reward_standard'"):
        log.append({name: value for name, value in view_only.items() if name != "view_reward_standard"})


def test_curves_are_drawn_from_known_metrics(tmp_path):
    assert {name for _, series in PANELS for name in series} <= set(METRICS)
    draw_curves([record(1), record(2)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 500
        whole = picture.copy()
    # a run without a joint reward: its panel, upper right, stays empty
    view_only = [{k: v for k, v in record(i).items() if not is_joint(k)} for i in (1, 2)]
    draw_curves(view_only, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        width, height = picture.width // 2, picture.height // 2
        upper_right = (width, 0, 2 * width, height)
        assert picture.crop(upper_right).getextrema() == ((255, 255),) * 3
        assert whole.crop(upper_right).getextrema() != ((255, 255),) * 3
        for left, top in ((0, 0), (0, height), (width, height)):
            box = (left, top, left + width, top + height)
            assert picture.crop(box).tobytes() == whole.crop(box).tobytes()
