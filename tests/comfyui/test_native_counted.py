"""What the native memory benchmark counts at SDXL's size: the same weights, and hardly more beside them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_evaluation_of_comfyuis_unet_takes_what_the_diffusers_path_takes(
    comfy_install: ComfyInstall,
) -> None:
    command = [str(comfy_install.python), "-m", "benchmarks.native_memory", "--way", "count"]
    environment = {**os.environ, "COMFYUI_DIR": str(comfy_install.folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    ours, native = counted["diffusers"], counted["native"]
    assert native["weights"] == ours["weights"] > 5.9e9
    assert native["peak"] - native["weights"] < 1.1 * (ours["peak"] - ours["weights"])
