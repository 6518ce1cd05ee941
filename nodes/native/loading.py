"""An MV-Adapter file to weights under ComfyUI's management, for one kind of UNet; shared while in use."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ..common.folders import fingerprint
from ..common.memory import preferred_dtype
from .blocks import find_attentions, level_widths
from .modules import NativeAdapter

if TYPE_CHECKING:
    from torch import nn

# One patcher per file and type, whose clones all users hold: only clones know what the others patched.
_IN_USE: weakref.WeakValueDictionary[Hashable, ModelPatcher] = weakref.WeakValueDictionary()


def load_native_adapter(model: ModelPatcher, path: Path) -> ModelPatcher:
    """A patcher of the adapter's weights, its own to patch; the weights are shared with other users.

    Args:
        model: the MODEL it is meant for: decides sizes, number type and devices.
        path: the MV-Adapter file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the model's UNet is no SDXL UNet, or the file is damaged or made for another one.
    """
    from ...t2mv_core.formats.strict import Weight, WeightsFile, fill_module

    unet = check_unet(model)
    places, widths, dtype = find_attentions(unet), level_widths(unet), compute_dtype(model)
    identity = (fingerprint(path), dtype, model.load_device, tuple(places), tuple(widths))
    root = _IN_USE.get(identity)
    if root is None:
        with torch.inference_mode(False), torch.no_grad():
            module = NativeAdapter(places, widths)
            file = WeightsFile(path)
            fill_module(
                module, {key: Weight(file, key) for key in file.shapes}, dtype, "this model's UNet (SDXL's)"
            )
            module.eval().requires_grad_(False)
        root = ModelPatcher(module, model.load_device, model.offload_device)
        _IN_USE[identity] = root
    return root.clone()


def check_unet(model: ModelPatcher) -> Any:
    """The model's UNet.

    Raises:
        ValueError: it is another kind of network.
    """
    unet: nn.Module | None = getattr(model.model, "diffusion_model", None)
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"This model is a {type(model.model).__name__}, not an SDXL UNet; the MV-Adapter joins SDXL "
            "(Load Checkpoint, Load Diffusion Model) and what was made from it."
        )
    return unet


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The type a model computes in; its weights may be stored in a smaller one (fp8, GGUF)."""
    dtype = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize == 1:
        dtype = preferred_dtype()
    return dtype if dtype.itemsize > 1 else torch.bfloat16
