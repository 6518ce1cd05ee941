"""Scores as a readable report and as JSON. Needs neither ComfyUI nor torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ScoredSet:
    """The scores of one prompt's views.

    Attributes:
        prompt: what the views should show.
        view_scores: reward name -> one score per view.
        joint_scores: reward name -> one score of the whole set.
        details: reward name -> named parts of the joint score.
    """

    prompt: str
    view_scores: dict[str, list[float]] = field(default_factory=dict)
    joint_scores: dict[str, float] = field(default_factory=dict)
    details: dict[str, dict[str, float]] = field(default_factory=dict)


def to_json(sets: Sequence[ScoredSet]) -> str:
    """All scores as a JSON list, one object per prompt."""
    return json.dumps([vars(scored) for scored in sets], ensure_ascii=False, allow_nan=False)


def to_text(sets: Sequence[ScoredSet]) -> str:
    """All scores as lines to read; higher is better, comparable only within one reward and prompt."""
    return "\n\n".join("\n".join(_lines(scored)) for scored in sets)


def to_line(sets: Sequence[ScoredSet]) -> str:
    """The means of all rewards over the sets in one line, for where there is little room."""
    first = sets[0]
    means = [
        (name, statistics.fmean(score for scored in sets for score in scored.view_scores[name]))
        for name in first.view_scores
    ]
    means += [(name, statistics.fmean(s.joint_scores[name] for s in sets)) for name in first.joint_scores]
    line = "  ".join(f"{name} {mean:.3f}" for name, mean in means)
    return line + (f"  (means of {len(sets)} sets)" if len(sets) > 1 else "")


def _lines(scored: ScoredSet) -> list[str]:
    lines = [f"“{scored.prompt}”"]
    for name, scores in scored.view_scores.items():
        each = "  ".join(f"{score:.3f}" for score in scores)
        lines.append(f"{name} (per view): mean {sum(scores) / len(scores):.3f}   [{each}]")
    for name, score in scored.joint_scores.items():
        parts = "  ".join(f"{part} {value:.3f}" for part, value in scored.details.get(name, {}).items())
        lines.append(f"{name} (all views): {score:.3f}" + (f"   [{parts}]" if parts else ""))
    return lines


def ranking_to_text(ranked: Sequence[tuple[int, float, ScoredSet]], rank_by: str, keep: int) -> str:
    """One prompt's sets in order, as lines to read.

    Args:
        ranked: (seed, ranking score, scores) of every set, the best first.
        rank_by: what the ranking score is.
        keep: how many of them are kept.
    """
    lines = [f"“{ranked[0][2].prompt}”: {len(ranked)} sets by {rank_by}, {keep} kept"]
    for rank, (seed, score, scored) in enumerate(ranked, start=1):
        parts = [f"{name} {sum(each) / len(each):.3f}" for name, each in scored.view_scores.items()]
        parts += [f"{name} {joint:.3f}" for name, joint in scored.joint_scores.items()]
        kept = "kept" if rank <= keep else "    "
        lines.append(f"#{rank:<3} {kept}  seed {seed}  score {score:.3f}   [{'  '.join(parts)}]")
    return "\n".join(lines)
