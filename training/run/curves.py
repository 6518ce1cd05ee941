"""The curves picture of a run: rewards, multiplier, threshold, loss, ZMV's lead; drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2mv_core.formats.atomic import replaced

if TYPE_CHECKING:
    from PIL import Image

PANEL_PX = (520, 300)
MARGIN_PX = (64, 34, 16, 30)  # left, top, right, bottom
MAX_LABELS_IN_TITLE = 3  # more are stacked beside the diagram
SCALE = 2  # drawn larger and reduced: Pillow's lines have no antialiasing
COLOURS = (  # curves beyond the tenth take them again, in thinner lines
    "#1f5fbf",
    "#d9652b",
    "#6b6b6b",
    "#2a9d4a",
    "#b0379a",
    "#c9a20c",
    "#17a2b8",
    "#8b1a1a",
    "#111111",
    "#9b8cff",
)
PANELS: dict[str, dict[str, str]] = {
    "single-view reward": {
        "view_reward_standard": "standard",
        "view_reward_zmv": "ZMV",
        "view_reward_redraw": "fresh noise",
        "view_reward_again": "again",
    },
    "joint-view reward": {
        "joint_reward_standard": "standard",
        "joint_reward_zmv": "ZMV",
        "joint_reward_redraw": "fresh noise",
        "joint_reward_again": "again",
        "threshold": "threshold",
    },
    "lambda: weight of the joint over the single-view advantage": {"lambda": "lambda"},
    "loss": {"loss": "loss"},
    "joint-view reward: ZMV minus standard": {"joint_gap": "gap"},
}
"""Series by title; runs whose objective draws no such pairs lack the last one."""
Curves = Mapping[str, Sequence[float]]
"""Values by label."""


def draw_curves(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw a run's metrics as a PNG, two diagrams in a row; those at the end without curves take no place.

    Args:
        records: at least one iteration, as `metrics.read_metrics` returns.
        path: the picture, replaced atomically.
    """
    known = set.intersection(*(set(record) for record in records))  # some runs lack some metrics
    panels = {
        title: {
            label: [record[name] for record in records] for name, label in series.items() if name in known
        }
        for title, series in PANELS.items()
    }
    while not panels[last := list(panels)[-1]]:
        del panels[last]
    draw_panels(panels, path, num_columns=2, first=records[0]["iteration"])


def draw_panels(panels: Mapping[str, Curves], path: Path, num_columns: int = 0, first: float = 1) -> None:
    """Draw diagrams as a PNG.

    Args:
        panels: curves by title; a panel without curves stays empty.
        path: the picture, replaced atomically.
        num_columns: diagrams in a row; 0 puts all into one row.
        first: where the curves' first values lie on the axis, the next ones at first + 1 and so on.
    """
    from PIL import Image

    num_columns = num_columns or len(panels)
    width, height = (SCALE * size for size in PANEL_PX)
    picture = Image.new("RGB", (num_columns * width, -(-len(panels) // num_columns) * height), "white")
    for number, (title, curves) in enumerate(panels.items()):
        if curves:
            place = (number % num_columns * width, number // num_columns * height)
            picture.paste(draw_panel(title, first, curves), place)
    size = (picture.width // SCALE, picture.height // SCALE)
    with replaced(path) as temporary:
        picture.resize(size, Image.Resampling.LANCZOS).save(temporary, format="PNG")


def draw_panel(title: str, first: float, curves: Curves) -> Image.Image:
    """Return one diagram with its title, scales and legend, SCALE times as large as it will be shown."""
    from PIL import Image, ImageDraw, ImageFont

    left, top, right, bottom = (SCALE * margin for margin in MARGIN_PX)
    width, height = (SCALE * size for size in PANEL_PX)
    panel = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=SCALE * 12)
    if is_stacked := len(curves) > MAX_LABELS_IN_TITLE:
        right += round(max(draw.textlength(label, font=font) for label in curves)) + 8 * SCALE
    low, high = _limits([y for ys in curves.values() for y in ys])
    last = first + max(len(ys) for ys in curves.values()) - 1
    span = max(last - first, 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - first) / span * (width - left - right)
        return across, height - bottom - (y - low) / (high - low) * (height - top - bottom)

    for part in range(5):
        y = low + (high - low) * part / 4
        draw.line([place(first, y), place(first + span, y)], fill="#dddddd", width=SCALE)
        draw.text((left - 6 * SCALE, place(first, y)[1]), f"{y:.4g}", fill="black", font=font, anchor="rm")
    for x in {first, last}:
        across = place(x, low)[0]
        draw.text((across, height - bottom + 4 * SCALE), f"{x:.0f}", fill="black", font=font, anchor="mt")
    draw.text((left, 10 * SCALE), title, fill="black", font=font)
    legend, row = width - MARGIN_PX[2] * SCALE, top + 15 * SCALE * len(curves)
    for number, (label, ys) in reversed(list(enumerate(curves.items()))):
        repeat, shade = divmod(number, len(COLOURS))
        colour = COLOURS[shade]
        points = [place(first + step, y) for step, y in enumerate(ys)]
        draw.line(points, fill=colour, width=SCALE * (1 if repeat else 2), joint="curve")
        if is_stacked:
            row -= 15 * SCALE
            draw.text((width - right + 8 * SCALE, row), label, fill=colour, font=font, anchor="la")
        elif len(curves) > 1:
            draw.text((legend, 10 * SCALE), label, fill=colour, font=font, anchor="ra")
            legend -= round(draw.textlength(label, font=font)) + 12 * SCALE
    return panel


def _limits(ys: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values with a little room, never empty."""
    low, high = min(ys), max(ys)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room
