"""A text under a picture. Needs no ComfyUI."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

FONT_PX, LINE_PX, MARGIN_PX = 11, 16, 3
MAX_LINES = 160


def with_caption(sheet: Image.Image, text: str) -> Image.Image:
    """Return the sheet with a text on white below it, broken to the sheet's width; as it is without one."""
    from PIL import Image, ImageDraw

    from ...t2mv_core.images import label_font

    if not text.strip():
        return sheet
    pen = ImageDraw.Draw(sheet)
    parts = (part for line in text.strip().splitlines() for part in _break(line, sheet.width, pen))
    lines = list(itertools.islice(parts, MAX_LINES))
    if next(parts, ""):
        lines[-1] = "…"
    captioned = Image.new("RGB", (sheet.width, sheet.height + LINE_PX * len(lines)), "white")
    captioned.paste(sheet, (0, 0))
    pen = ImageDraw.Draw(captioned)
    for index, line in enumerate(lines):
        shown, font = label_font(line, FONT_PX)
        middle = sheet.height + LINE_PX * index + LINE_PX // 2
        pen.text((MARGIN_PX, middle), shown, font=font, fill="black", anchor="lm")
    return captioned


def _break(line: str, width: int, pen: ImageDraw.ImageDraw) -> Iterator[str]:
    """Break a line where it would leave the sheet: at a space, or within a word that is wider."""
    from ...t2mv_core.images import label_font

    def is_wider(length: int) -> bool:
        return pen.textlength(*label_font(line[:length], FONT_PX)) > width - 2 * MARGIN_PX

    while line:
        # No letter is narrower than 2 px; one always fits, that the loop may end.
        length = bisect.bisect_left(range(min(len(line), width // 2) + 1), True, lo=2, key=is_wider) - 1
        if length < len(line):
            length = line.rfind(" ", 0, length + 1) if line.rfind(" ", 0, length + 1) > 0 else length
        yield line[:length]
        line = line[length:].lstrip()
