"""Sets in order of their scores."""

from __future__ import annotations

from typing import Any

import pytest
from t2mv_pack.nodes.sampling import candidates as ranking
from t2mv_pack.nodes.scoring import report


@pytest.fixture
def sets() -> list[Any]:
    """Three sets with seeds 0, 1, 2; every way to rank puts another first."""
    scores = [([0.5, 0.5], 3.0), ([0.1, 1.1], 2.0), ([0.2, 0.3], 4.0)]
    scored = [report.ScoredSet("a mug", {"clip": views}, {"hyper": joint}) for views, joint in scores]
    return [ranking.Candidate(seed, None, None, each) for seed, each in enumerate(scored)]


@pytest.mark.parametrize(
    ("rank_by", "order", "scores"),
    [
        ("joint reward", [2, 0, 1], [4.0, 3.0, 2.0]),
        ("view reward (mean)", [1, 0, 2], [0.6, 0.5, 0.25]),
        ("view reward (worst view)", [0, 2, 1], [0.5, 0.2, 0.1]),
    ],
)
def test_sets_are_ordered_by_what_was_chosen(
    sets: list[Any], rank_by: str, order: list[int], scores: list[float]
) -> None:
    ranked = ranking.rank(sets, rank_by)
    assert [candidate.seed for candidate, _ in ranked] == order
    assert [score for _, score in ranked] == pytest.approx(scores)


def test_normalised_rewards_weigh_the_same_whatever_their_range(sets: list[Any]) -> None:
    # clip means 0.5, 0.6, 0.25: mean 0.45, standard deviation sqrt((0.05² + 0.15² + 0.2²) / 3) = 0.147196
    # hyper 3, 2, 4: mean 3, standard deviation sqrt(2 / 3) = 0.816497
    expected = {0: 0.05 / 0.147196, 1: 0.15 / 0.147196 - 1 / 0.816497, 2: -0.2 / 0.147196 + 1 / 0.816497}
    ranked = ranking.rank(sets, "sum of normalised rewards")
    assert [candidate.seed for candidate, _ in ranked] == [0, 2, 1]
    assert {c.seed: score for c, score in ranked} == pytest.approx(expected, abs=1e-4)


def test_equal_sets_keep_their_order() -> None:
    scored = report.ScoredSet("a mug", {"clip": [0.5]}, {"hyper": 1.0})
    same = [ranking.Candidate(seed, None, None, scored) for seed in range(3)]
    for rank_by in ranking.RANK_BY:
        assert [candidate.seed for candidate, _ in ranking.rank(same, rank_by)] == [0, 1, 2]
    assert ranking.rank(same, "sum of normalised rewards")[0][1] == 0.0  # no spread, no division by it


def test_a_reward_that_differs_by_rounding_does_not_count_and_is_named() -> None:
    scores = [([0.95], 3.0), ([0.95001], 2.0), ([0.94999], 4.0)]
    sets = [
        ranking.Candidate(seed, None, None, report.ScoredSet("a mug", {"clip": views}, {"hyper": joint}))
        for seed, (views, joint) in enumerate(scores)
    ]
    ranked = ranking.rank(sets, "sum of normalised rewards")
    assert [candidate.seed for candidate, _ in ranked] == [2, 0, 1]
    assert [score for _, score in ranked] == pytest.approx([1.224745, 0, -1.224745], abs=1e-5)
    *_, last = ranking.ranking_text(ranked, "joint reward", 1).splitlines()
    assert last == "clip hardly differs between these sets: their order by it says nothing."
    assert "hardly" not in ranking.ranking_text(ranked[:1], "joint reward", 1)


@pytest.mark.parametrize(
    ("rank_by", "kinds", "words"),
    [
        ("joint reward", ["view"], "needs a joint reward"),
        ("view reward (worst view)", ["joint"], "needs a view reward"),
        ("sum of normalised rewards", [], "No reward is loaded"),
    ],
)
def test_a_reward_that_is_missing_is_named(rank_by: str, kinds: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ranking.check_ranking(rank_by, kinds)


@pytest.mark.parametrize(
    ("rank_by", "kinds", "order"),
    [
        ("joint reward", ["joint"], [2, 0, 1]),  # 3, 2, 4
        ("joint reward", ["view", "joint"], [2, 0, 1]),
        ("view reward (worst view)", ["view"], [0, 2, 1]),  # 0.5, 0.1, 0.2
        ("sum of normalised rewards", ["view"], [1, 0, 2]),  # means 0.5, 0.6, 0.25
        ("sum of normalised rewards", ["joint"], [2, 0, 1]),
    ],
)
def test_rewards_that_pass_are_enough_to_rank_by(
    sets: list[Any], rank_by: str, kinds: list[str], order: list[int]
) -> None:
    ranking.check_ranking(rank_by, kinds)
    for candidate in sets:
        if "view" not in kinds:
            candidate.scored.view_scores.clear()
        if "joint" not in kinds:
            candidate.scored.joint_scores.clear()
    assert [candidate.seed for candidate, _ in ranking.rank(sets, rank_by)] == order


def test_a_ranking_names_place_seed_scores_and_who_is_kept(sets: list[Any]) -> None:
    ranked = [(sets[2], 2.0), (sets[0], -2.0)]
    head, *lines = ranking.ranking_text(ranked, "joint reward", 1).splitlines()
    assert head == "“a mug”: 2 sets by joint reward, 1 kept"
    assert lines == [
        "#1   kept  seed 2  score 2.000   [clip 0.250  hyper 4.000]",  # (0.2 + 0.3) / 2
        "#2         seed 0  score -2.000   [clip 0.500  hyper 3.000]",
    ]
