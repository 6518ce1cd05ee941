"""What a training run asks of memory, and what it gives back, in a process like ComfyUI's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

PREPARE = """
import gc
from dataclasses import replace
from pathlib import Path

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
    """Runs code behind PREPARE, with an empty folder; gives what it put into `facts`."""

    def run(code: str) -> dict[str, Any]:
        code = f"{PREPARE}{code}\nprint(json.dumps(facts))"
        return comfy_install.run_with_pack(code, str(tmp_path))

    return run


REWARD_DTYPES = """
sys.path.append(sys.argv[1] + "/tests/comfyui")
from tiny_pickscore import write_tiny_pickscore

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


RUN = """
from contextlib import nullcontext

import comfy.model_management as model_management
from pack.nodes.train.settings import Places, build_config

INPUTS = {"preset": "demo", "learning_rate": 0.0, "rank": 2, "seed": 1, "objective": "preset's",
          "prompts_per_iteration": 1, "download": False}

class Display:
    # Shows nothing; raises in a phase of the run.
    def __init__(self, phase, error): self.phase_to_fail, self.error = phase, error
    def shown(self): return nullcontext()
    def report(self, record): pass
    def phase(self, name, total): self.name = name

    def advance(self):
        if self.name == self.phase_to_fail:
            raise self.error

def train(name, iterations, phase="", error=None):
    # How a run ends.
    inputs, places = INPUTS | {"iterations": iterations}, Places(folder / name, folder, None, True)
    config, raised = build_config(inputs, places), None
    config = replace(config, constraint=replace(config.constraint, threshold_prompts=1))  # fast
    try:
        session.train(config, True, model, rewards, Display(phase, error))
    except BaseException as reported:  # an interrupt is no Exception since 2026
        raised = reported
    return [type(raised).__name__, str(raised)]

def left():
    # What is left of runs; nothing is freed that the runs do not free.
    names = {type(each).__name__ for each in gc.get_objects()}
    return sorted(names & {"Trainer", "AdamW", "EMAModel"})

gc.disable()
full = model_management.OOM_EXCEPTION
with torch.inference_mode():
    model = session.load_preset_model(load_config("demo").model)
    rewards = session.load_run_rewards(load_config("demo"), None)
    facts["done"] = [train("b", 1), left()]
    facts["full at first"] = train("a", 1, "rollout", full("CUDA out of memory."))
    facts["full later"] = train("b", 2, "rollout", full("CUDA out of memory."))

    def fail(residencies):
        raise full("CUDA out of memory.\\nTried to allocate.")

    session.load_together = fail
    facts["full while loading"] = train("c", 1)
"""


def test_a_run_leaves_nothing_and_one_that_fills_the_memory_says_what_is_saved(facts_of: Any) -> None:
    facts = facts_of(RUN)
    assert facts["done"] == [["NoneType", "None"], []]
    for name, is_saved in (("full at first", False), ("full later", True), ("full while loading", False)):
        kind, sentence = facts[name]
        assert kind == "MemoryError"
        assert sentence.startswith("The device ran out of memory while training (CUDA out of memory.). ")
        assert ("is saved" in sentence) == is_saved
