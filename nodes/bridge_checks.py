"""Which of ComfyUI's models can lend their weights to a T2MV_MODEL, and which cannot: refused in words.

The layers that compute are diffusers' and transformers'. They obey what is in the weights (LoRAs of ComfyUI's
loaders, of any kind), and nothing that ComfyUI does around its own layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sdxl_clip import SDXLClipModel

from .native_loading import check_unet
from .native_patch import adapter_of

if TYPE_CHECKING:
    from torch import Tensor

INSTEAD = "Use Load Model (T2MV) instead."
NUMBER_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_OBEYED_OBJECTS = {"model_sampling", "manual_cast_dtype"}
_PATCHES = "patches of its attention or blocks (FreeU, HyperTile, Embed Guidance, for example)"
_SCHEDULE_TOLERANCE = 1e-3
PENULTIMATE_LAYER = -2


def check_model(model: Any) -> str | None:
    """Refuse a MODEL that is no plain SDXL.

    Returns:
        How it says it is to be sampled: "lcm", or None for SDXL's own way.

    Raises:
        ValueError: with what it is, or what was done to it, and what to do.
    """
    if not isinstance(model, ModelPatcher):
        raise ValueError(f"model is a {type(model).__name__}; connect the MODEL of Load Checkpoint.")
    kind = type(model.model)
    if kind is not comfy.model_base.SDXL:
        raise ValueError(f"This MODEL is a {kind.__name__}, not SDXL; connect SDXL, or a model made from it.")
    if adapter_of(model) is not None:
        raise ValueError(
            "This MODEL has an MV-Adapter already (Apply MV-Adapter); this node brings one itself. Connect "
            "the MODEL from before that node."
        )
    _check_patcher("MODEL", model)
    unet = check_unet(model)
    if getattr(unet, "num_head_channels", None) != 64 or unet.in_channels != 4:
        raise ValueError(
            f"This MODEL is no plain SDXL: it has {unet.in_channels} input channels (an inpainting model has "
            "9), or attention heads of another width. Connect an SDXL model for pictures from text."
        )
    if not isinstance(model.model.latent_format, comfy.latent_formats.SDXL):
        raise ValueError(f"This MODEL has latents of another scale than SDXL's. {INSTEAD}")
    dtype = check_number_type("MODEL", unet.state_dict())
    computes_in = model.get_model_object("manual_cast_dtype")
    if computes_in not in (None, dtype):
        raise ValueError(
            f"The MODEL's weights are stored in {_name(dtype)} and computed in {_name(computes_in)}; a "
            f"T2MV_MODEL computes in the type they are stored in. Start ComfyUI with --{_flag(computes_in)}, "
            "or use Load Model (T2MV) with that precision."
        )
    return _sampler(model)


def check_clip(clip: Any) -> None:
    """Refuse a CLIP that is not SDXL's two text encoders, or is asked for another layer than SDXL's.

    Raises:
        ValueError: with what it is and what to do.
    """
    encoders = getattr(clip, "cond_stage_model", None)
    if type(encoders) is not SDXLClipModel:
        what = "missing" if encoders is None else f"a {type(encoders).__name__}"
        raise ValueError(
            f"CLIP is {what}; connect SDXL's two text encoders (Load Checkpoint, DualCLIPLoader)."
        )
    if clip.layer_idx not in (None, PENULTIMATE_LAYER):
        raise ValueError(
            f"CLIP Set Last Layer asks for layer {clip.layer_idx}; T2MV reads the last but one "
            f"({PENULTIMATE_LAYER}), as SDXL was trained. Set it to {PENULTIMATE_LAYER}, or remove that node."
        )
    if clip.apply_hooks_to_conds or clip.use_clip_schedule:
        raise ValueError(f"CLIP has hooks that change over the steps, which only ComfyUI obeys. {INSTEAD}")
    _check_patcher("CLIP", clip.patcher)
    for name in ("clip_l", "clip_g"):
        check_number_type("CLIP", getattr(encoders, name).transformer.state_dict())


def check_vae(vae: Any) -> None:
    """Refuse a VAE that is missing or patched; what kind it is shows when its weights are compared.

    Raises:
        ValueError: with what to do.
    """
    network = getattr(vae, "first_stage_model", None)
    if network is None:
        raise ValueError("VAE is missing: the checkpoint has none. Connect SDXL's from Load VAE.")
    _check_patcher("VAE", vae.patcher)
    check_number_type("VAE", network.state_dict())


def check_number_type(label: str, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The one number type of a part's weights.

    Raises:
        ValueError: it is one that ordinary layers cannot compute with (fp8, quantised), or there are several.
    """
    types = {tensor.dtype: key for key, tensor in tensors.items()}
    odd = next((dtype for dtype in types if dtype not in NUMBER_TYPES), None)
    if odd is not None:
        raise ValueError(
            f"The {label} has weights in {_name(odd)} ({types[odd]!r}), which only ComfyUI's own layers "
            "compute with. Load it in fp16, bf16 or fp32 (weight_dtype default), or use the nodes under "
            "T2MV/native."
        )
    if len(types) != 1:
        mixed = ", ".join(f"{_name(dtype)} ({key!r})" for dtype, key in types.items())
        raise ValueError(f"The {label} mixes number types: {mixed}. Load it in one of them.")
    return next(iter(types))


def _check_patcher(label: str, patcher: Any) -> None:
    if type(patcher) is not ModelPatcher:
        raise ValueError(
            f"The {label} is managed by a {type(patcher).__name__} (GGUF, or another way of keeping "
            f"weights), which does not hold plain tensors. {INSTEAD}"
        )
    found = next(iter(_not_obeyed(patcher)), None)
    if found is not None:
        raise ValueError(
            f"The {label} has {found}, which a T2MV_MODEL would not obey. Connect it from before that node; "
            "LoRAs are obeyed. Or use the nodes under T2MV/native, which obey everything."
        )


def _not_obeyed(patcher: ModelPatcher) -> Iterable[str]:
    """What was done to a model besides its weights, in words."""
    options = {key: value for key, value in patcher.model_options.items() if value}
    inner = options.pop("transformer_options", {})
    if inner.get("patches") or inner.get("patches_replace"):
        kinds = sorted({*inner.get("patches", ()), *inner.get("patches_replace", ())})
        yield f"{_PATCHES}: {', '.join(kinds)}"
    yield from (f"the option {key!r} (of a sampling or guidance node)" for key in sorted(options))
    others = sorted(key for key, x in inner.items() if x and key not in ("patches", "patches_replace"))
    yield from (f"the option {key!r}" for key in others)
    objects = sorted(patcher.object_patches.keys() - _OBEYED_OBJECTS)
    yield from (f"a replaced part, {name!r}" for name in objects)
    for name, what in (
        ("wrappers", "a wrapper around its calls"),
        ("injections", "injected layers"),
        ("additional_models", "another model joined to it"),
        ("hook_patches", "hooks that change its weights over the steps"),
        ("forced_hooks", "hooks that change its weights over the steps"),
        ("weight_wrapper_patches", "weights that are changed whenever they are used"),
        ("callbacks", "a callback of another node"),
        ("attachments", "an attachment of another node"),
    ):
        if getattr(patcher, name, None):
            yield what


def _sampler(model: ModelPatcher) -> str | None:
    """How to sample, as `check_model` gives it; refuses predictions and schedules of other kinds."""
    sampling = model.get_model_object("model_sampling")
    predicts = type(sampling).calculate_denoised
    is_lcm = predicts is _lcm_denoised()
    if not is_lcm and predicts is not comfy.model_sampling.EPS.calculate_denoised:
        kind = next(kind for kind in type(sampling).__mro__ if "calculate_denoised" in vars(kind))
        raise ValueError(
            f"This MODEL does not predict noise, but {kind.__name__} (a v-prediction, EDM or flow model, for "
            "example); T2MV needs an epsilon model. Connect one, or take the ModelSampling node away."
        )
    _check_schedule(sampling)
    return "lcm" if is_lcm else None


def _lcm_denoised() -> Any:
    from comfy_extras.nodes_model_advanced import LCM

    return LCM.calculate_denoised


def _check_schedule(sampling: Any) -> None:
    """Only SDXL's own noise schedule, or what Shift SNR makes of it: the samplers shift it themselves."""
    from ..t2mv_core.architecture import SCHEDULER_CONFIG
    from ..t2mv_core.schedule import schedule_from_config

    # Continuous schedules (ModelSamplingContinuousEDM with 'eps') have no timesteps to compare.
    is_discrete = isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)
    stride = sampling.num_timesteps // len(sampling.sigmas) if is_discrete else 1
    for shift in (1.0, 8.0) if is_discrete else ():
        alpha_bar = schedule_from_config({**SCHEDULER_CONFIG, "t2mv_snr_shift": shift}).alpha_bar
        sigmas = (1 / alpha_bar - 1).sqrt()[stride - 1 :: stride]
        given = sampling.sigmas.double().cpu()
        if given.shape == sigmas.shape and bool(((given / sigmas).log().abs() < _SCHEDULE_TOLERANCE).all()):
            return
    raise ValueError(
        "This MODEL has another noise schedule than SDXL's (zsnr, a continuous one, or Shift SNR with "
        "another scale than 8); connect it from before that node."
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _flag(dtype: Any) -> str:
    return {torch.float32: "fp32-unet", torch.bfloat16: "bf16-unet"}.get(dtype, "fp16-unet")
