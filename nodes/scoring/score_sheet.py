"""A picture of scored sets: every view under its scores, every row under what is said of the whole set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..views.contact_sheet import picture_tensor
from .report import ScoredSet

if TYPE_CHECKING:
    from torch import Tensor

CELL_PX = 128
MAX_WIDTH_PX = 8192  # a batch of hundreds of pictures scored as one set still gives a picture
TITLE_PX, FONT_PX = 18, 10
MAX_PROMPT_SHOWN = 60


def score_sheet(views: Sequence[Tensor], titles: Sequence[str], labels: Sequence[Sequence[str]]) -> Tensor:
    """Draw sets of views below each other.

    Args:
        views: pictures of each set, [V, 3, H, W] in [0, 1].
        titles: a text above each set.
        labels: a text per view of each set, or none for a set.

    Returns:
        One picture as ComfyUI keeps it, [1, height, width, 3] in [0, 1].
    """
    from PIL import Image, ImageDraw

    from ...t2mv_core.images import contact_sheet, label_font

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
    """A text per view: its scores, in the order of the rewards; none without a view reward."""
    columns = zip(*scored.view_scores.values(), strict=True)
    return [" | ".join(f"{score:.3f}" for score in scores) for scores in columns]


def set_title(scored: ScoredSet) -> str:
    """The prompt, the joint scores, and which rewards the numbers above the views are of."""
    prompt = scored.prompt
    if len(prompt) > MAX_PROMPT_SHOWN:
        prompt = prompt[: MAX_PROMPT_SHOWN - 1] + "…"
    parts = [f"“{prompt}”", *(f"{name} {score:.3f}" for name, score in scored.joint_scores.items())]
    if scored.view_scores:
        parts.append("views: " + " | ".join(scored.view_scores))
    return "   ".join(parts)
