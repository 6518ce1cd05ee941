"""Weights under ComfyUI's memory management, in a process like ComfyUI's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

LOAD_AND_DROP = """
import gc, importlib.util, json, torch
import comfy.model_management as model_management

name = "pack"
spec = importlib.util.spec_from_file_location(name, sys.argv[1] + "/__init__.py")
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
from pack.nodes.memory import load_once

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

from pack.nodes.progress import approximate_images

previews = approximate_images(torch.randn(1, 6, 4, 8, 8))  # what large VAEs get instead of a decoded preview
facts["approximate previews"] = previews.shape == (1, 6, 3, 8, 8) and 0 <= float(previews.min()) <= 1
print(json.dumps(facts))
"""


def test_weights_are_shared_while_in_use_and_leave_as_a_whole(comfy_install: ComfyInstall) -> None:
    facts = json.loads(comfy_install.run_code(LOAD_AND_DROP, str(Path(__file__).parents[2])).splitlines()[-1])
    assert [name for name, holds in facts.items() if not holds] == []
