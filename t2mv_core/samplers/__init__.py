"""The samplers by name.

sample_<name>(bundle, condition, cameras, noise, settings, on_step, reference) -> Trajectory
"""

from . import redraw, standard, zmv
from .redraw import sample_redraw
from .settings import OnStep, SamplingSettings, StepEvent
from .standard import sample_standard
from .zmv import sample_zmv

__all__ = [
    "SAMPLERS",
    "OnStep",
    "SamplingSettings",
    "StepEvent",
    "count_evaluations",
    "sample_redraw",
    "sample_standard",
    "sample_zmv",
]

SAMPLERS = {"standard": sample_standard, "zmv": sample_zmv, "redraw": sample_redraw}
_COUNTS = {
    "standard": standard.count_evaluations,
    "zmv": zmv.count_evaluations,
    "redraw": redraw.count_evaluations,
}


def count_evaluations(name: str, settings: SamplingSettings) -> int:
    """Return the number of UNet evaluations of a sampler with these settings."""
    return _COUNTS[name](settings)
