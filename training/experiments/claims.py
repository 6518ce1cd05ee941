"""Claims as predictions about the comparison's measures, and what the results say about each.

Most are the paper's; those about initial noise, cameras and long trainings are ours (docs/results).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from ..evaluation.intervals import Interval, bootstrap_two_way, student_interval
from .methods import FIXED_SUMS, STEADIED
from .results import COLUMNS, Results, paired_difference

REWARDS = ("view_reward", "joint_overall")
MIN_TRAININGS = 3
"""For a verdict. By two, half of all differences that are not there would seem to be."""
Prediction = tuple[str, str, str, int]
"""Two methods, a measure of COLUMNS, and +1 where the claim says that the first is higher, -1 for lower."""
CLAIMS: dict[str, list[Prediction]] = {
    "ZMV beats standard sampling at the same number of steps": [
        ("none_zmv", "none", measure, 1)
        for measure in (*REWARDS, "judge_colour", "judge_azimuth", "hull_consistency")
    ],
    "Learning from the zigzag advantage beats learning from two standard samples": [
        # each pair learns from the same rewards
        (first, second, measure, 1)
        for first, second in (
            ("mvc_zigal", "reward_difference"),
            ("zigal_joint", "mv_dpo"),
            ("zigal_joint", "mv_pg"),
        )
        for measure in REWARDS
    ],
    "It is the zigzag, not other initial noise, that beats two standard samples": [
        ("mvc_zigal", other, measure, 1)
        for other, measure in product(("reward_difference_own_noise", "mvc_zigal_redraw"), REWARDS)
    ],
    "An adaptive threshold beats a fixed one, unequal step sizes beat equal ones": [
        ("mvc_zigal", other, measure, 1)
        for other, measure in product(("mvc_zigal_fixed_threshold", "mvc_zigal_equal_rates"), REWARDS)
    ],
    "A zigzag on the first step is better than one on all": [
        ("mvc_zigal", "mvc_zigal_all_steps", measure, 1) for measure in REWARDS
    ],
    "A zag without cameras teaches more than one with them": [
        ("mvc_zigal_no_cameras", "mvc_zigal", measure, 1) for measure in (*REWARDS, "judge_azimuth")
    ],
    "Joint-only training under-optimises the views": [
        ("zigal_joint", other, "view_reward", -1) for other in ("zigal_view", "mvc_zigal")
    ],
    "View-only training lets consistency fall": [
        ("zigal_view", "none", measure, -1)
        for measure in ("joint_overall", "joint_geometry", "hull_consistency")
    ],
    "The constraint keeps more consistency than view-only training": [
        ("mvc_zigal", "zigal_view", measure, 1) for measure in ("joint_overall", "hull_consistency")
    ],
    "The constrained objective raises both": [
        ("mvc_zigal", other, measure, 1) for other, measure in product(("none", "zigal_weighted"), REWARDS)
    ],
    "The constraint finds what a fixed weight must be tuned for": [
        ("mvc_zigal", other, measure, 1) for other, measure in product(FIXED_SUMS, REWARDS)
    ],
    "A long training raises what the held-out judge sees": [
        (trained, "none", measure, 1)
        for trained, measure in product(STEADIED, ("judge_colour", "judge_part", "judge_azimuth"))
    ],
    "The LoRA gives at standard cost what ZMV and best-of-5 cost more for": [
        ("mvc_zigal", other, measure, 1)
        for other, measure in product(("none_zmv", "best_of_5"), (*REWARDS, "judge_part", "judge_colour"))
    ],
}


def verdict(change: Interval, by_seed: Sequence[float], sign: int) -> str:
    """Say what a difference means for a claimed sign.

    Zero must lie outside of two intervals: the bootstrap over prompts and trainings, which is too narrow with
    few trainings, and Student's over trainings, which does not know the prompts.
    """
    if len(by_seed) < MIN_TRAININGS or not change.excludes_zero:
        return "not shown"
    low, high = student_interval(by_seed)
    if low <= 0 <= high:
        return "not shown"
    return "shown" if change.mean * sign > 0 else "contradicted"


def claim_records(claim: str, results: Results) -> Iterator[dict[str, Any]]:
    """Yield a record per prediction whose methods have results."""
    for first, second, measure, sign in CLAIMS[claim]:
        if all(method in results and measure in results[method].values for method in (first, second)):
            gaps = paired_difference(results, first, second, measure)
            change, by_seed = bootstrap_two_way(gaps), gaps.nanmean(dim=0).tolist()
            names = {"first": first, "second": second, "measure": measure, "sign": sign}
            yield {**names, "change": change, "by_seed": by_seed, "verdict": verdict(change, by_seed, sign)}


def claim_text(claim: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with a line per prediction."""
    lines = [
        f"* {entry['first']} against {entry['second']}, {COLUMNS[entry['measure']]}: "
        f"{entry['change'].in_words('+')}, by seed "
        f"{', '.join(f'{mean:+.4f}' for mean in entry['by_seed'])}{_student_words(entry['by_seed'])}: "
        f"**{entry['verdict']}**"
        for entry in entries
    ]
    return "\n".join([f"**{claim}**", "", *lines])


def _student_words(by_seed: Sequence[float]) -> str:
    if len(by_seed) < MIN_TRAININGS:
        return f", fewer than {MIN_TRAININGS} trainings"
    low, high = student_interval(by_seed)
    return f" (t: [{low:+.4f}, {high:+.4f}])"
