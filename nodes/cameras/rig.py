"""Camera rigs read from texts, and written as texts and JSON. Needs no ComfyUI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from ...t2mv_core.cameras import (
    AZIMUTH_OF_NAME,
    TRAINED_AZIMUTHS_DEG,
    TRAINED_ELEVATION_DEG,
    CameraRig,
    is_same_azimuth,
)
from ..common.checks import MAX_VIEWS, check_choice, check_number


def _listed(angles: Iterable[float]) -> str:
    return ", ".join(f"{angle:g}" for angle in dict.fromkeys(angles))


TRAINED_AZIMUTHS = _listed(TRAINED_AZIMUTHS_DEG)
CUSTOM = "custom"
PRESETS: dict[str, tuple[float, ...]] = {
    "six views (default)": TRAINED_AZIMUTHS_DEG,
    "four around": (0.0, 90.0, 180.0, 270.0),
    "front and back": (0.0, 180.0),
    "twelve turntable": tuple(30.0 * step for step in range(12)),
}
PRESET_CHOICES = [*PRESETS, CUSTOM]
CONVENTION = (
    "Right-handed world, z up, object at the origin in a box of ±0.5, its front towards -y. Azimuth 0 is the "
    "camera at -y, 90 at +x (to the right of who looks at the front), 180 at +y, 270 at -x; elevation is the "
    "angle above the horizon. camera_to_world (row-major, column vectors) takes camera coordinates, x to the "
    "picture's right, y to its top, looking along -z (OpenGL), to the world. Orthographic: x and y in "
    "[-half_width, half_width] fill the picture. World units."
)


def choose_rig(
    azimuths: str | None, elevations: str | None, preset: str | None = CUSTOM, views: str | None = ""
) -> CameraRig | None:
    """Build the rig of a preset (at elevation 0) or of the angles, reduced to the chosen views.

    Args:
        azimuths: see `read_rig_angles`; read only for the preset "custom".
        elevations: likewise.
        preset: one of PRESET_CHOICES.
        views: see `read_views`.

    Returns:
        The rig, or None while an input it needs is linked (None) and not known yet.
    """
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


def read_rig_angles(
    azimuths: str | None, elevations: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read azimuths and elevations of a rig; a single elevation is meant for every view.

    Returns:
        (azimuths, elevations) in degrees, equally many; two empty tuples while an input is linked (None).

    Raises:
        ValueError: no angle or more than 24, a word that is not a number from -360 to 360 (elevations: -90 to
            90), or the numbers of angles disagree.
    """
    if azimuths is None or elevations is None:
        return (), ()
    azimuths_deg = _read_angles("azimuths", azimuths, 360)
    elevations_deg = _read_angles("elevations", elevations, 90)
    if len(elevations_deg) == 1:
        elevations_deg *= len(azimuths_deg)
    if len(elevations_deg) != len(azimuths_deg):
        raise ValueError(
            f"{len(azimuths_deg)} azimuths but {len(elevations_deg)} elevations were given; "
            "give one elevation for all views or one per view."
        )
    return azimuths_deg, elevations_deg


def _read_angles(name: str, text: str, largest: float) -> tuple[float, ...]:
    """Read degrees separated by commas, semicolons or spaces."""
    words = _split(text)
    if not 1 <= len(words) <= MAX_VIEWS:
        raise ValueError(
            f"{name} holds {len(words)} angles; give 1 to {MAX_VIEWS}, in degrees, separated by commas."
        )
    angles = []
    for word in words:
        try:
            angles.append(float(word))
        except ValueError:
            raise ValueError(
                f"{name}: {word[:40]!r} is not a number; write degrees such as '0, 45, 90'."
            ) from None
        check_number(f"{name}: angle", angles[-1], -largest, largest)
    return tuple(angles)


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
    words = _split(text)
    if not words:
        return list(range(rig.num_views))
    if len(words) > MAX_VIEWS:
        raise ValueError(f"views holds {len(words)} entries; at most {MAX_VIEWS} views fit into a rig.")
    chosen = [index for word in words for index in _views_of(word.lower(), rig)]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"views={text[:80]!r} names a view twice; name every view once.")
    return chosen


def _views_of(word: str, rig: CameraRig) -> list[int]:
    if re.fullmatch(r"[0-9]{1,4}", word):
        if not 1 <= int(word) <= rig.num_views:
            raise ValueError(f"views: there is no view {int(word)}; the rig has views 1 to {rig.num_views}.")
        return [int(word) - 1]
    if word not in AZIMUTH_OF_NAME:
        raise ValueError(
            f"views: {word[:40]!r} is neither a number nor a name; write numbers from 1, or some of "
            f"{', '.join(AZIMUTH_OF_NAME)}."
        )
    views = rig.find_views(AZIMUTH_OF_NAME[word])
    if not views:
        raise ValueError(
            f"views: the rig has no {word} view (azimuth {AZIMUTH_OF_NAME[word]:g}°); it has "
            f"{', '.join(rig.labels())}."
        )
    return sorted(views)


def _split(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def to_json(rig: CameraRig) -> str:
    """Write down all cameras with their 4x4 matrices, and what the numbers mean."""
    # Twelve decimals, without the -0 and 1e-17 that sines and cosines leave.
    matrices = (rig.camera_to_world().numpy().round(12) + 0.0).tolist()
    views = [
        {
            "view": index + 1,
            "label": label,
            "azimuth_deg": rig.azimuths_deg[index],
            "elevation_deg": rig.elevations_deg[index],
            "distance": rig.distance,
            "projection": {"type": "orthographic", "half_width": rig.frustum},
            "camera_to_world": matrices[index],
        }
        for index, label in enumerate(rig.labels())
    ]
    return json.dumps({"convention": CONVENTION, "views": views}, ensure_ascii=False, allow_nan=False)


def to_text(rig: CameraRig) -> str:
    """List the views, after the warnings, as a node has room for two lines."""
    listed = ", ".join(f"{number} {label}" for number, label in enumerate(rig.labels(), 1))
    return "\n".join([*warnings(rig), f"{rig.num_views} views: {listed}"])


def warnings(rig: CameraRig) -> list[str]:
    """Write a sentence per way in which the rig leaves what the checkpoints were trained on."""
    new = {
        "azimuths": [
            a for a in rig.azimuths_deg if not any(is_same_azimuth(a, seen) for seen in TRAINED_AZIMUTHS_DEG)
        ],
        "elevations": [e for e in rig.elevations_deg if abs(e - TRAINED_ELEVATION_DEG) > 1e-3],
    }
    sentences = [
        f"Warning: {name} {_listed(angles)} are new to the models (the bundled and published checkpoints "
        f"were trained on azimuths {TRAINED_AZIMUTHS} at elevation 0); expect weaker views."
        for name, angles in new.items()
        if angles
    ]
    if rig.num_views > len(TRAINED_AZIMUTHS_DEG):
        sentences.append(
            f"Warning: {rig.num_views} views at once; the checkpoints were trained on "
            f"{len(TRAINED_AZIMUTHS_DEG)}. Expect weaker views, and more memory and time."
        )
    return sentences
