"""ComfyUI's options for VAEs: where they compute, and in which number format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import ComfyInstall

OPTIONS = """
import comfy.model_management as model_management
import folder_paths

# ComfyUI takes "cpu:0" for a card; it computes the same.
card, processor = torch.device("cpu", 0), torch.device("cpu")
model_management.get_torch_device = lambda: card
folder_paths.add_model_folder_path("diffusers", sys.argv[2])

from pack.nodes.common.folders import register_folders
from pack.nodes.loaders.load_model import load_handle
from pack.nodes.loaders.model_files import ModelChoice
from pack.nodes.sampling.sample import sample_views

register_folders()  # as the entry point does

def dtypes(precision, model="diffusers/tiny"):
    handles.append(load_handle(ModelChoice(model), precision))
    return [str(part.dtype).removeprefix("torch.") for part in (handles[-1].bundle, handles[-1].bundle.vae)]

handles, facts = [], {}
with torch.inference_mode():
    facts["auto"] = dtypes("auto")
    args.bf16_vae = True
    facts["auto, --bf16-vae"] = dtypes("auto")
    facts["float8, --bf16-vae"] = dtypes("float8")
    facts["float32, --bf16-vae"] = dtypes("float32")
    facts["toybox, --bf16-vae"] = dtypes("auto", "toybox")
    args.bf16_vae, args.cpu_vae = False, True
    handles.clear()  # the next one is loaded anew
    facts["bfloat16, --cpu-vae"] = dtypes("bfloat16")
    handles.clear()
    facts["toybox, --cpu-vae"] = dtypes("auto", "toybox")
    numbers = {"steps": 1, "guidance": 2.0, "view_scale": 1.0}
    images, *_ = sample_views("standard", handles[0], "a red mug", 3, **numbers)
    facts["drawn"] = list(images.shape)
    patchers = handles[0].residency._patchers.items()
    facts["on the processor"] = [name for name, patcher in patchers if patcher.model.device == processor]
    facts["sampled on"] = str(handles[0].residency.load("unet", "vae"))
    facts["decoded on"] = str(handles[0].residency.load("vae"))
print(json.dumps(facts))
"""


def test_the_vae_follows_comfyuis_options(comfy_install: ComfyInstall, comfy_base: Path) -> None:
    assert comfy_install.run_with_pack(OPTIONS, str(comfy_base / "models" / "diffusers")) == {
        "auto": ["float32", "float32"],
        "auto, --bf16-vae": ["float32", "bfloat16"],
        "float8, --bf16-vae": ["float32", "bfloat16"],
        "float32, --bf16-vae": ["float32", "float32"],
        "toybox, --bf16-vae": ["float32", "float32"],
        "bfloat16, --cpu-vae": ["bfloat16", "float32"],
        "toybox, --cpu-vae": ["float32", "float32"],
        "drawn": [6, 64, 64, 3],
        "on the processor": ["vae"],
        "sampled on": "cpu:0",
        "decoded on": "cpu",
    }
