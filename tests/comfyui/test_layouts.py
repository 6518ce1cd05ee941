"""Our table of layouts against ComfyUI's own, at SDXL's real size (shapes only, no memory)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

COMPARE = """
import json, torch
pack, facts = sys.argv[1], {}
sys.path.append(pack)
from benchmarks.sdxl_files import FULL, TINY, create_modules
from benchmarks.sdxl_files import original_checkpoint, original_unet, original_vae
from t2mv_core.lora.layouts import sort_lora
from t2mv_core.formats.key_mapping import blocks_per_level, diffusers_unet_name
from t2mv_core.formats.key_mapping import diffusers_vae_name, transformers_clip_names
import comfy.diffusers_convert, comfy.lora, comfy.model_detection, comfy.utils
from comfy.ldm.models.autoencoder import AutoencoderKL

modules = create_modules(FULL, is_empty=True)
states = {part: dict(module.state_dict()) for part, module in modules.items()}
shapes = lambda state: {key: tuple(x.shape) for key, x in state.items()}

# The UNet: what ComfyUI makes of the names and shapes, and its map from diffusers' names.
names = original_unet(states["unet"], FULL)
prefixed = {"model.diffusion_model." + key: x for key, x in names.items()}
config = comfy.model_detection.model_config_from_unet(prefixed, "model.diffusion_model.")
facts["detected"] = type(config).__name__
config.set_inference_dtype(torch.bfloat16, None)
model = config.get_model(dict(prefixed), "model.diffusion_model.", device="meta")
theirs = shapes(model.diffusion_model.state_dict())
facts["ComfyUI's UNet has these weights"] = theirs == shapes(names)
per_level = blocks_per_level(names)
ours = {diffusers_unet_name(key, per_level): key for key in names}
table = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
facts["each UNet weight has a diffusers name"] = ours.keys() == states["unet"].keys()
facts["UNet names agree"] = all(table[name] == key for name, key in ours.items())
facts["UNet weights"] = len(ours)

# LoRA: every key that ComfyUI knows for this UNet leads us to the same weight.
layers = {n for n, m in modules["unet"].named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
one, num_keys, wrong = torch.ones(1, 1), 0, []
for short, place in comfy.lora.model_lora_keys_unet(model, {}).items():
    original = place.removeprefix("diffusion_model.")
    name = diffusers_unet_name(original, per_level).removesuffix(".weight")
    if not short.startswith("lora_unet_") or name not in layers or "class_embedding" in short:
        continue  # class_embedding: what models with classes call SDXL's add_embedding
    pair = {short + ".lora_down.weight": one, short + ".lora_up.weight": one}
    num_keys += 1
    wrong += [short] if list(sort_lora(pair, layers, 2).modules) != [name] else []
facts["LoRA keys that lead elsewhere"] = wrong[:5]
facts["LoRA keys"] = num_keys

# The VAE.
settings = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
            "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
with torch.device("meta"):
    vae = AutoencoderKL(ddconfig=settings, embed_dim=4)
original = original_vae(states["vae"], FULL)
facts["ComfyUI's VAE has these weights"] = shapes(vae.state_dict()) == shapes(original)
tiny = {part: dict(module.state_dict()) for part, module in create_modules(TINY).items()}
renamed = {}
for key, tensor in comfy.diffusers_convert.convert_vae_state_dict(dict(states["vae"])).items():
    name, change = diffusers_vae_name(key, 4)
    renamed[name] = change(tensor) if change else tensor
facts["VAE names agree"] = shapes(renamed) == shapes(states["vae"])

# The second text encoder, with values: ComfyUI's own conversion of open_clip's layout.
prefix = "conditioner.embedders.1.model."
file = {k.removeprefix(prefix): x for k, x in original_checkpoint(tiny, TINY).items() if k.startswith(prefix)}
converted = comfy.utils.clip_text_transformers_convert(dict(file), "", "")
theirs = {key.removeprefix("text_model."): x for key, x in converted.items() if key != "logit_scale"}
mine = {}
for key, tensor in file.items():
    for name, change in transformers_clip_names(key):
        if name != "logit_scale":
            mine[name] = change(tensor) if change else tensor
facts["text encoder names agree"] = mine.keys() == theirs.keys()
facts["text encoder values agree"] = all(torch.equal(mine[key], x) for key, x in theirs.items())
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(comfy_install: ComfyInstall) -> dict[str, Any]:
    pack = str(Path(__file__).parents[2])
    return json.loads(comfy_install.run_code(COMPARE, pack).splitlines()[-1])


def test_unet_names_are_comfyuis(facts: dict[str, Any]) -> None:
    assert facts["detected"] == "SDXL"
    assert facts["UNet weights"] == 1680  # SDXL's UNet has so many
    assert facts["ComfyUI's UNet has these weights"]
    assert facts["each UNet weight has a diffusers name"]
    assert facts["UNet names agree"]


def test_lora_names_are_comfyuis(facts: dict[str, Any]) -> None:
    assert facts["LoRA keys that lead elsewhere"] == []
    assert facts["LoRA keys"] > 1500  # both namings of every layer


def test_vae_and_text_encoder_names_are_comfyuis(facts: dict[str, Any]) -> None:
    for fact in ("ComfyUI's VAE has these weights", "VAE names agree", "text encoder names agree",
                 "text encoder values agree"):  # fmt: skip
        assert facts[fact], fact
