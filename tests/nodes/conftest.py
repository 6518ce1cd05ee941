"""Fixtures of the node tests that need no ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PACK_DIR = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """The pack, loaded by path under a name of its own, as ComfyUI loads it."""
    name = str(PACK_DIR).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, PACK_DIR / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checks(pack: ModuleType) -> ModuleType:
    """`nodes/common/checks.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.common.checks")


@pytest.fixture(scope="session")
def report(pack: ModuleType) -> ModuleType:
    """`nodes/scoring/report.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.scoring.report")


@pytest.fixture(scope="session")
def ranking(pack: ModuleType) -> ModuleType:
    """`nodes/sampling/candidates.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.sampling.candidates")


@pytest.fixture(scope="session")
def references(pack: ModuleType) -> ModuleType:
    """`nodes/sampling/reference.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.sampling.reference")
