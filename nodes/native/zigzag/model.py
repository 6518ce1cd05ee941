"""What a zag needs of ComfyUI's model: its noise levels, and the same model asked with other scales.

Nothing that the graph holds is changed: the weaker guider is a copy that shares model and conditions.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from typing import TYPE_CHECKING, Any

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP

from ..guidance import EMBEDDED_GUIDANCE_OPTION, GUIDANCE_KEY, MIN_GUIDANCE
from ..patch import VIEW_SCALE_OPTION
from .sigma_space import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor

    from .sigma_space import Family

logger = logging.getLogger(__name__)


def read_family(model_sampling: Any) -> Family:
    """What the network of a model predicts, from the model's "model_sampling".

    Raises:
        ValueError: a kind of model whose zag has not been derived.
    """
    kinds = comfy.model_sampling
    if isinstance(model_sampling, kinds.CONST):
        return "flow"
    unknown = (kinds.EDM, kinds.X0)  # X0 includes IMG_TO_IMG
    if isinstance(model_sampling, kinds.EPS) and not isinstance(model_sampling, unknown):
        return "velocity" if isinstance(model_sampling, kinds.V_PREDICTION) else "noise"
    names = [kind.__name__ for kind in type(model_sampling).__mro__ if kind.__module__ == kinds.__name__]
    raise ValueError(
        f"The zigzag sampler cannot go back with this kind of model ({', '.join(names) or 'unknown'}); it "
        "can with those that predict noise, v, or a flow (SD, SDXL, SD3, Flux, …). Use zigzag_steps=0 or "
        "another sampler."
    )


def read_level(model_sampling: Any, sigma: Tensor) -> NoiseLevel:
    """A noise level as the model treats it: its weights are found by asking with zeros and ones.

    Args:
        model_sampling: the model's "model_sampling", of a kind that `read_family` knows.
        sigma: one number.
    """
    at = sigma.reshape(1).float()
    one, zero = at.new_ones(1, 1, 1, 1), at.new_zeros(1, 1, 1, 1)
    return NoiseLevel(
        sigma=float(at),
        input_scale=float(model_sampling.calculate_input(at, one)),
        keep=float(model_sampling.calculate_denoised(at, zero, one)),
        take=float(model_sampling.calculate_denoised(at, one, zero)),
        sigma_data=float(getattr(model_sampling, "sigma_data", 1.0)),
    )


def weaken(
    model: Any, extra_args: dict[str, Any], guidance: float, view_scale: float
) -> tuple[Any, dict[str, Any]]:
    """What a zag asks: the model with another guidance, and the arguments with another view scale.

    Where guidance is embedded (Embed Guidance), that is what becomes another, and the guider's cfg stays.

    Args:
        model: as a sampler gets it: inpainting around a guider.
        extra_args: of every evaluation; they stay as they are.
        guidance: of the zag.
        view_scale: of the zag.

    Raises:
        ValueError: neither model nor guider has a single guidance that could be this one.
    """
    options = extra_args.get("model_options", {})
    transformer_options = {**options.get("transformer_options", {}), VIEW_SCALE_OPTION: view_scale}
    if GUIDANCE_KEY in transformer_options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}):
        if guidance < MIN_GUIDANCE:
            raise ValueError(
                f"inverse_guidance={guidance:g} is too low for a model with embedded guidance, which starts "
                f"at {MIN_GUIDANCE:g} (none). Use {MIN_GUIDANCE:g} or more."
            )
        transformer_options[EMBEDDED_GUIDANCE_OPTION] = guidance
        weaker = model
    else:
        weaker = copy.copy(model)
        weaker.inner_model = _weaker_guider(model.inner_model, guidance)
    options = {**options, "transformer_options": transformer_options}
    return weaker, {**extra_args, "model_options": options}


def check_sigmas(sigmas: Tensor, zigzag_steps: int) -> None:
    """Refuse noise levels in which so many first steps cannot zigzag.

    Raises:
        ValueError: fewer steps than zigzags, or a zigzag step that does not go towards less noise.
    """
    num_steps = len(sigmas) - 1
    if zigzag_steps > num_steps:
        raise ValueError(
            f"zigzag_steps={zigzag_steps} must lie between 0 and the number of steps, here {num_steps} (the "
            f"sigmas are {num_steps + 1} numbers). Use fewer zigzags or more steps."
        )
    first = sigmas[: zigzag_steps + 1]
    if not torch.isfinite(first).all() or bool((first[1:] >= first[:-1]).any()):
        shown = ", ".join(f"{float(sigma):.4g}" for sigma in first[:8])
        raise ValueError(
            f"The sigmas of the zigzag steps are {shown}; they must fall, from more noise to less. Do not "
            "flip them for this sampler."
        )


def check_cache(extra_args: dict[str, Any], sigmas: Tensor, zigzag_steps: int) -> None:
    """Refuse ComfyUI's caches (EasyCache, LazyCache) that may skip evaluations of the zigzag steps.

    They compare an evaluation with the one before; a zag is not the next step, and has another guidance.

    Args:
        extra_args: of every evaluation.
        sigmas: of the run.
        zigzag_steps: how many first steps zigzag.

    Raises:
        ValueError: a cache begins within them.
    """
    cache = extra_args.get("model_options", {}).get("transformer_options", {}).get("easycache")
    if cache is None or zigzag_steps == 0:
        return
    # Known while ComfyUI samples; a cache that does not tell may skip anywhere.
    begin = float(getattr(cache, "start_t", math.inf))
    if float(sigmas[zigzag_steps - 1]) <= begin:
        name = getattr(cache, "name", type(cache).__name__)
        raise ValueError(
            f"{name} may skip evaluations of the zigzag steps, where it would take a way back for a next "
            "step. Raise its start_percent until it begins behind them, remove it, or use zigzag_steps=0."
        )


def _weaker_guider(guider: Any, guidance: float) -> Any:
    cfg, kind = getattr(guider, "cfg", None), type(guider).__name__
    if not isinstance(cfg, (int, float)) or not _takes_one_number(getattr(guider, "set_cfg", None)):
        raise ValueError(
            f"The guider ({kind}) has no single guidance that could be weaker on the way back. Use "
            "CFGGuider, or zigzag_steps=0."
        )
    if math.isclose(cfg, guidance):
        logger.warning(
            "The zigzag goes forth and back with the same guidance (%g): unless the views have another scale "
            "on the way back, it adds nothing. Set inverse_guidance below the guider's cfg; below 1 for "
            "models that are sampled with cfg 1.",
            guidance,
        )
        return guider
    if not guider.conds.get("negative"):
        raise ValueError(
            f"inverse_guidance={guidance:g} needs a guider with a negative conditioning, and {kind} has "
            f"none: its guidance is always {cfg:g}. Use CFGGuider, or inverse_guidance={cfg:g}."
        )
    weaker = copy.copy(guider)
    weaker.set_cfg(guidance)
    return weaker


def _takes_one_number(set_cfg: Any) -> bool:
    """DualCFGGuider, PerpNegGuider and the like take two."""
    try:
        inspect.signature(set_cfg).bind(1.0)
    except TypeError:
        return False
    return True
