"""The figures that say how good a reward is, on rankings whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2mv_core.rewards.base import RewardResult
from t2mv_core.rewards.hyperscore_network import HEADS
from training.toybox.rewards.reward_data import ATTACKS, SetMaker
from training.toybox.rewards.reward_report import hyperscore_figures, pairwise_accuracy, spearman


def test_spearman_of_monotone_values_is_one_and_of_reversed_ones_minus_one():
    values = np.array([3.0, 1.0, 2.0, 10.0])
    assert spearman(values, values**3) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)


def test_spearman_shares_ranks_between_ties():
    # Ranks of a: 0.5, 0.5, 2; of b: 0, 1, 2. Centred: (-.5, -.5, 1), (-1, 0, 1): 1.5 / sqrt(1.5 · 2).
    assert spearman(np.array([1.0, 1.0, 5.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1.5 / 3**0.5)


def test_spearman_of_a_constant_is_zero():
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def test_pairwise_accuracy_counts_ordered_pairs_of_a_row_whose_targets_differ():
    # Asked pairs: (0, 1), (0, 2); (1, 2) differ by less than a tenth. One of the two is ordered right.
    targets = np.array([[1.0, 0.5, 0.45]])
    assert pairwise_accuracy(np.array([[0.7, 0.6, 0.9]]), targets) == pytest.approx(0.5)
    assert np.isnan(pairwise_accuracy(np.zeros((1, 2)), np.ones((1, 2))))


def test_attacks_are_counted_where_the_pictures_visibly_change(rendered):
    """A judge that knows the clean pictures wins everywhere; one that is blind nowhere."""
    maker = SetMaker(rendered)
    clean = [maker.make(row, np.random.default_rng(0), (None, None, None)).views for row in range(3)]

    def score(views, prompts):
        sets = views.unflatten(0, (len(prompts), 6))
        gaps = torch.stack([min((one - true).abs().mean() for true in clean) for one in sets])
        return RewardResult(-gaps, dict.fromkeys(HEADS, -gaps))

    figures = hyperscore_figures(score, rendered, num_scenes=3, sets_per_scene=2)
    for name in (*ATTACKS, "proportion"):
        assert figures[name] == 1
        assert figures[f"num_{name}"] > 0
    assert figures["num_alike"] == 0  # twelve scenes of twelve families: nothing is alike
    assert "alike" not in figures

    blind = hyperscore_figures(
        lambda views, prompts: RewardResult(
            torch.zeros(len(prompts)), dict.fromkeys(HEADS, torch.zeros(len(prompts)))
        ),
        rendered,
        num_scenes=2,
        sets_per_scene=2,
    )
    assert blind["attack_unrelated"] == blind["proportion"] == 0
