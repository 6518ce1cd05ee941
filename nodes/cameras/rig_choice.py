"""Which cameras a workflow asks for: a preset or own angles, and which of those views. Needs no ComfyUI."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..common.checks import MAX_VIEWS, check_choice, read_rig_angles

if TYPE_CHECKING:
    from ...t2mv_core.cameras import CameraRig

CUSTOM = "custom"
PRESETS: dict[str, tuple[float, ...]] = {
    "six views (default)": (0.0, 45.0, 90.0, 180.0, 270.0, 315.0),
    "four around": (0.0, 90.0, 180.0, 270.0),
    "front and back": (0.0, 180.0),
    "twelve turntable": tuple(30.0 * step for step in range(12)),
}
PRESET_CHOICES = [*PRESETS, CUSTOM]


def choose_rig(
    azimuths: str | None, elevations: str | None, preset: str | None = CUSTOM, views: str | None = ""
) -> CameraRig | None:
    """The rig of a preset (at elevation 0) or of the angles, reduced to the chosen views.

    Args:
        azimuths: degrees, read only for the preset "custom".
        elevations: degrees, one or one per azimuth, read only for the preset "custom".
        preset: one of PRESET_CHOICES.
        views: see `read_views`.

    Returns:
        The rig, or None while an input it needs is linked (None) and not known yet.

    Raises:
        ValueError: an unknown preset, unreadable angles or views.
    """
    from ...t2mv_core.cameras import CameraRig

    check_choice("preset", preset, PRESET_CHOICES, "Choose one of them.")
    if preset is None:
        return None
    if preset == CUSTOM:
        azimuths_deg, elevations_deg = read_rig_angles(azimuths, elevations)
    else:
        azimuths_deg, elevations_deg = PRESETS[preset], (0.0,) * len(PRESETS[preset])
    if not azimuths_deg or views is None:
        return None
    rig = CameraRig(azimuths_deg, elevations_deg)
    return rig.subset(read_views(views, rig))


def read_views(text: str, rig: CameraRig) -> list[int]:
    """Read which of a rig's views are meant.

    Args:
        text: numbers from 1 or names such as "front-right", separated by commas, semicolons or spaces; a name
            means every view at that azimuth. Empty means all views.
        rig: the cameras to choose from.

    Returns:
        Indices from 0, in the order of the text.

    Raises:
        ValueError: a word is neither, the rig has no such view, or a view is named twice.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    if not words:
        return list(range(rig.num_views))
    if len(words) > MAX_VIEWS:
        raise ValueError(f"views holds {len(words)} entries; at most {MAX_VIEWS} views fit into a rig.")
    chosen = [index for word in words for index in _views_of(word.lower(), rig)]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"views={text[:80]!r} names a view twice; name every view once.")
    return chosen


def _views_of(word: str, rig: CameraRig) -> list[int]:
    """The views a number or a name stands for."""
    from ...t2mv_core.cameras import AZIMUTH_OF_NAME

    if re.fullmatch(r"[0-9]{1,4}", word):
        if not 1 <= int(word) <= rig.num_views:
            raise ValueError(f"views: there is no view {int(word)}; the rig has views 1 to {rig.num_views}.")
        return [int(word) - 1]
    if word not in AZIMUTH_OF_NAME:
        raise ValueError(
            f"views: {word[:40]!r} is neither a number nor a name; write numbers from 1, or some of "
            f"{', '.join(AZIMUTH_OF_NAME)}."
        )
    found = rig.find_views(AZIMUTH_OF_NAME[word])
    if not found:
        raise ValueError(
            f"views: the rig has no {word} view (azimuth {AZIMUTH_OF_NAME[word]:g}°); it has "
            f"{', '.join(rig.labels())}."
        )
    return sorted(found)
