"""Weights under ComfyUI's memory management, in a process like ComfyUI's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

LOAD_AND_DROP = """
import gc
import comfy.model_management as model_management

from pack.nodes.common.memory import load_once

num_loads = 0

class Owner:
    pass

def load():
    global num_loads
    num_loads += 1
    return Owner(), {"linear": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)}

facts = {}
with torch.inference_mode():  # as ComfyUI runs nodes
    first = load_once("a", load)
    facts["same while in use"] = load_once("a", load) is first and num_loads == 1
    facts["another identity"] = load_once("b", load) is not first
    module = first._patchers["linear"].model.module
    facts["trainable weights"] = not module.weight.is_inference()
    first.load("linear")
    facts["only what was asked for"] = len(model_management.current_loaded_models) == 1
    first.load()
    first.load()
    facts["each once"] = len(model_management.current_loaded_models) == 2
    # A card that is full: another model asks for room, so a whole module has to leave, not a part of it.
    loaded = model_management.current_loaded_models[0]
    facts["leaves as a whole"] = loaded.model_unload(memory_to_free=1) and loaded.model.loaded_size() == 0
    model_management.current_loaded_models.remove(loaded)
    first.load()
    facts["comes back"] = all(m.model.loaded_size() > 0 for m in model_management.current_loaded_models)
    del first, module, loaded
gc.collect()
model_management.cleanup_models()
facts["gone with its last user"] = not model_management.current_loaded_models
load_once("a", load)
facts["read again"] = num_loads == 3

from pack.nodes.common.progress import approximate_images

previews = approximate_images(torch.randn(1, 6, 4, 8, 8))  # what large VAEs get instead of a decoded preview
facts["approximate previews"] = previews.shape == (1, 6, 3, 8, 8) and 0 <= float(previews.min()) <= 1
print(json.dumps(facts))
"""


def test_weights_are_shared_while_in_use_and_leave_as_a_whole(comfy_install: ComfyInstall) -> None:
    facts = comfy_install.run_with_pack(LOAD_AND_DROP)
    assert [name for name, holds in facts.items() if not holds] == []


FULL_DEVICE = """
import comfy.model_management as model_management
from comfy.model_patcher import ModelPatcher

from pack.nodes.common.memory import Residency

steps = []

def note_emptied(force=False):
    if steps[-1] != "cache emptied":  # ComfyUI does so itself when it unloads a model
        steps.append("cache emptied")

model_management.soft_empty_cache = note_emptied
ours = Residency(None, {"linear": torch.nn.Linear(4, 4)})
other = ModelPatcher(torch.nn.Linear(4, 4), torch.device("cpu"), torch.device("cpu"))
other.model.device = torch.device("cpu")

def is_loaded(patcher):
    return any(loaded.model is patcher for loaded in model_management.current_loaded_models)

def run(*errors):
    \"\"\"Raise these errors one after the other, then give 7.\"\"\"
    steps.clear()
    model_management.load_models_gpu([other])
    left = list(errors)

    def work(device):
        steps.append(f"try, other loaded: {is_loaded(other)}")
        if left:
            raise left.pop(0)
        return 7

    try:
        return ours.run(work, "linear")
    except BaseException as error:  # an interrupt is no Exception since 2026
        return type(error).__name__

class OutOfNpuMemory(Exception):
    pass

def accelerator_error(code):
    error = torch.AcceleratorError("CUDA error")
    error.error_code = code
    return error

twice = ["try, other loaded: True", "cache emptied", "try, other loaded: False"]
facts = {"no error": run() == 7 and steps == ["try, other loaded: True"]}
facts["CUDA, XPU"] = run(model_management.OOM_EXCEPTION("CUDA out of memory.")) == 7 and steps == twice
facts["Apple"] = run(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")) == 7 and steps == twice
facts["once only"] = run(*[torch.OutOfMemoryError("no")] * 2) == "OutOfMemoryError" and steps == twice
facts["others pass"] = run(RuntimeError("shapes differ")) == "RuntimeError" and steps == twice[:1]
if hasattr(model_management, "is_oom"):
    discarded = []
    model_management.discard_cuda_async_error = lambda: discarded.append(True)
    facts["CUDA's code 2"] = run(accelerator_error(2)) == 7 and steps == twice and len(discarded) == 1
    facts["its other codes"] = run(accelerator_error(700)) == "AcceleratorError" and steps == twice[:1]
model_management.OOM_EXCEPTION = OutOfNpuMemory
facts["a backend's own"] = run(OutOfNpuMemory()) == 7 and steps == twice
model_management.OOM_EXCEPTION = Exception  # what ComfyUI sets where torch has no class
interrupt = model_management.InterruptProcessingException
facts["a cancel passes"] = run(interrupt()) == "InterruptProcessingException" and steps == twice[:1]
print(json.dumps(facts))
"""


def test_out_of_memory_leads_to_a_second_try_with_the_device_to_itself(comfy_install: ComfyInstall) -> None:
    facts = comfy_install.run_with_pack(FULL_DEVICE)
    assert [name for name, holds in facts.items() if not holds] == []


SMALL_CARD = """
import comfy.model_management as model_management
from comfy.model_patcher import ModelPatcher

# ComfyUI never offloads from "cpu"; "cpu:0" computes the same, and it takes that for a card. Its memory is
# what the test says less what ComfyUI itself has put there.
card, limit = torch.device("cpu", 0), 0
model_management.get_torch_device = lambda: card
model_management.vram_state = model_management.VRAMState.NORMAL_VRAM
model_management.minimum_inference_memory = model_management.extra_reserved_memory = lambda: 0

def on_card():
    loaded = [m for m in model_management.current_loaded_models if m.device == card and m.model is not None]
    return sum(m.model_loaded_memory() for m in loaded)

def get_free_memory(device=None, torch_free_too=False):
    free = limit - on_card()
    return (free, 0) if torch_free_too else free

model_management.get_free_memory = get_free_memory

# The card is a toy: nothing on it is as large as the work of SDXL, for which the nodes ask room.
load_weights = model_management.load_models_gpu
model_management.load_models_gpu = lambda models, memory_required=0, **more: load_weights(models, **more)

from pack.nodes.common.folders import register_folders
from pack.nodes.loaders.load_model import T2MVLoadModel
from pack.nodes.loaders.load_reward import T2MVLoadReward
from pack.nodes.sampling.sample import sample_views
from pack.nodes.scoring.score import score_set, split_by_prompt

register_folders()  # as the entry point does

def states(residency):
    patchers = residency._patchers.items()
    return {name: (patcher.loaded_size(), patcher.model.device) for name, patcher in patchers}

facts = {}
with torch.inference_mode():
    model = T2MVLoadModel.execute("toybox", "the model's own", "auto").result[0]
    sizes = {name: model.residency.size_bytes(name) for name in model.residency._patchers}
    total = sum(sizes.values())
    limit = int(1.5 * total)
    numbers = {"steps": 2, "guidance": 2.0, "view_scale": 1.0}

    first, *_ = sample_views("standard", model, "a red mug", 3, **numbers)
    devices = {device for _, device in states(model.residency).values()}
    facts["all on the card"] = on_card() == total and devices == {card}

    # A model of ComfyUI's that fits only if nearly all of ours leaves.
    weights = torch.nn.Linear(1000, int(1.2 * total / 4000), bias=False)
    weights.device = torch.device("cpu")
    other = ModelPatcher(weights, card, torch.device("cpu"))
    model_management.load_models_gpu([other], force_full_load=True)
    left = states(model.residency)
    facts["the other is on the card"] = other.loaded_size() == other.model_size()
    facts["the card holds no more than fits"] = on_card() <= limit
    facts["ours left, each as a whole"] = all(
        size == (sizes[name] if device == card else 0) for name, (size, device) in left.items()
    )
    facts["the UNet was among them"] = left["unet"] == (0, torch.device("cpu"))

    second, *_ = sample_views("standard", model, "a red mug", 3, **numbers)
    facts["ours is back"] = states(model.residency)["unet"] == (sizes["unet"], card)
    facts["and the other had to leave"] = other.loaded_size() < other.model_size() and on_card() <= limit
    facts["same pictures"] = torch.equal(first, second)

    # A reward that needs the room that the model has.
    (reward,) = T2MVLoadReward.execute("toybox_clip").result[0]
    limit = int(1.02 * max(total, reward.residency.size_bytes("model")))
    scored = score_set((reward,), split_by_prompt(second, 1)[0], "a red mug", lambda: None)
    facts["the reward came"] = states(reward.residency)["model"][0] == reward.residency.size_bytes("model")
    facts["the model made room"] = on_card() <= limit < total + reward.residency.size_bytes("model")
    facts["and left"] = any(size == 0 for size, _ in states(model.residency).values())
    facts["scored"] = len(scored.view_scores["toybox_clip"]) == 6

    # A card that never holds the whole model: its parts come as their work does, and go.
    model_management.unload_all_models()
    limit = int(1.02 * (sizes["unet"] + sizes["vae"]))
    third, *_ = sample_views("standard", model, "a red mug", 3, **numbers)
    facts["a card smaller than the model is enough"] = on_card() <= limit < total
    facts["and gives the same pictures"] = torch.equal(first, third)
print(json.dumps({name: bool(holds) for name, holds in facts.items()} | {"bytes": sizes}))
"""


def test_the_model_makes_room_on_a_small_card_and_comes_back(comfy_install: ComfyInstall) -> None:
    facts = comfy_install.run_with_pack(SMALL_CARD)
    assert facts.pop("bytes")["unet"] > 0
    assert [name for name, holds in facts.items() if not holds] == []


EVICTION = """
import asyncio, time
try:
    from comfy_execution.caching import RAMPressureCache, CacheKeySetID
except ImportError:
    print(json.dumps(None)); raise SystemExit
import psutil
from types import SimpleNamespace

from pack.nodes.common.memory import Residency
from pack.nodes.sockets import ModelHandle, RewardHandle

def handle(kind):
    return kind(SimpleNamespace(), Residency(None, {"unet": torch.nn.Linear(4, 4)}))

class Prompt:
    def __init__(self, *nodes):
        self.nodes = {node: {"class_type": "PreviewAny", "inputs": {}} for node in nodes}
    def all_node_ids(self): return set(self.nodes)
    def has_node(self, node): return node in self.nodes
    def get_node(self, node): return self.nodes[node]

def order_of_leaving(outputs, later_runs):
    \"\"\"Keep an output per name, run other workflows, and then drop one after the other.\"\"\"
    cache, left = RAMPressureCache(CacheKeySetID), []

    async def fill():
        await cache.set_prompt(Prompt(*outputs), set(outputs), None)
        for name, output in outputs.items():
            await cache.set(name, SimpleNamespace(outputs=[[output]]))
        for _ in range(later_runs):
            await cache.set_prompt(Prompt("other"), {"other"}, None)

    asyncio.run(fill())
    available = iter(range(1000))
    psutil.virtual_memory = lambda: SimpleNamespace(available=0 if next(available) < 2 else 100)
    while cache.cache:
        names = {key[0] for key in cache.cache}
        available = iter(range(1000))  # room for one more after the first that leaves
        if not cache.ram_release(10, free_active=True):
            break
        left.append((names - {key[0] for key in cache.cache}).pop())
    return left

pictures, latent = torch.zeros(1, 64, 64, 3), {"samples": torch.zeros(1)}
outputs = {"model": handle(ModelHandle), "rewards": (handle(RewardHandle),), "pictures": pictures,
           "text": "a"}
print(json.dumps({"old": order_of_leaving(outputs, 1), "current": order_of_leaving(outputs, 0)}))
"""


def test_models_of_earlier_workflows_leave_the_cache_first(comfy_install: ComfyInstall) -> None:
    """With ComfyUI's own cache that is emptied when RAM is short, 0.33's default."""
    left = comfy_install.run_with_pack(EVICTION)
    if left is None:
        pytest.skip("This ComfyUI has no cache that is emptied when RAM is short.")
    assert set(left["old"][:2]) == {"model", "rewards"}
    assert left["old"][2:] == ["pictures", "text"]
    assert left["current"][0] == "pictures"  # a model in use is held by its user: dropping it frees nothing
