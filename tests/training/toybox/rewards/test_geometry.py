"""What the geometry reward sees, on 300 scenes: attacks on a set, and what the bundled HyperScore misses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.objects.consistency import score_consistency
from t2mv_core.rewards.geometry import GeometryReward
from training.toybox.data.dataset import Dataset, load_dataset, render_dataset
from training.toybox.rewards.reward_data import SetMaker
from training.toybox.rewards.reward_report import MIN_VISIBLE
from training.toybox.stages.stage import update_rng

NUM_SCENES, NUM_ASKED = 600, 300  # those that are not asked about lend views to others


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("scenes")
    render_dataset(folder, NUM_SCENES, seed=77, allow_held_out=True)
    return load_dataset(folder)


def true_views(scenes: Dataset) -> Tensor:
    return torch.from_numpy(scenes.images[:NUM_ASKED]).movedim(-1, 2).float() / 255


def shuffled(views: Tensor) -> Tensor:
    """Every set in an order of its own that leaves no view in its place."""
    generator, sets = torch.Generator().manual_seed(0), []
    for one in views:
        order = torch.arange(len(one))
        while (order == torch.arange(len(one))).any():
            order = torch.randperm(len(one), generator=generator)
        sets.append(one[order])
    return torch.stack(sets)


ATTACKS = {
    "unrelated": lambda views: torch.stack(
        [views[:, v].roll(-v, dims=0) for v in range(views.shape[1])], dim=1
    ),
    "repeated": lambda views: views[:, :1].expand_as(views),
    "mirrored": lambda views: views.flip(-1),
    "shuffled": shuffled,
    "noise": lambda views: torch.rand(views.shape, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.slow
def test_true_views_win_against_attacks(scenes: Dataset) -> None:
    """All lost ones are benches: their front views, repeated, are the views of one octagonal bench."""
    views = true_views(scenes)
    true = score_consistency(views, DEFAULT_RIG).geometry
    wins = {name: true > score_consistency(of(views), DEFAULT_RIG).geometry for name, of in ATTACKS.items()}
    lost = {name: {scenes.scenes[row].family for row in (~won).nonzero()} for name, won in wins.items()}
    assert lost == {name: {"bench"} if name == "repeated" else set() for name in ATTACKS}
    assert float(wins["repeated"].float().mean()) >= 0.95
    assert float(torch.stack(list(wins.values())).float().mean()) >= 0.99


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
    assert len(wins) > 240
    assert sum(wins) / len(wins) >= 0.99
    assert sum(true_scores) / len(true_scores) == pytest.approx(0.73, abs=0.03)
