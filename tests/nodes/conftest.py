"""The pack as the module `t2mv_pack`, loaded by path as ComfyUI loads it, without ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("t2mv_pack", Path(__file__).parents[2] / "__init__.py")
sys.modules["t2mv_pack"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["t2mv_pack"])
