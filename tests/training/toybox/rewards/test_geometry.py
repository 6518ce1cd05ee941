"""What the geometry reward sees that the bundled HyperScore does not, on a hundred scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2mv_core.rewards.geometry import GeometryReward
from training.toybox.data.dataset import Dataset, load_dataset, render_dataset
from training.toybox.rewards.reward_data import SetMaker
from training.toybox.rewards.reward_report import MIN_VISIBLE
from training.toybox.stages.stage import update_rng

NUM_SCENES, NUM_ASKED = 600, 100  # those that are not asked about lend views to others


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("scenes")
    render_dataset(folder, NUM_SCENES, seed=77, allow_held_out=True)
    return load_dataset(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alike", "proportion"])
def test_true_views_win_against_another_object_of_the_kind(scenes: Dataset, kind: str) -> None:
    maker, reward, wins, true_scores = SetMaker(scenes), GeometryReward(), [], []
    for row in range(NUM_ASKED):
        true, other = (maker.make(row, update_rng(9, row), (None, view, None)) for view in (None, kind))
        if float(other.view_changes.mean()) >= MIN_VISIBLE:
            scores = reward(torch.cat([true.views, other.views]), ["anything"] * 2).scores
            wins.append(float(scores[0] > scores[1]))
            true_scores.append(float(scores[0]))
    assert len(wins) > 80
    assert sum(wins) / len(wins) >= 0.95
    assert sum(true_scores) / len(true_scores) == pytest.approx(0.73, abs=0.03)
