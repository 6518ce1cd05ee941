"""The bridge at SDXL's real size: every name and shape on paper, and real memory at its widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

PRELUDE = """
import gc, json, torch
from pathlib import Path
sys.path.append(sys.argv[1])
folder, facts = Path(sys.argv[2]), {}
from bridge_pair import *
import comfy.sdxl_clip, comfy.supported_models
from comfy.ldm.models.autoencoder import AutoencoderKL

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    "context_dim": 2048, "num_head_channels": 64, "use_linear_in_transformer": True,
    "use_spatial_transformer": True, "legacy": False, "num_classes": "sequential", "adm_in_channels": 2816,
    "use_temporal_attention": False, "dtype": torch.bfloat16,
}
BLOCKS = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
          "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}

def create(**unet):
    # ComfyUI's own classes, without memory.
    model = comfy.supported_models.SDXL({**UNET, **unet}).get_model({}, "", torch.device("meta"))
    encoders = comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.bfloat16)
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=BLOCKS, embed_dim=4).bfloat16()
    return model, encoders, vae
"""
ON_PAPER = (
    PRELUDE
    + """
from pack.t2mv_core.borrowed import borrow_part

model, encoders, vae = create()
first = encoders.clip_l.transformer.state_dict()
del first["text_projection.weight"]
for name, tensors in {
    "unet": model.diffusion_model.state_dict(), "vae": vae.state_dict(), "text_encoder": first,
    "text_encoder_2": encoders.clip_g.transformer.state_dict(),
}.items():
    part = borrow_part(name, tensors)
    part.bind(tensors, "meta")
    facts[name] = [sum(x.numel() for x in part.module.parameters()), sum(x.numel() for x in tensors.values())]
print(json.dumps(facts))
"""
)
IN_MEMORY = (
    PRELUDE
    + """
import comfy.model_management as management
from types import SimpleNamespace
from comfy.model_patcher import ModelPatcher

def fill(module):
    shapes = {key: (x.shape, x.dtype) for key, x in module.state_dict().items()}
    module.load_state_dict({
        key: torch.empty(shape, dtype=dtype).uniform_(-0.02, 0.02) for key, (shape, dtype) in shapes.items()
    }, assign=True)

def resident_gib(field="VmRSS"):
    gc.collect()
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**20

cpu = torch.device("cpu")
with torch.inference_mode(False), torch.no_grad():
    small = create_bridge_pair(folder)
    draw(small.bridged(*small.lend()))  # what is imported is imported
    model, encoders, vae = create(
        transformer_depth=[0, 0, 1, 1, 2, 2], transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2],
        transformer_depth_middle=2,
    )
    for part in (model.diffusion_model, encoders, vae):
        fill(part)
    # The adapter's file, from modules that are gone before anything is measured.
    from native_pair import create_camera_encoder, install_multiview_attention, save_adapter
    from pack.t2mv_core.borrowed import borrow_part
    unet = borrow_part("unet", model.diffusion_model.state_dict()).module
    install_multiview_attention(unet)
    unet_adapter, adapter = create_camera_encoder(unet, 8).bfloat16(), folder / "large.safetensors"
    for processor in unet.attn_processors.values():
        if isinstance(processor, torch.nn.Module):
            processor.bfloat16()
    save_adapter(unet, unet_adapter, adapter)
    del unet, unet_adapter

    patchers = [ModelPatcher(x, cpu, cpu) for x in (model, encoders, vae)]
    clip = SimpleNamespace(
        cond_stage_model=encoders, patcher=patchers[1], layer_idx=None, apply_hooks_to_conds=None,
        use_clip_schedule=False,
    )
    lent_vae = SimpleNamespace(first_stage_model=vae, patcher=patchers[2])
    facts["weights, GiB"] = sum(management.module_size(x) for x in (model, encoders, vae)) / 2**30
    facts["adapter, GiB"] = adapter.stat().st_size / 2**30
    at_first = resident_gib()
with torch.inference_mode():
    handle = BridgePair(None, adapter, None).bridged(patchers[0], clip, lent_vae)
    facts["bridging, GiB"] = resident_gib() - at_first
    pictures = draw(handle)
    facts["finite"] = bool(pictures.isfinite().all())
    facts["after drawing, GiB"] = resident_gib() - at_first
    facts["at most, GiB"] = resident_gib("VmHWM") - at_first
print(json.dumps(facts))
"""
)


def test_every_weight_of_sdxl_has_its_place(comfy_install: ComfyInstall, tmp_path: Path) -> None:
    out = comfy_install.run_code(ON_PAPER, str(Path(__file__).parent), str(tmp_path))
    facts = json.loads(out.splitlines()[-1])
    assert facts["unet"] == [2_567_463_684] * 2  # SDXL's published number
    for ours, theirs in facts.values():
        assert ours == theirs > 8e7


@pytest.mark.slow
def test_memory_grows_by_the_adapter_alone(comfy_install: ComfyInstall, tmp_path: Path) -> None:
    """SDXL's widths, few blocks: 3.3 GiB of weights."""
    out = comfy_install.run_code(IN_MEMORY, str(Path(__file__).parent), str(tmp_path))
    facts = json.loads(out.splitlines()[-1])
    assert facts["finite"]
    assert facts["bridging, GiB"] < 1.1 * facts["adapter, GiB"] + 0.1
    assert facts["at most, GiB"] < 0.5 * facts["weights, GiB"]
