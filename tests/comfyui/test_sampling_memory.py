"""What sampling asks of memory, and what it gives back before it decodes, in a process like ComfyUI's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

PREPARE = """
import gc
import comfy.model_management as model_management

from pack.nodes.common.folders import register_folders
from pack.nodes.loaders.load_model import load_handle
from pack.nodes.loaders.model_files import ModelChoice
from pack.nodes.sampling import candidates, sample
from pack.t2mv_core.samplers import SamplingSettings
from pack.t2mv_core.toybox import silhouettes

register_folders()  # as the entry point does
numbers = {"steps": 1, "guidance": 2.0, "view_scale": 1.0}
picture = torch.full((1, 64, 64, 3), silhouettes.BACKGROUND)
"""

ROOM_FOR_WORK = """
load_models_gpu, asked, handles = model_management.load_models_gpu, [], []

def note(patchers, memory_required=0, **options):
    names = [name for name, patcher in handles[-1].residency._patchers.items() if patcher in patchers]
    asked.append([names, memory_required])
    load_models_gpu(patchers, memory_required=memory_required, **options)

model_management.load_models_gpu = note

def ask(model, reference=None, **options):
    asked.clear()
    handles.append(load_handle(ModelChoice(model), "auto", **options))
    sample.sample_views("standard", handles[-1], "a red mug", 3, reference=reference, **numbers)
    return list(asked)

with torch.inference_mode():
    print(json.dumps({
        "one pass": ask("toybox"),
        "two passes": ask("toybox teacher"),
        "one pass after the other": ask("toybox teacher", has_sequential_guidance=True),
        "of a picture": ask("toybox image", picture),
    }))
"""


def test_comfyui_makes_room_for_the_work_too(comfy_install: ComfyInstall) -> None:
    asked = comfy_install.run_with_pack(PREPARE + ROOM_FOR_WORK)
    texts, cameras = [["text_encoder", "text_encoder_2"], 0], [["camera_encoder"], 0]
    # Six views of 16x16 latent pixels in float32: 6 * 256 * 4 bytes * 0.01 * 0.8 MiB.
    one_pass = [["unet", "vae"], pytest.approx(6144 * 0.008 * 2**20)]
    two_passes = [["unet", "vae"], pytest.approx(2 * 6144 * 0.008 * 2**20)]
    # 2178 * 64 per latent pixel of one view, and 1767 per pixel of a picture of 64x64.
    decoding, encoding = [["vae"], 2178 * 64 * 256 * 4], [["vae"], 1767 * 64 * 64 * 4]
    assert asked == {
        "one pass": [texts, cameras, one_pass, one_pass, decoding],
        "two passes": [texts, cameras, two_passes, two_passes, decoding],
        "one pass after the other": [texts, cameras, one_pass, one_pass, decoding],
        "of a picture": [texts, cameras, encoding, one_pass, one_pass, decoding],
    }


FEATURES = """
from pack.t2mv_core.denoiser import CameraFeatures
from pack.t2mv_core.reference import NO_PICTURE, ReferenceFeatures

decode, left = sample.decode_set, []

def note(*args):
    features = [each for each in gc.get_objects() if type(each) in (CameraFeatures, ReferenceFeatures)]
    left.append([type(each).__name__ for each in features if each is not NO_PICTURE])
    return decode(*args)

with torch.inference_mode():
    model = load_handle(ModelChoice("toybox image"), "auto")
    sample.SetSampler(model, "standard", SamplingSettings(), None, ["a red mug"])  # imports what it needs
    gc.collect()
    gc.disable()  # what is freed is freed by the nodes
    sample.decode_set = note
    sample.sample_views("standard", model, "a red mug", 3, reference=picture, **numbers)
    candidates.sample_candidates(model, (), ["a red mug"], [(0, 3)], "standard", reference=picture, **numbers)
print(json.dumps(left))
"""


def test_features_are_gone_before_views_are_decoded(comfy_install: ComfyInstall) -> None:
    assert comfy_install.run_with_pack(PREPARE + FEATURES) == [[], []]
