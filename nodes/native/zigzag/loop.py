"""The zigzag around ComfyUI's own samplers: every zig is one step of theirs, unchanged.

The order is that of docs/method.md, section 4, as in `t2mv_core.samplers.zmv`: zig, then `zigzag_repeats`
times zag and zig. A zag asks a shallow copy of the guider, which shares model and conditions; nothing that
the graph holds changes.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from ..comfyui import WrappersMP, k_diffusion
from ..guidance import EMBEDDED_GUIDANCE_OPTION, GUIDANCE, GUIDANCE_KEY
from ..patch import VIEW_SCALE_OPTION
from ..reference import REF_SCALE_OPTION
from ..schedule import read_family
from .sigma_space import invert, network_output, read_level, shown_latents

logger = logging.getLogger(__name__)

SAMPLERS = {"lcm": True, "euler": False, "euler_ancestral": True}
"""Samplers that take one step from one evaluation and keep no state -> whether they draw noise."""


@dataclass(frozen=True)
class ZigzagSettings:
    """Settings of the zigzag, checked by the node.

    Attributes:
        sampler: a name of SAMPLERS.
        zigzag_steps: K, the number of first steps that zigzag.
        zigzag_repeats: zag-zig pairs per zigzag step, at least 1.
        inverse_guidance: cfg of the zag.
        inverse_view_scale: view scale of the zag.
        inverse_ref_scale: scale of the pictures in the zag, for an MV-Adapter of image to multiview.
    """

    sampler: str
    zigzag_steps: int
    zigzag_repeats: int
    inverse_guidance: float
    inverse_view_scale: float
    inverse_ref_scale: float = 1.0


@torch.no_grad()
def sample_zigzag(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    settings: ZigzagSettings,
) -> Tensor:
    """Sample as ComfyUI's `sample_lcm` and the like: from noise at sigmas[0] to latents at sigmas[-1].

    Args:
        model: clean latents from (latents, σ per latent), with guidance and inpainting inside.
        x: latents at sigmas[0], in ComfyUI's space.
        sigmas: falling noise levels, [steps + 1].
        extra_args: for every evaluation; its "seed" seeds the noise.
        callback: called after every evaluation; "i" counts evaluations.
        disable: whether the console shows no bar.
        settings: of the zigzag.

    Raises:
        ValueError: the model, its guider or the sigmas do not allow the zigzag; before the first evaluation.
    """
    loop = _Loop(model, x, sigmas, extra_args or {}, callback, settings)
    for step in trange(len(sigmas) - 1, disable=disable):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        if step < settings.zigzag_steps:
            turn = loop.turning_point(sigma, sigma_next)
            for _ in range(settings.zigzag_repeats):
                x = loop.zag(loop.zig(x, sigma, turn), sigma, turn)
        x = loop.zig(x, sigma, sigma_next)
    return x


class _Loop:
    """One run: what zig and zag share."""

    def __init__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[[dict[str, Any]], None] | None,
        settings: ZigzagSettings,
    ) -> None:
        self._model, self._extra_args, self._callback = model, extra_args, callback
        self._sampler, self._draws_noise = settings.sampler, SAMPLERS[settings.sampler]
        self._num_evaluations = 0
        # One for the whole run: a sampler that made its own would draw the same noise at every step.
        self._noise_sampler = k_diffusion.default_noise_sampler(x, seed=extra_args.get("seed"))
        if settings.zigzag_steps:
            _check_sigmas(sigmas, settings.zigzag_steps)
            _check_cache(extra_args, float(sigmas[settings.zigzag_steps - 1]))
            self._model_sampling = model.inner_model.inner_model.model_sampling
            self._family = read_family(self._model_sampling)
            self._weak_model, self._weak_args = _weaken(model, extra_args, settings)

    def turning_point(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return σ' of a zag: the next level; at LCM's last step its own (docs/method.md, section 3)."""
        return sigma if self._sampler == "lcm" and sigma_next == 0 else sigma_next

    def zig(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Take one step of ComfyUI's sampler."""
        options = {"noise_sampler": self._noise_sampler} if self._draws_noise else {}
        return getattr(k_diffusion, f"sample_{self._sampler}")(
            self._model, x, torch.stack([sigma, sigma_next]), extra_args=self._extra_args, disable=True,
            callback=lambda event: self._report(event["x"], sigma, event["denoised"]), **options,
        )  # fmt: skip

    def zag(self, x_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Go back from σ' to σ, with the weaker guidance and the other scales."""
        own, back_to = (read_level(self._model_sampling, level) for level in (sigma_next, sigma))
        shown = shown_latents(x_next, own, back_to)
        denoised = self._weak_model(shown, sigma * shown.new_ones([len(shown)]), **self._weak_args)
        output = network_output(denoised, shown, back_to)
        x, clean = invert(self._family, output, x_next, own, back_to)
        self._report(x_next, sigma, clean)
        return x

    def _report(self, x: Tensor, sigma: Tensor, denoised: Tensor) -> None:
        index, self._num_evaluations = self._num_evaluations, self._num_evaluations + 1
        if self._callback is not None:
            event = {"x": x, "i": index, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
            self._callback(event)


def _weaken(model: Any, extra_args: dict[str, Any], settings: ZigzagSettings) -> tuple[Any, dict[str, Any]]:
    """Return the model (inpainting around a guider) and the arguments of a zag's evaluation.

    Behind Embed Guidance the embedded guidance changes and the guider's cfg stays.
    """
    options, guidance = extra_args.get("model_options", {}), settings.inverse_guidance
    transformer_options = {
        **options.get("transformer_options", {}),
        VIEW_SCALE_OPTION: settings.inverse_view_scale,
        REF_SCALE_OPTION: settings.inverse_ref_scale,
    }
    if GUIDANCE_KEY in transformer_options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}):
        if guidance < GUIDANCE.low:
            raise ValueError(
                f"inverse_guidance={guidance:g} is too low for a model with embedded guidance, which starts "
                f"at {GUIDANCE.low:g} (none). Use {GUIDANCE.low:g} or more."
            )
        transformer_options[EMBEDDED_GUIDANCE_OPTION] = guidance
        weaker = model
    else:
        weaker = copy.copy(model)
        weaker.inner_model = _weaker_guider(model.inner_model, guidance)
    options = {**options, "transformer_options": transformer_options}
    return weaker, {**extra_args, "model_options": options}


def _weaker_guider(guider: Any, guidance: float) -> Any:
    weaker, kind = copy.copy(guider), type(guider).__name__
    try:
        cfg = float(guider.cfg)
        weaker.set_cfg(guidance)
    except (AttributeError, TypeError) as error:  # DualCFGGuider, PerpNegGuider and the like have two numbers
        raise ValueError(
            f"The guider ({kind}) has no single guidance that could be weaker on the way back. Use "
            "CFGGuider, or zigzag_steps=0."
        ) from error
    if math.isclose(cfg, guidance):
        logger.warning(
            "The zigzag has the same guidance (%g) forward and back: unless the view scale differs, it adds "
            "nothing. Set inverse_guidance below the guider's cfg; below 1 for models sampled with cfg 1.",
            guidance,
        )
    elif not guider.conds.get("negative"):
        raise ValueError(
            f"inverse_guidance={guidance:g} needs a guider with a negative conditioning, and {kind} has "
            f"none: its guidance is always {cfg:g}. Use CFGGuider, or inverse_guidance={cfg:g}."
        )
    elif getattr(guider, "uncond_inner", guider) is None:
        raise ValueError(
            f"inverse_guidance={guidance:g} needs the model of the negative conditioning, which {kind} does "
            f"not load at cfg {cfg:g}. Use CFGGuider, or inverse_guidance={cfg:g}."
        )

    def predict_noise(*args: Any, **named: Any) -> Tensor:
        weaker.set_cfg(guidance)  # the node CFG Override has just set its own
        return type(guider).predict_noise(weaker, *args, **named)

    weaker.predict_noise = predict_noise
    return weaker


def _check_sigmas(sigmas: Tensor, zigzag_steps: int) -> None:
    num_steps, first = len(sigmas) - 1, sigmas[: zigzag_steps + 1]
    if zigzag_steps > num_steps:
        raise ValueError(
            f"zigzag_steps={zigzag_steps} must lie between 0 and the number of steps, here {num_steps} (the "
            f"sigmas are {num_steps + 1} numbers). Use fewer zigzags or more steps."
        )
    if not torch.isfinite(first).all() or bool((first[1:] >= first[:-1]).any()):
        numbers = ", ".join(f"{float(sigma):.4g}" for sigma in first[:8])
        raise ValueError(
            f"The sigmas of the zigzag steps are {numbers}; they must fall, from more noise to less. Do not "
            "flip them for this sampler."
        )


def _check_cache(extra_args: dict[str, Any], last_sigma: float) -> None:
    """Refuse ComfyUI's caches (EasyCache, LazyCache) that may skip an evaluation down to the last zigzag's σ.

    They compare an evaluation with the one before; a zag is not the next step, and has another guidance.
    """
    cache = extra_args.get("model_options", {}).get("transformer_options", {}).get("easycache")
    # ComfyUI sets `start_t` when it samples; a cache without it may skip anywhere.
    if cache is not None and last_sigma <= float(getattr(cache, "start_t", math.inf)):
        name = getattr(cache, "name", type(cache).__name__)
        raise ValueError(
            f"{name} may skip evaluations of the zigzag steps, but the way back is no next step. Raise its "
            "start_percent until it begins behind them, remove it, or use zigzag_steps=0."
        )
