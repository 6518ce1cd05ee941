"""SDXL's real widths and depths, random weights, one evaluation: ComfyUI's patched UNet and our path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

FULL_SIZE = """
import json, math, torch
from dataclasses import replace
from pathlib import Path
sys.path.append(sys.argv[1])
folder, dtype, depths, facts = Path(sys.argv[2]), getattr(torch, sys.argv[3]), json.loads(sys.argv[4]), {}
from native_pair import *
from native_pair import create_camera_encoder, create_modules, install_multiview_attention
from native_pair import original_unet, save_adapter
from benchmarks.sdxl_files import FULL
from pack.t2mv_core.bundle import ModelBundle
from pack.t2mv_core.schedule import schedule_from_config
from pack.t2mv_core.formats.strict import without_weights
from comfy.model_patcher import ModelPatcher
import comfy.model_detection

size = replace(FULL, depths=tuple(depths))
torch.manual_seed(0)

def fill(module):
    # Memory for one copy only; layers as torch initialises them, norms left out.
    for name, parameter in list(module.named_parameters()):
        if not parameter.is_meta:
            continue
        if parameter.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            tensor = torch.full(parameter.shape, float(is_scale), dtype=dtype)
        else:
            bound = 1 / math.sqrt(parameter[0].numel())
            tensor = torch.empty(parameter.shape, dtype=dtype).uniform_(-bound, bound)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))

with torch.inference_mode(False), torch.no_grad():
    unet = create_modules(size, is_empty=True)["unet"]
    fill(unet)
    weights = original_unet(unet.state_dict(), size)  # the same memory under other names
    config = comfy.model_detection.model_config_from_unet(dict(weights), "")
    facts["class"] = type(config).__name__
    config.set_inference_dtype(dtype, None)
    base = config.get_model(weights, "", device="meta")
    base.diffusion_model.load_state_dict(weights, assign=True)
    model = ModelPatcher(base.eval(), torch.device("cpu"), torch.device("cpu"))
    with without_weights():
        install_multiview_attention(unet)
        encoder = create_camera_encoder(unet, 8)
    fill(unet)
    fill(encoder)
    unet.eval(), encoder.eval()
    save_adapter(unet, encoder, folder / "mvadapter.safetensors")
    schedule = schedule_from_config({"_class_name": "LCMScheduler"})
    bundle = ModelBundle(unet, None, None, None, encoder, schedule)
    pair = Pair(bundle, model, folder / "mvadapter.safetensors", size)
    facts["parameters"] = sum(p.numel() for p in unet.parameters())
    x, condition = torch.randn(1, 2, 4, 16, 16), pair.condition(1, (128, 128))
    rig = CameraRig((0.0, 90.0), (0.0, 0.0))
    ours = predict_noise(bundle, x, 620, condition, pair.cameras(rig, 16, 16), 1.0).float()
    theirs = evaluate(pair.patched(rig), x, 620, condition)
    plain = evaluate(model, x, 620, condition)
    rms = lambda y: float(y.float().square().mean().sqrt())
    facts["error"], facts["rms error"] = relative_error(theirs, ours), rms(theirs - ours) / rms(ours)
    facts["plain"], facts["plain rms"] = relative_error(plain, ours), rms(plain - ours) / rms(ours)
print(json.dumps(facts))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "depths", "bound"),
    [("float32", [0, 1, 2], 1e-4), ("bfloat16", [0, 2, 10], 0.05)],
    ids=["few blocks in float32", "SDXL in bfloat16"],
)
def test_one_evaluation_at_sdxls_width(
    comfy_install: ComfyInstall, tmp_path: Path, dtype: str, depths: list[int], bound: float
) -> None:
    """8 GB of memory; bfloat16 rounds differently in the two implementations, hence its bound."""
    args = (str(Path(__file__).parent), str(tmp_path), dtype, json.dumps(depths))
    facts = json.loads(comfy_install.run_code(FULL_SIZE, *args).splitlines()[-1])
    assert facts["class"] == ("SDXL" if depths[-1] == 10 else "Segmind_Vega")
    assert facts["error"] < bound
    assert facts["plain"] > 2 * bound
    assert facts["parameters"] > (2.9e9 if depths[-1] == 10 else 8e8)
