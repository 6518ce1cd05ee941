"""A text under a picture. Needs no ComfyUI."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FONT_PX, LINE_PX, MARGIN_PX = 11, 16, 3
LETTER_PX = 6.0  # of Latin text; where letters are wider (Chinese), lines are broken earlier
MAX_LINES = 160


def with_caption(sheet: Image.Image, text: str) -> Image.Image:
    """Return the sheet with a text on white below it, broken to the sheet's width; as it is without one."""
    from PIL import Image, ImageDraw

    from ...t2mv_core.images import label_font
    from ...t2mv_core.prompts import split_lines

    pen, lines = ImageDraw.Draw(sheet), list[str]()
    for line in split_lines(text):
        letter_px = max(LETTER_PX, pen.textlength(*label_font(line, FONT_PX)) / max(len(line), 1))
        lines += textwrap.wrap(line, max(1, int((sheet.width - 2 * MARGIN_PX) / letter_px)))
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], "…"]
    captioned = Image.new("RGB", (sheet.width, sheet.height + LINE_PX * len(lines)), "white")
    captioned.paste(sheet, (0, 0))
    pen = ImageDraw.Draw(captioned)
    for index, line in enumerate(lines):
        shown, font = label_font(line, FONT_PX)
        middle = sheet.height + LINE_PX * index + LINE_PX // 2
        pen.text((MARGIN_PX, middle), shown, font=font, fill="black", anchor="lm")
    return captioned
