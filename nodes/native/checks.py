"""What the native nodes may be given: cameras, and sizes the MV-Adapter can work with; needs no ComfyUI."""

from __future__ import annotations

from typing import Any

from ..common.checks import check_integer

MAX_SCALE = 10.0
MIN_PX, MAX_PX, PX_STEP = 64, 8192, 16
MAX_SETS = 64


def check_rig(rig: Any) -> None:
    """Refuse what is no camera rig.

    Raises:
        ValueError: with what came instead.
    """
    from ...t2mv_core.cameras import CameraRig

    if not isinstance(rig, CameraRig):
        raise ValueError(f"rig is a {type(rig).__name__}; connect Create Camera Rig (T2MV).")


def check_size_px(name: str, value: int | None) -> None:
    """Refuse a width or height that is no multiple of 16 px; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with the value and what is allowed.
    """
    check_integer(name, value, MIN_PX, MAX_PX)
    if value is not None and value % PX_STEP:
        raise ValueError(
            f"{name}={value} must be a multiple of {PX_STEP} px; take "
            f"{max(MIN_PX, round(value / PX_STEP) * PX_STEP)}."
        )
