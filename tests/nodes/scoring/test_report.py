"""Scores as text and JSON."""

from __future__ import annotations

import json

import pytest
import torch
from t2mv_pack.nodes.scoring import report
from t2mv_pack.t2mv_core import images


def test_report_and_json_hold_every_score() -> None:
    scored = report.ScoredSet("a mug", {"clip": [0.1, 0.3]}, {"hyper": 2.5}, {"hyper": {"geometry": 1.25}})
    text = report.to_text([scored, scored])
    assert text.count("“a mug”") == 2
    assert "clip (per view): mean 0.200   [0.100  0.300]" in text  # (0.1 + 0.3) / 2
    assert "hyper (all views): 2.500   [geometry 1.250]" in text
    assert json.loads(report.to_json([scored])) == [
        {
            "prompt": "a mug",
            "view_scores": {"clip": [0.1, 0.3]},
            "joint_scores": {"hyper": 2.5},
            "details": {"hyper": {"geometry": 1.25}},
        }
    ]


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.to_json([report.ScoredSet("a mug", {"clip": [float("nan")]})])


def test_the_short_line_holds_means_over_views_and_sets() -> None:
    first = report.ScoredSet("a mug", {"clip": [0.1, 0.3]}, {"hyper": 2.5})
    second = report.ScoredSet("a car", {"clip": [0.4, 0.8]}, {"hyper": 1.5})
    assert report.to_line([first]) == "clip 0.200  hyper 2.500"
    assert report.to_line([first, second]) == "clip 0.400  hyper 2.000  (means of 2 sets)"


def test_a_sheet_spells_what_no_font_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_FONT_FILES", ())
    sheets = [report.score_sheet([torch.zeros(2, 3, 8, 8)], [title], [[]]) for title in ("红", "U+7EA2")]
    assert torch.equal(*sheets)
