"""What cannot become a T2MV_MODEL is refused in words, before the adapter's file is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

REFUSED = """
import json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, told = Path(sys.argv[2]), {}
from bridge_pair import *
import comfy.hooks, comfy.model_base, comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingContinuousEDM
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_hooks import SetClipHooks
from native_pair import AdapterSettings, apply_adapter, create_pair, load_native_adapter
from pack.nodes.native_schedule import T2MVShiftSNR

missing = Path("no adapter is read")

def tell(name, model, clip, vae):
    try:
        bridge(model, clip, vae, missing)
    except ValueError as error:
        told[name] = str(error)
    except FileNotFoundError:
        told[name] = "accepted"

class OtherPatcher(ModelPatcher):
    pass

with torch.inference_mode():
    pair = create_bridge_pair(folder)
    parts = model, clip, vae = pair.lend()
    tell("plain", *parts)
    tell("nothing", None, clip, vae)
    native_file = create_pair(folder).adapter_file  # of the same UNet, for ComfyUI's VAE of scale 8
    with_adapter = apply_adapter(model, load_native_adapter(model, native_file), RIG, AdapterSettings())
    sampling = ModelSamplingDiscrete()
    for name, patched in {
        "adapter": with_adapter,
        "FreeU": FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0],
        "HyperTile": HyperTile.execute(model, 256, 2, 0, False)[0],
        "PAG": PerturbedAttentionGuidance.execute(model, 3.0).result[0],
        "RescaleCFG": RescaleCFG().patch(model, 0.7)[0],
        "v_prediction": sampling.patch(model, "v_prediction", False)[0],
        "x0": sampling.patch(model, "x0", False)[0],
        "zsnr": sampling.patch(model, "eps", True)[0],
        "continuous": ModelSamplingContinuousEDM().patch(model, "eps", 120.0, 0.002)[0],
        "other shift": T2MVShiftSNR.execute(model, "lcm", 3.0).result[0],
        "compute type": ModelComputeDtype().patch(model, "bf16")[0],
    }.items():
        tell(name, patched, clip, vae)
    for name, change in {
        "wrapper": lambda m: m.add_wrapper("apply_model", print),
        "injection": lambda m: m.set_injections("bypass", [print]),
        "callback": lambda m: m.add_callback("on_load_after", print),
        "attachment": lambda m: m.set_attachments("ipadapter", 1),
        "object": lambda m: m.add_object_patch("diffusion_model.out", torch.nn.Identity()),
        "weight wrapper": lambda m: m.add_weight_wrapper("diffusion_model.out.2.weight", print),
    }.items():
        change(changed := model.clone())
        tell(name, changed, clip, vae)
    tell("patcher", OtherPatcher(model.model, model.load_device, model.offload_device), clip, vae)
    whole = {"text_dtype": torch.float32, "vae_dtype": torch.float32}
    tell("fp8", pair.lend(torch.float8_e4m3fn, **whole)[0], clip, vae)
    mixed = pair.lend()[0]
    mixed.model.diffusion_model.out[2].to(torch.bfloat16)
    tell("mixed", mixed, clip, vae)

    unet = model.model.diffusion_model
    model.model.diffusion_model = torch.nn.Linear(1, 1)  # a TensorRT engine, for example
    tell("engine", *parts)
    model.model.diffusion_model = unet

    class Refiner(comfy.model_base.BaseModel):
        pass
    model.model.__class__, kind = Refiner, type(model.model)
    tell("refiner", *parts)
    model.model.__class__ = kind
    model.model.diffusion_model.in_channels = 9
    tell("inpainting", *parts)
    model.model.diffusion_model.in_channels = 4

    skipped = clip.clone()
    skipped.clip_layer(-2)
    tell("clip skip as trained", model, skipped, vae)
    skipped.clip_layer(-1)
    tell("clip skip", model, skipped, vae)
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.WeightHook())
    hooked = clip.clone()
    hooked.patcher.forced_hooks = hooks
    tell("clip hooks", model, hooked, vae)
    hooked = clip.clone()
    hooked.apply_hooks_to_conds = hooks
    tell("clip hooks on conditions", model, hooked, vae)
    tell("no clip", model, None, vae)
    tell("other clip", model, type("Other", (), {"cond_stage_model": torch.nn.Linear(1, 1)})(), vae)
    tell("clip in fp8", model, pair.lend(text_dtype=torch.float8_e4m3fn)[1], vae)
    tell("no vae", model, clip, type("Other", (), {"first_stage_model": None})())
    tiny = comfy.sd.comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()
    tell("tiny vae", model, clip, comfy.sd.VAE(tiny, dtype=torch.float32))
print(json.dumps(told))
"""

EXPECTED = {
    "plain": "accepted",
    "clip skip as trained": "accepted",
    "nothing": "connect the MODEL of Load Checkpoint",
    "adapter": "has an MV-Adapter already",
    "FreeU": "patches of its attention or blocks (FreeU, HyperTile, Embed Guidance, for example): "
    "output_block_patch",
    "HyperTile": "attn1_output_patch, attn1_patch",
    "PAG": "the option 'sampler_post_cfg_function'",
    "RescaleCFG": "the option 'sampler_cfg_function'",
    "v_prediction": "does not predict noise, but V_PREDICTION",
    "x0": "does not predict noise, but X0",
    "zsnr": "another noise schedule than SDXL's",
    "continuous": "another noise schedule than SDXL's",
    "other shift": "another noise schedule than SDXL's",
    "compute type": "stored in float32 and computed in bfloat16; a T2MV_MODEL computes in the type they are "
    "stored in. Start ComfyUI with --bf16-unet",
    "wrapper": "a wrapper around its calls",
    "injection": "injected layers",
    "callback": "a callback of another node",
    "attachment": "an attachment of another node",
    "object": "a replaced part, 'diffusion_model.out'",
    "weight wrapper": "changed whenever they are used",
    "patcher": "managed by a OtherPatcher (GGUF",
    "fp8": "weights in float8_e4m3fn",
    "mixed": "mixes number types",
    "engine": "not an SDXL UNet",
    "refiner": "is a Refiner, not SDXL",
    "inpainting": "9 input channels",
    "clip skip": "asks for layer -1",
    "clip hooks": "hooks that change its weights over the steps",
    "clip hooks on conditions": "hooks that change over the steps",
    "no clip": "CLIP is missing",
    "other clip": "CLIP is a Linear",
    "clip in fp8": "The CLIP has weights in float8_e4m3fn",
    "no vae": "VAE is missing",
    "tiny vae": "not a vae of SDXL",
}


@pytest.fixture(scope="module")
def told(comfy_install: ComfyInstall, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of the models was answered."""
    here, folder = str(Path(__file__).parent), str(tmp_path_factory.mktemp("bridge"))
    return json.loads(comfy_install.run_code(REFUSED, here, folder).splitlines()[-1])


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_refused_in_words(told: dict[str, str], name: str) -> None:
    assert EXPECTED[name] in told[name]


def test_all_were_tried(told: dict[str, str]) -> None:
    assert told.keys() == EXPECTED.keys()
