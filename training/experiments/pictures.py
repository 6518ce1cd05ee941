"""Pictures of experiments: measures of several ways against each other, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2mv_core.formats.atomic import replaced

from ..evaluation.intervals import Interval

PANEL_INCHES = (4.6, 3.6)
FAR, MIN_FOR_FAR = 10.0, 5


@dataclass(frozen=True)
class Point:
    """One way in one diagram: where it lies, with the interval of each coordinate that was measured."""

    x: float | Interval
    y: Interval


def draw_points(
    panels: Mapping[str, Mapping[str, Point]], x_title: str, path: Path, front: bool = False
) -> None:
    """Draw diagrams side by side as a PNG, replaced atomically; each point is marked by its name's number.

    Args:
        panels: named points by the title of the vertical axis.
        x_title: of the horizontal axis.
        path: the picture.
        front: whether a line joins the points that none beats with as much or less of x.
    """
    from matplotlib.figure import Figure  # a developers' library: pip install ".[dev]"

    width, height = PANEL_INCHES
    figure = Figure((width * len(panels), height), layout="constrained")
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    for axes, (title, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, point in points.items():
            x, spread = _place(point.x)
            mean, above_below = _place(point.y)
            colour = f"C{names.index(name) % 10}"
            axes.errorbar(
                x, mean, yerr=above_below, xerr=spread, fmt="o", color=colour, alpha=0.7, label=name
            )
            axes.annotate(
                str(names.index(name) + 1), (x, mean), (4, 4), textcoords="offset points", fontsize=8
            )
        if front:
            best = pareto_front({name: (_place(p.x)[0], p.y.mean) for name, p in points.items()})
            axes.plot(*zip(*best.values(), strict=True), color="grey", linewidth=0.8, zorder=0)
        axes.set(xlabel=x_title, ylabel=title)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3)
        if far := far_away(points):
            axes.set_xlim(*_limits([point.x for name, point in points.items() if name not in far]))
            axes.set_ylim(*_limits([point.y for name, point in points.items() if name not in far]))
            axes.set_title(f"not shown: {', '.join(far)}", fontsize=8)
    labels = [f"{number + 1} {name}" for number, name in enumerate(names)]
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    shown = [handles[name] for name in names if name in handles]
    figure.legend(shown, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def far_away(points: Mapping[str, Point]) -> list[str]:
    """Return the points so far from the others that these would lie on one spot, such as a broken training.

    Far is more than FAR times the middle half's extent from its border, in either direction.
    """
    far: set[str] = set()
    for axis in ("x", "y"):
        values = {name: _place(getattr(point, axis))[0] for name, point in points.items()}
        if len(values) < MIN_FOR_FAR:
            return []
        low, _, high = statistics.quantiles(values.values(), n=4, method="inclusive")
        reach = FAR * (high - low)
        far |= {name for name, value in values.items() if not low - reach <= value <= high + reach}
    return [name for name in points if name in far]


def pareto_front(points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the points (cost, gain) that no other beats at the same or a lower cost, by rising cost."""
    front: dict[str, tuple[float, float]] = {}
    best = float("-inf")
    for name, (cost, gain) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if gain > best:
            front[name], best = (cost, gain), gain
    return front


def _limits(values: Sequence[float | Interval]) -> tuple[float, float]:
    """Return an axis that holds all values with their intervals, and a little room."""
    ends = [end for value in values for end in _ends(value)]
    room = 0.05 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room


def _ends(value: float | Interval) -> tuple[float, float]:
    mean, reach = _place(value)
    return (mean, mean) if reach is None else (mean - reach[0][0], mean + reach[1][0])


def _place(value: float | Interval) -> tuple[float, list[list[float]] | None]:
    """Return a coordinate, and how far its interval reaches below and above."""
    if isinstance(value, Interval) and value.low is not None and value.high is not None:
        return value.mean, [[value.mean - value.low], [value.high - value.mean]]
    return (value.mean if isinstance(value, Interval) else value), None
