"""The pack runs from a folder that nobody may write to, and leaves no file in it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACK_DIR = Path(__file__).parents[2]
SHIPPED = (
    "__init__.py",
    "pyproject.toml",
    "nodes",
    "t2mv_core",
    "training",
    "web",
    "locales",
    "example_workflows",
)
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def obey_permissions() -> None:
    """Called in a new process before its program: root then obeys a folder's permissions like anybody."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with size and time of the last change."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob("*")}  # fmt: skip


@pytest.fixture
def read_only_base(tmp_path: Path) -> Path:
    """A base folder for ComfyUI with a copy of the pack in which nothing can be written."""
    base = tmp_path / "только чтение"
    pack = base / "custom_nodes" / "ComfyUI-T2MV"
    for folder in (pack, base / "user" / "default", base / "models"):
        folder.mkdir(parents=True)
    for name in SHIPPED:
        source = PACK_DIR / name
        if source.is_dir():
            shutil.copytree(source, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, pack / name)
    for path in (pack, *pack.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    writing = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", str(pack / "written")]
    if not subprocess.run(writing, preexec_fn=obey_permissions, capture_output=True, check=False).returncode:
        pytest.skip("This user may write anywhere, whatever a folder's permissions are.")
    return base


def test_a_read_only_folder_is_enough(start_server: Any, read_only_base: Path) -> None:
    pack = read_only_base / "custom_nodes" / "ComfyUI-T2MV"
    before = listing(pack)
    scales = {"guidance": 2.0, "view_scale": 1.0, "inverse_guidance": 1.0, "inverse_view_scale": 1.0}
    best = {"model": ["1", 0], "rewards": ["2", 0], "prompts": "a red mug", "seed": 0, "candidates": 2,
            "keep": 1, "rank_by": "view reward (mean)", "sampler": "zmv", "steps": 2, "zigzag_steps": 1,
            "zigzag_repeats": 1, **scales}  # fmt: skip
    score = {"rewards": ["2", 0], "images": ["3", 0], "prompts": "a red mug"}
    with start_server(read_only_base, obey_permissions) as server:
        server.succeed({
            "1": {"class_type": "T2MVLoadModel",
                  "inputs": {"model": "toybox", "adapter": "the model's own", "precision": "auto"}},
            "2": {"class_type": "T2MVLoadReward", "inputs": {"reward": "toybox_clip"}},
            "3": {"class_type": "T2MVSampleBest", "inputs": best},
            "4": {"class_type": "T2MVScoreViews", "inputs": score},
            "5": {"class_type": "T2MVCreateContactSheet", "inputs": {"images": ["3", 0]}},
        })  # fmt: skip
        assert server.get("/extensions/ComfyUI-T2MV/docs/T2MVSampleBest.md").startswith(
            b"# Sample Best Views"
        )
    assert listing(pack) == before
