"""Training the judge: what a scene's part counts as, the loss of views and sets, and the figures."""

import math

import numpy as np
import pytest
import torch

from t2mv_core.toybox.judge import Judge, JudgeLogits
from training.toybox.data.dataset import Dataset
from training.toybox.data.scenes import COLOURS, FAMILIES, Scene
from training.toybox.stages.judge import (
    MATERIALS,
    UNKNOWN,
    Labels,
    judge_loss,
    measure,
    part_label,
    scene_labels,
)

CLASSES = [*COLOURS, *MATERIALS]


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (Scene(0, "mug", "red", "blue"), "blue"),
        (Scene(0, "mug", "red"), "red"),  # a handle is by default of the body's colour
        (Scene(0, "tree", "red"), "wooden"),
        (Scene(0, "rocket", "red"), "metal"),
        (Scene(0, "rocket", "red", "wooden"), "wooden"),
        (Scene(0, "sofa", "red"), "white"),
        (Scene(0, "car", "red"), None),  # rubber is none of the classes
    ],
)
def test_a_part_counts_as_what_it_looks_like(scene, expected):
    assert part_label(scene) == (UNKNOWN if expected is None else CLASSES.index(expected))


def zeros(**logits):
    """Logits of one set of two views with three classes each, all equal but for those given."""
    return JudgeLogits(**{name: torch.zeros(1, 2, 3) for name in JudgeLogits._fields} | logits)


def test_every_view_answers_and_the_set_does_for_what_a_view_may_hide():
    labels = Labels(*(torch.tensor([0]) for _ in Labels._fields))
    logits = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    equal = math.log(3)
    view = (math.log(1 + 2 * math.exp(-4)) + equal) / 2
    # The other view gives all classes the same, so the set is as sure as the view that shows the part.
    both = view + math.log(1 + 2 * math.exp(-4))
    assert judge_loss(zeros(), labels).item() == pytest.approx(7 * equal)
    for name, terms, expected in [
        ("family", 1, view),
        ("colour", 1, view),
        ("part", 2, both),
        ("companion", 2, both),
    ]:
        loss = judge_loss(zeros(**{name: logits}), labels).item()
        assert loss == pytest.approx((7 - terms) * equal + expected)
    # The azimuth of view 0 is 0, of view 1 is 1.
    azimuth = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    expected = 6 * equal + math.log(1 + 2 * math.exp(-4))
    assert judge_loss(zeros(azimuth=azimuth), labels).item() == pytest.approx(expected)


def test_a_part_of_an_unknown_material_is_left_out():
    labels = Labels(*(torch.tensor([UNKNOWN if name == "part" else 0]) for name in Labels._fields))
    part = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    loss = judge_loss(zeros(part=part), labels)
    loss.backward()
    assert loss.item() == pytest.approx(5 * math.log(3))
    assert not part.grad.any()


def test_figures_are_over_the_scenes_that_have_what_is_judged(monkeypatch):
    scenes = [
        Scene(0, "mug", "red", "blue", "green"),
        Scene(1, "mug", "red"),
        Scene(2, "car", "red", "white"),
    ]
    dataset = Dataset(
        np.zeros((3, 6, 64, 64, 3), np.uint8), np.zeros((3, 6, 64, 64), np.bool_), scenes, (0.0,) * 6
    )
    judge = Judge(tuple(FAMILIES), tuple(COLOURS), MATERIALS, 6)

    def always(pictures):
        """Answer for every picture: a red mug with a blue handle on a red plate, from the front."""
        answers = {"family": "mug", "colour": "red", "part": "blue", "companion": "red"}
        names = {
            "family": judge.families,
            "colour": judge.colours,
            "part": judge.part_colours,
            "companion": judge.companion_colours,
        }
        logits = {key: torch.eye(len(names[key]))[names[key].index(word)] for key, word in answers.items()}
        logits["azimuth"] = torch.eye(6)[0]
        return JudgeLogits(**{key: row.expand(len(pictures), -1) for key, row in logits.items()})

    monkeypatch.setattr(judge, "forward", always)
    figures = measure(judge, dataset)
    assert figures["family"] == pytest.approx(2 / 3)
    assert figures["colour"] == 1
    assert figures["part"] == 1 / 2
    assert figures["companion"] == 0
    assert figures["azimuth_asymmetric"] == pytest.approx(1 / 6)
    assert figures["per_family"]["mug"]["part"] == 1
    assert figures["per_family"]["car"]["companion"] is None


def test_labels_name_absent_companions():
    scenes = [Scene(0, "mug", "green"), Scene(1, "tree", "red", "blue", "pink")]
    labels = scene_labels(Dataset(np.zeros(0), np.zeros(0), scenes, ()))
    colours = list(COLOURS)
    assert labels.family.tolist() == [list(FAMILIES).index(name) for name in ("mug", "tree")]
    assert labels.colour.tolist() == [colours.index("green"), colours.index("red")]
    assert labels.companion.tolist() == [len(colours), colours.index("pink")]
