"""A native model that ComfyUI spreads over several GPUs (MultiGPU CFG Split), on two cards that are imitated.

Both cards are the CPU: the tests show that each card evaluates its own copies of the networks, with the
patches of the model, and that the latents stay. They do not show that every tensor lies on its card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

TWO_CARDS = """
from collections import Counter
import comfy.samplers
import imitated_card
import comfy.model_management as management
management.get_all_torch_devices = lambda exclude_current=False: [torch.device("cpu", n) for n in (0, 1)]
from comfy.multigpu import create_multigpu_deepclones
from dataclasses import replace
from safetensors.torch import save_file
from pack.nodes.native.guidance import embed_guidance
from pack.nodes.native.load_lora import add_native_lora
from pack.nodes.native.schedule import T2MVShiftSNR

def split(model):
    return create_multigpu_deepclones(model, 2, reuse_loaded=True)

def adapt(model):
    return apply_adapter(model, pair.adapter_file, RIG)

def lora(model):
    return add_native_lora(model, folder / "lora.safetensors", 0.8)[0]

def embed(model):
    return embed_guidance(model, folder / "lcm.safetensors", 7.0)

def shift(model):
    return T2MVShiftSNR.execute(model, "the model's own", 8.0).args[0]

def draw(*nodes):
    management.unload_all_models()  # or the node takes a copy that is loaded, with its LoRAs
    models = [pair.model]
    for apply in nodes:
        models.append(apply(models[-1]))
    kept.extend(models)  # as ComfyUI keeps the outputs of nodes
    model = models[-1]
    calls.clear(), embeddings.clear()
    unets = [m.model.diffusion_model for m in (model, *model.get_additional_models_with_key("multigpu"))]
    count = lambda module, _: embeddings.update([id(module)])
    handles = [unet.time_embed.register_forward_pre_hook(count) for unet in unets]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    latents = sample(model, noise, sigmas, conditions, 5.0)
    for handle in handles:
        handle.remove()
    return latents

calls, kept, embeddings = [], [], Counter()
from pack.nodes.native.adapter_weights import CameraEncoder, MultiviewAttention
for kind in (CameraEncoder, MultiviewAttention):
    before = kind.forward
    kind.forward = lambda self, *args, before=before: calls.append(id(self)) or before(self, *args)

with torch.inference_mode():
    pair = create_pair(folder, replace(SMALL, guidance=64))
    key = "time_embedding.cond_proj.weight"
    save_file({key: 10 * pair.bundle.unet.get_parameter(key)}, folder / "lcm.safetensors")
    with torch.inference_mode(False), torch.no_grad():
        write_lora(pair, folder / "lora.safetensors")
    weights = {key: x.clone() for key, x in pair.model.model.diffusion_model.state_dict().items()}
    # As ComfyUI's loaders do: how to load the model once more.
    pair.model.cached_patcher_init = (lambda **_: comfy_model(weights, torch.float32), ())
    noise, conditions = torch.randn(3, 4, 8, 8), comfy_conditions(pair.condition(1, (64, 64)), RIG.num_views)
    plain = draw()
    for name, nodes in {
        "adapter": (adapt, shift), "LoRA": (adapt, lora), "embedded guidance": (adapt, embed),
    }.items():
        expected = draw(*nodes)
        modules = set(calls)
        facts[f"{name} matters"] = relative_error(plain, expected)
        for place in range(len(nodes) + 1):
            found = draw(*nodes[:place], split, *nodes[place:])
            case = f"{name}, split at {place}"
            facts[f"error: {case}"] = relative_error(found, expected)
            facts[f"modules: {case}"] = len(set(calls)) / len(modules)
            facts[f"time embeddings: {case}"] = len(embeddings) if len(set(embeddings.values())) == 1 else 0
"""


def test_every_gpu_evaluates_its_own_copies(
    native_facts: Callable[..., dict[str, Any]], comfy_install: ComfyInstall
) -> None:
    if not (comfy_install.folder / "comfy" / "multigpu.py").is_file():
        pytest.skip("This ComfyUI is older than MultiGPU CFG Split (0.23).")
    facts = native_facts(TWO_CARDS)
    for name, value in facts.items():
        if name.endswith("matters"):
            assert value > 0.02, name
        elif name.startswith("error"):
            assert value < 1e-4, name
        else:
            assert value == 2, name
    assert len(facts) == 3 + 3 * 9
