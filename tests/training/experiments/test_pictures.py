"""Pictures of experiments."""

from PIL import Image

from training.evaluation.intervals import Interval
from training.experiments.pictures import Point, draw_points, far_away, pareto_front


def test_the_front_is_what_nothing_beats_at_its_cost():
    points = {"a": (4, 1.0), "dear and bad": (6, 0.5), "cheap": (2, 0.2), "equal": (4, 0.9), "best": (8, 2.0)}
    assert list(pareto_front(points)) == ["cheap", "a", "best"]


def test_a_picture_shows_every_panel(tmp_path):
    path = tmp_path / "points.png"
    points = {
        "one": Point(4.0, Interval(0.1, 0.0, 0.2, 9)),
        "two": Point(Interval(5, 4, 6, 9), Interval(0.3, None, None, 1)),
    }
    draw_points({"view": points, "joint": points}, "evaluations", path, front=True)
    one = tmp_path / "one.png"
    draw_points({"view": points}, "evaluations", one)
    with Image.open(path) as wide, Image.open(one) as narrow:
        assert wide.width == 2 * narrow.width
        assert len(wide.convert("RGB").resize((60, 20)).getcolors()) > 10


def test_a_point_far_from_all_others_is_named_instead_of_drawn():
    points = {
        f"way {number}": Point(0.01 * number, Interval(0.001 * number, None, None, 9)) for number in range(6)
    }
    assert far_away(points) == []
    broken = {**points, "broken": Point(-5.0, Interval(0.002, None, None, 9))}
    assert far_away(broken) == ["broken"]
    assert far_away({"a": Point(0.0, Interval(0.0, None, None, 9)), "b": broken["broken"]}) == []
