"""Words on the models' own numbers, for tooltips. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence

from ...t2mv_core.defaults import DEFAULTS, FEW_STEP, OF_PICTURE

MODELS = {
    "toybox": "the toybox",
    "toybox-teacher": "the toybox teacher",
    "lcm-sdxl": "LCM-SDXL",
    "sdxl": "SDXL",
}
OF_PICTURE_WORDS = "SDXL with an image adapter"
OTHERS = "few-step models with another solver"


def own_words(setting: str) -> str:
    """Say which number is which model's own: "4 for the toybox, 25 for the toybox teacher".

    Args:
        setting: a field of `ModelDefaults`.
    """
    records = [(DEFAULTS[name], words) for name, words in MODELS.items()]
    records += [(OF_PICTURE, OF_PICTURE_WORDS), (FEW_STEP, OTHERS)]
    models: dict[float, list[str]] = {}
    for record, words in records:
        models.setdefault(getattr(record, setting), []).append(words)
    if len(models) == 1:
        return f"{next(iter(models)):g} for all models"
    return ", ".join(f"{number:g} for {_listed(names)}" for number, names in models.items())


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[:-1] else names)
