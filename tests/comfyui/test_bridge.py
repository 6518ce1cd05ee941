"""A T2MV_MODEL over the weights ComfyUI has loaded: Load Model's numbers, no second copy, no traces left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import ComfyInstall

PRELUDE = """
import gc, json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
from bridge_pair import *
import comfy.model_management as management
"""


def run(comfy_install: ComfyInstall, code: str, folder: Path) -> dict[str, Any]:
    here = str(Path(__file__).parent)
    return json.loads(comfy_install.run_code(PRELUDE + code, here, str(folder)).splitlines()[-1])


def failed(facts: dict[str, Any]) -> list[str]:
    return [name for name, holds in facts.items() if not holds]


SAME = """
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from pack.nodes.native_schedule import T2MVShiftSNR

with torch.inference_mode():  # as ComfyUI runs nodes
    pair = create_bridge_pair(folder)
    model, clip, vae = pair.lend()
    before = sample_natively(model)
    bridged, loaded = pair.bridged(model, clip, vae), pair.loaded()
    pictures = draw(bridged)
    facts["the pictures of Load Model"] = torch.equal(pictures, draw(loaded))
    zigzags = {"zigzag_steps": 1, "zigzag_repeats": 1, "inverse_guidance": 1.0, "inverse_view_scale": 0.5}
    facts["with zigzags"] = torch.equal(draw(bridged, "zmv", **zigzags), draw(loaded, "zmv", **zigzags))
    facts["ComfyUI's model keeps its bits"] = torch.equal(sample_natively(model), before)
    facts["also between ours"] = torch.equal(draw(bridged), pictures)
    facts["shared while in use"] = pair.bridged(model, clip, vae).residency is bridged.residency

    # What makes a model a few-step one in ComfyUI does so here.
    lcm = replace(loaded, bundle=replace(
        loaded.bundle, schedule=replace(loaded.bundle.schedule, sampler="lcm")
    ))
    expected = draw(lcm)
    (distilled,) = ModelSamplingDiscrete().patch(model, "lcm", False)
    facts["lcm"] = torch.equal(draw(pair.bridged(distilled, clip, vae)), expected)
    shifted = T2MVShiftSNR.execute(model, "lcm", 8.0).result[0]
    facts["lcm, shifted"] = torch.equal(draw(pair.bridged(shifted, clip, vae)), expected)
    shifted = T2MVShiftSNR.execute(model, "the model's own", 8.0).result[0]
    facts["shifted"] = torch.equal(draw(pair.bridged(shifted, clip, vae)), pictures)

    half = {"text_dtype": torch.bfloat16, "vae_dtype": torch.bfloat16}
    bridged = pair.bridged(*pair.lend(torch.bfloat16, **half))
    facts["bfloat16"] = torch.equal(draw(bridged), draw(pair.loaded(torch.bfloat16)))
    types = {"text_dtype": torch.float16, "vae_dtype": torch.bfloat16}  # as ComfyUI has them by itself
    facts["text and VAE in half precision"] = relative_error(
        draw(pair.bridged(*pair.lend(**types))), pictures
    ) < 0.02
print(json.dumps(facts))
"""


def test_it_draws_what_load_model_draws_and_leaves_comfyuis_model_alone(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    assert failed(run(comfy_install, SAME, tmp_path)) == []


NO_COPY = """
# ComfyUI never offloads from "cpu"; "cpu:0" computes the same, and it takes that for a card.
card = torch.device("cpu", 0)
management.get_torch_device = management.text_encoder_device = management.vae_device = lambda: card
management.is_device_cpu = lambda device: device == torch.device("cpu")
free = 2**40
management.get_free_memory = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else free
management.vram_state = management.VRAMState.NORMAL_VRAM
management.soft_empty_cache = lambda force=False: None

def addresses(module):
    return {x.untyped_storage().data_ptr() for x in module.state_dict().values() if not x.is_meta}

def resident_mib():
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096 / 2**20

with torch.inference_mode():
    pair = create_bridge_pair(folder)
    draw(pair.bridged(*pair.lend()))  # what is imported is imported
    model, clip, vae = pair.lend()
    theirs = {
        "unet": model.model.diffusion_model, "vae": vae.first_stage_model,
        "text_encoder": clip.cond_stage_model.clip_l.transformer,
        "text_encoder_2": clip.cond_stage_model.clip_g.transformer,
    }
    size_mib = sum(management.module_size(module) for module in theirs.values()) / 2**20
    at_first = resident_mib()
    bridged = pair.bridged(model, clip, vae)
    bundle, residency = bridged.bundle, bridged.residency
    adapter_mib = pair.adapter.stat().st_size / 2**20
    facts["grown by the adapter"] = resident_mib() - at_first < 1.5 * adapter_mib + 4
    facts["which is less than the weights"] = 1.5 * adapter_mib + 4 < 0.5 * size_mib
    pictures = draw(bridged)
    residency.load()
    for name, module in theirs.items():
        ours = residency._parts[name]
        own = {x.weight.untyped_storage().data_ptr() for x in ours.own_layers()}
        own |= {x.bias.untyped_storage().data_ptr() for x in ours.own_layers() if x.bias is not None}
        buffers = {x.data_ptr() for x in ours.module.buffers()}
        shared = addresses(ours.module) - own - buffers
        facts[f"{name} is ComfyUI's"] = bool(shared) and shared <= addresses(module)
    facts["all on the card"] = {p.model.device for p in residency._lending.values()} == {card}

    # Free memory, and nothing of ComfyUI's is held; then back.
    management.unload_all_models()
    named = {name: part.module for name, part in residency._parts.items()}
    facts["let go of"] = all(named[name].state_dict()[key].is_meta for name, key in (
        ("unet", "conv_in.weight"), ("vae", "decoder.conv_in.weight"),
    )) and not any(addresses(named[name]) & addresses(theirs[name]) for name in named)
    facts["the adapter left"] = residency._own["unet"].loaded_size() == 0
    facts["same after it came back"] = torch.equal(draw(bridged), pictures)

    # Somebody else loads the same model with a LoRA: ComfyUI gives it other weights meanwhile.
    other = model.clone()
    key = "diffusion_model.middle_block.1.proj_in.weight"
    other.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))})
    management.load_models_gpu([other])
    facts["not bound to another's LoRA"] = bundle.unet.conv_in.weight.is_meta
    facts["nor drawn with it"] = torch.equal(draw(bridged), pictures)

    # A card without room: ComfyUI streams layer by layer, LoRAs on the way; here all is loaded, LoRAs in it.
    with_lora = pair.bridged(other, clip, vae)
    drawn_with_lora = draw(with_lora)
    facts["LoRA matters"] = relative_error(drawn_with_lora, pictures) > 1e-3
    management.unload_all_models()
    management.vram_state = management.VRAMState.NO_VRAM
    sample_natively(other)
    facts["ComfyUI streams it"] = model.model.model_lowvram and model.lowvram_patch_counter() > 0
    facts["we have it whole, with its LoRA"] = torch.equal(draw(with_lora), drawn_with_lora)
    facts["and without"] = torch.equal(draw(bridged), pictures)
    facts["loaded as a whole"] = not model.model.model_lowvram and model.loaded_size() == model.model_size()
    del with_lora
    del bridged, bundle, residency, named
    gc.collect()
    facts["gone with its last user"] = not any(
        type(m.model).__name__ == "_LendingPatcher" for m in management.current_loaded_models if m.model
    )
    facts["and still ComfyUI's"] = bool(sample_natively(model).isfinite().all())
print(json.dumps(facts))
"""


def test_weights_are_comfyuis_own_and_come_and_go_with_them(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    assert failed(run(comfy_install, NO_COPY, tmp_path)) == []


LORAS = """
import comfy.sd
from safetensors.torch import save_file

with torch.inference_mode():
    pair = create_bridge_pair(folder)
    model, clip, vae = pair.lend()
    loaded, plain = pair.loaded(), pair.bridged(model, clip, vae)
    pictures, before = draw(plain), sample_natively(model)
    layer = "lora_unet_input_blocks_7_1_transformer_blocks_0_attn2_to_k"
    style = {
        f"{layer}.lora_down.weight": torch.randn(2, 192), f"{layer}.lora_up.weight": torch.randn(128, 2),
        f"{layer}.alpha": torch.tensor(1.0),
    }
    save_file(style, folder / "style.safetensors")

    # ComfyUI's loader before the bridge is our loader behind it.
    styled, _ = comfy.sd.load_lora_for_models(model, clip, style, 0.7, 0.0)
    through_comfy = pair.bridged(styled, clip, vae)
    with torch.inference_mode(False), torch.no_grad():
        ours = load_lora(loaded.bundle, folder / "style.safetensors", 0.7)
    expected = draw(ModelHandle(ours, loaded.residency))
    facts["ComfyUI's LoRA"] = relative_error(draw(through_comfy), expected) < 1e-5
    facts["it matters"] = relative_error(expected, pictures) > 1e-3
    facts["not on the other branch"] = torch.equal(draw(plain), pictures)

    # A text encoder's LoRA is one, too.
    text = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    words = {f"{text}.lora_down.weight": torch.randn(2, 128), f"{text}.lora_up.weight": torch.randn(160, 2)}
    _, reworded = comfy.sd.load_lora_for_models(model, clip, words, 1.0, 0.5)
    with_words = pair.bridged(model, reworded, vae)
    changed = pair.loaded()
    weight = changed.bundle.text_encoder_2.get_submodule("text_model.encoder.layers.0.mlp.fc1").weight
    weight += 0.5 * words[f"{text}.lora_up.weight"] @ words[f"{text}.lora_down.weight"]
    facts["a LoRA of CLIP"] = relative_error(draw(with_words), draw(changed)) < 1e-5
    facts["which matters"] = relative_error(draw(changed), pictures) > 1e-3

    # Our loader behind the bridge: ordinary and multiview parts, here and not elsewhere.
    with torch.inference_mode(False), torch.no_grad():
        trained = ModelHandle(load_lora(plain.bundle, pair.lora, 0.8), plain.residency)
        expected = load_lora(loaded.bundle, pair.lora, 0.8)
    expected = draw(ModelHandle(expected, loaded.residency))
    facts["our LoRA"] = torch.equal(draw(trained), expected)
    facts["our LoRA matters"] = relative_error(expected, pictures) > 1e-3
    facts["plain without it"] = torch.equal(draw(plain), pictures)
    management.unload_all_models()
    facts["also when it came back"] = torch.equal(draw(trained), expected)
    with torch.inference_mode(False), torch.no_grad():  # attached while nothing is bound
        management.unload_all_models()
        both = ModelHandle(load_lora(through_comfy.bundle, pair.lora, 0.8), through_comfy.residency)
        ours = load_lora(ours, pair.lora, 0.8)
    facts["both"] = relative_error(draw(both), draw(ModelHandle(ours, loaded.residency))) < 1e-5
    facts["ComfyUI's model keeps its bits"] = torch.equal(sample_natively(model), before)
print(json.dumps(facts))
"""


def test_loras_act_before_and_behind_the_bridge_and_nowhere_else(
    comfy_install: ComfyInstall, tmp_path: Path
) -> None:
    assert failed(run(comfy_install, LORAS, tmp_path)) == []
