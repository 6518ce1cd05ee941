"""The curves picture of a run: rewards, multiplier, threshold and loss over iterations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

PANELS = (
    ("single-view reward", {"view_reward_standard": "standard", "view_reward_zmv": "ZMV"}),
    ("joint-view reward", {"joint_reward_standard": "standard", "joint_reward_zmv": "ZMV", "threshold": "threshold"}),
    ("multiplier lambda", {"lambda": "lambda"}),
    ("loss", {"loss": "loss"}),
)


def draw_curves(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw a run's metrics as a PNG.

    Nothing is drawn (and a warning logged) when matplotlib is not installed: training does not depend on it.

    Args:
        records: at least one iteration, as `metrics.read_metrics` returns.
        path: the picture, replaced atomically.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("No curves picture: matplotlib is not installed (pip install matplotlib).")
        return
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    iterations = [record["iteration"] for record in records]
    for axis, (title, series) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name, label in series.items():
            style = "--" if name == "threshold" else "-"
            axis.plot(iterations, [record[name] for record in records], style, label=label)
        axis.set_title(title)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend()
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
