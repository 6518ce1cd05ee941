"""Scores to read: as lines, as JSON, and drawn over the views. Needs no ComfyUI."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CELL_PX = 128
MAX_WIDTH_PX = 8192  # a batch of hundreds of pictures scored as one set still gives a picture
TITLE_PX, FONT_PX = 18, 10
MAX_PROMPT_SHOWN = 60


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

    def means(self) -> dict[str, float]:
        """Return one score per reward: the mean of a per-view reward, a joint reward as it is."""
        return {name: statistics.fmean(each) for name, each in self.view_scores.items()} | self.joint_scores


def to_json(sets: Sequence[ScoredSet]) -> str:
    """Write all scores as a JSON list, one object per prompt."""
    return json.dumps([vars(scored) for scored in sets], ensure_ascii=False, allow_nan=False)


def to_text(sets: Sequence[ScoredSet]) -> str:
    """Write all scores as lines; higher is better, comparable only within one reward and prompt."""
    return "\n\n".join("\n".join(_lines(scored)) for scored in sets)


def _lines(scored: ScoredSet) -> list[str]:
    lines = [f"“{scored.prompt}”"]
    for name, scores in scored.view_scores.items():
        each = "  ".join(f"{score:.3f}" for score in scores)
        lines.append(f"{name} (per view): mean {statistics.fmean(scores):.3f}   [{each}]")
    for name, score in scored.joint_scores.items():
        parts = listed(scored.details.get(name, {}))
        lines.append(f"{name} (all views): {score:.3f}" + (f"   [{parts}]" if parts else ""))
    return lines


def to_line(sets: Sequence[ScoredSet]) -> str:
    """Write the means of all rewards over the sets in one line, for where there is little room."""
    means = [scored.means() for scored in sets]
    line = listed({name: statistics.fmean(each[name] for each in means) for name in means[0]})
    return line + (f"  (means of {len(sets)} sets)" if len(sets) > 1 else "")


def listed(scores: dict[str, float]) -> str:
    """Write scores by name in one line."""
    return "  ".join(f"{name} {score:.3f}" for name, score in scores.items())


def score_sheet(views: Sequence[Tensor], titles: Sequence[str], labels: Sequence[Sequence[str]]) -> Tensor:
    """Draw sets of views below each other.

    Args:
        views: pictures of each set, [V, 3, H, W] in [0, 1].
        titles: a text above each set.
        labels: a text per view of each set, or none for a set.

    Returns:
        ComfyUI's IMAGE, [1, height, width, 3] in [0, 1].
    """
    from PIL import Image, ImageDraw

    from ...t2mv_core.images import contact_sheet, label_font
    from ..common.outputs import picture_tensor

    rows = []
    for pictures, texts in zip(views, labels, strict=True):
        cell_px = max(16, min(CELL_PX, MAX_WIDTH_PX // len(pictures)))
        rows.append(contact_sheet(pictures[None], column_labels=texts, cell_px=cell_px))
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    drawn = [label_font(title, FONT_PX) for title in titles]
    widths = [row.width for row in rows] + [min(int(pen.textlength(*t)) + 6, MAX_WIDTH_PX) for t in drawn]
    sheet = Image.new("RGB", (max(widths), sum(row.height + TITLE_PX for row in rows)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (title, font), row in zip(drawn, rows, strict=True):
        pen.text((3, top + 3), title, font=font, fill="black")
        sheet.paste(row, (0, top + TITLE_PX))
        top += TITLE_PX + row.height
    return picture_tensor(sheet)


def view_labels(scored: ScoredSet) -> list[str]:
    """Return a text per view: its scores, in the order of the rewards; none without a view reward."""
    columns = zip(*scored.view_scores.values(), strict=True)
    return [" | ".join(f"{score:.3f}" for score in scores) for scores in columns]


def set_title(scored: ScoredSet) -> str:
    """Return the prompt, the joint scores, and the rewards that the numbers above the views are of."""
    prompt = scored.prompt
    if len(prompt) > MAX_PROMPT_SHOWN:
        prompt = prompt[: MAX_PROMPT_SHOWN - 1] + "…"
    parts = [f"“{prompt}”", *(f"{name} {score:.3f}" for name, score in scored.joint_scores.items())]
    if scored.view_scores:
        parts.append("views: " + " | ".join(scored.view_scores))
    return "   ".join(parts)
