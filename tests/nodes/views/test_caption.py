"""A text under a sheet: all of it can be read, whatever the sheet's width."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from t2mv_pack.nodes.views import caption


def sheet(width: int) -> Image.Image:
    return Image.new("RGB", (width, 40), "red")


@pytest.mark.parametrize("text", ["", " \n "])
def test_without_a_text_the_sheet_stays(text: str) -> None:
    assert np.array_equal(caption.with_caption(sheet(100), text), sheet(100))


def test_every_line_is_drawn_below_the_sheet() -> None:
    drawn = np.asarray(caption.with_caption(sheet(400), "seed 0 · 4 steps\nseed 1 · 4 steps"))
    assert drawn.shape == (40 + 2 * 16, 400, 3)
    assert np.array_equal(drawn[:40], np.asarray(sheet(400)))
    for line in range(2):
        strip = drawn[40 + 16 * line : 56 + 16 * line]
        assert strip.min() < 100
        assert strip.max() == 255


@pytest.mark.parametrize("text", ["seed 0 · 4 steps · guidance 2 (the model's own)", "红" * 40, "W" * 300])
def test_a_line_is_broken_where_it_would_leave_the_sheet(text: str) -> None:
    drawn = np.asarray(caption.with_caption(sheet(96), text))
    assert drawn.shape[0] > 40 + 16
    assert (drawn[40:, -2:] == 255).all()  # nothing runs out at the right
    assert drawn[-16:].min() < 200  # and the last line holds something


def test_a_very_long_text_ends() -> None:
    drawn = caption.with_caption(sheet(32), "W" * 20_000)
    assert drawn.height == 40 + 16 * caption.MAX_LINES
