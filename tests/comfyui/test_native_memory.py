"""A native model on a card without room: its adapter is offloaded layer by layer, as ComfyUI's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

NO_ROOM = """
import json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
import comfy.model_management as management

# "cpu:0" computes as "cpu" does, and is taken for a card here.
card = torch.device("cpu", 0)
management.get_torch_device = lambda: card
management.is_device_cpu = lambda device: device == torch.device("cpu")
management.get_free_memory = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 2**40
management.vram_state = management.VRAMState.NORMAL_VRAM
management.soft_empty_cache = lambda force=False: None

from native_pair import *
from pack.nodes.native.load_lora import add_native_lora
from pack.t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters
from pack.t2mv_core.lora.files import save_lora

with torch.inference_mode(False), torch.no_grad():
    pair = create_pair(folder)
    add_lora(pair.bundle.unet, rank=2, alpha=3, name="lora")
    for parameter in trainable_parameters(pair.bundle.unet, "lora"):
        parameter.normal_(std=0.15)
    save_lora(pair.bundle.unet, folder / "lora.safetensors", {}, name="lora")
    remove_lora(pair.bundle.unet, "lora")
    model, _ = add_native_lora(pair.patched(), folder / "lora.safetensors", 1.0)
    adapter = adapter_of(model)
    x, condition = torch.randn(1, RIG.num_views, 4, 8, 8), pair.condition(1, (64, 64))
    whole = evaluate(model, x, 620, condition)
    facts["both are on the card"] = all(
        p.loaded_size() == p.model_size() and p.model.device == card for p in (model, adapter)
    )
    facts["two models"] = len(management.current_loaded_models) == 2

    management.unload_all_models()
    facts["both left"] = all(
        p.loaded_size() == 0 and {w.device for w in p.model.parameters()} == {torch.device("cpu")}
        for p in (model, adapter)
    )
    management.vram_state = management.VRAMState.NO_VRAM
    streamed = evaluate(model, x, 620, condition)
    facts["nothing stays on the card"] = adapter.loaded_size() < 0.1 * adapter.model_size()
    facts["streamed by layer"] = adapter.model.model_lowvram
    facts["streamed, with LoRA"] = relative_error(streamed, whole)

    adapter.partially_load(card, 0.5 * adapter.model_size())
    facts["half is there"] = 0.2 < adapter.loaded_size() / adapter.model_size() < 0.8
    sampled = evaluate(model, x, 620, condition)
    facts["half, with LoRA"] = relative_error(sampled, whole)
    facts["freed in part"] = adapter.partially_unload(torch.device("cpu"), 0.2 * adapter.model_size()) > 0
    facts["less, with LoRA"] = relative_error(evaluate(model, x, 620, condition), whole)

    # The residuals are forgotten after a sampling: they would stay in the card's memory.
    sigmas = torch.tensor([10.0, 0.0])
    sample(model, x.flatten(0, 1), sigmas, comfy_conditions(condition, RIG.num_views), 1.0)
    wrapper = next(iter(model.wrappers["outer_sample"].values()))[0]
    cells = dict(zip(wrapper.__code__.co_freevars, wrapper.__closure__))
    facts["residuals forgotten"] = cells["known"].cell_contents == {}
print(json.dumps(facts))
"""


def test_the_adapter_is_offloaded_as_comfyuis_own_weights(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    out = comfy_install.run_code(NO_ROOM, str(Path(__file__).parent), str(tmp_path))
    facts = json.loads(out.splitlines()[-1])
    for name in ("streamed, with LoRA", "half, with LoRA", "less, with LoRA"):
        assert facts.pop(name) < 1e-5, name
    assert [name for name, holds in facts.items() if not holds] == []
