"""Sets of views in order of their scores. Needs neither ComfyUI nor torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ..scoring.report import ScoredSet


def rank_sets(sets: Sequence[ScoredSet], rank_by: str) -> list[tuple[int, float]]:
    """Order the sets of one prompt, the best first; of equal ones the earlier first.

    Args:
        sets: scored by the same rewards against the same prompt, so that their scores can be compared.
        rank_by: a name of RANK_BY.

    Returns:
        (index into `sets`, ranking score) of every set.
    """
    scores = RANK_BY[rank_by](sets)
    order = sorted(range(len(sets)), key=lambda index: -scores[index])
    return [(index, scores[index]) for index in order]


def check_ranking(rank_by: str, kinds: Sequence[str]) -> None:
    """Refuse to rank by a reward that is not loaded, before anything is sampled.

    Args:
        rank_by: a name of RANK_BY.
        kinds: "view" or "joint" of every loaded reward.

    Raises:
        ValueError: with the reward that is missing.
    """
    if not kinds:
        raise ValueError("No reward is loaded; connect Load Reward to 'rewards'.")
    needed = rank_by.split()[0]
    if needed in ("joint", "view") and needed not in kinds:
        cure = "toybox_hyperscore" if needed == "joint" else "toybox_clip"
        raise ValueError(
            f"rank_by={rank_by!r} needs a {needed} reward, and none is connected; add one such as {cure} "
            "with Load Reward, or rank by something else."
        )


def _joint(sets: Sequence[ScoredSet]) -> list[float]:
    return [next(iter(scored.joint_scores.values())) for scored in sets]


def _view_mean(sets: Sequence[ScoredSet]) -> list[float]:
    return [statistics.fmean(next(iter(scored.view_scores.values()))) for scored in sets]


def _view_worst(sets: Sequence[ScoredSet]) -> list[float]:
    return [min(next(iter(scored.view_scores.values()))) for scored in sets]


def _normalised_sum(sets: Sequence[ScoredSet]) -> list[float]:
    """Every reward in standard deviations from its mean over the sets, views averaged, and summed."""
    columns = [
        [statistics.fmean(scored.view_scores[name]) for scored in sets] for name in sets[0].view_scores
    ]
    columns += [[scored.joint_scores[name] for scored in sets] for name in sets[0].joint_scores]
    return [sum(scores) for scores in zip(*map(_normalised, columns), strict=True)]


def _normalised(scores: Sequence[float]) -> list[float]:
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / spread if spread else 0.0 for score in scores]


# As shown on the node -> ranking scores of the sets of one prompt. With several rewards of a kind the first
# one loaded counts, as in Score Views; the sum takes all.
RANK_BY: dict[str, Callable[[Sequence[ScoredSet]], list[float]]] = {
    "sum of normalised rewards": _normalised_sum,
    "joint reward": _joint,
    "view reward (mean)": _view_mean,
    "view reward (worst view)": _view_worst,
}
