"""What a training run asks of memory, and what it gives back, in a process like ComfyUI's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

LOAD_PACK = """
import gc, importlib.util, json, torch
from dataclasses import replace
from pathlib import Path

spec = importlib.util.spec_from_file_location("pack", sys.argv[1] + "/__init__.py")
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.nodes.loaders import load_reward
from pack.nodes.train import session
from pack.nodes.common.folders import register_folders

register_folders()  # as the entry point does
session.share_core()
from pack.training.config import load_config

folder, facts = Path(sys.argv[2]), {}
"""


@pytest.fixture
def facts_of(comfy_install: ComfyInstall, tmp_path: Path) -> Any:
    """Runs code behind LOAD_PACK, with an empty folder; gives what it put into `facts`."""

    def run(code: str) -> dict[str, Any]:
        code = f"{LOAD_PACK}{code}\nprint(json.dumps(facts))"
        printed = comfy_install.run_code(code, str(Path(__file__).parents[2]), str(tmp_path))
        return json.loads(printed.splitlines()[-1])

    return run


REWARD_DTYPES = """
sys.path.append(sys.argv[1] + "/tests/comfyui")
from test_reward_loader import write_tiny_pickscore

write_tiny_pickscore(folder / "PickScore_v1")
load_reward.reward_folders = lambda: (folder,)
load_reward.compute_device = lambda: torch.device("cuda")

def dtypes(handles):
    return [str(next(handle.reward.model.parameters()).dtype) for handle in handles]

config = load_config("lcm-sdxl-12gb")
rewards = replace(config.reward, view={"pickscore": 1.0}, joint={"pickscore.min": 1.0}, device="cpu")
on_cpu = replace(config, reward=rewards)
on_card = replace(config, reward=replace(rewards, device="auto"))
connected = (load_reward.load_reward_handle("pickscore", False),)
with torch.inference_mode():
    facts["connected"] = dtypes(connected)
    facts["preset's, on the card"] = dtypes(session.load_run_rewards(on_card, None))
    facts["preset's, on the processor"] = dtypes(session.load_run_rewards(on_cpu, None))
    facts["connected, on the processor"] = dtypes(session.load_run_rewards(on_cpu, connected))
facts["connected stay"] = session.load_run_rewards(on_card, connected) is connected
"""


def test_rewards_that_stay_on_the_processor_have_its_precision(facts_of: Any) -> None:
    half, single = "torch.float16", "torch.float32"
    assert facts_of(REWARD_DTYPES) == {
        "connected": [half],
        "preset's, on the card": [half, half],
        "preset's, on the processor": [single, single],
        "connected, on the processor": [single, single],
        "connected stay": True,
    }
