"""The hooks through which pictures act on a ComfyUI MODEL with an MV-Adapter of image to multiview.

* A `DIFFUSION_MODEL` wrapper has the UNet look at the pictures' clean latents by themselves, at timestep 0,
  with the condition that it is asked with and without other patches, and keeps what its self-attentions are
  given: once per condition of a sampling, at the first evaluation, as conditions are not known before.
* The patch of the self-attentions (patch.py) adds reference attention over these states. Negative conditions
  get none.
* An `OUTER_SAMPLE` wrapper compares pictures and latents before ComfyUI loads a model, and drops the states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...t2mv_core.formats.sources import ADAPTER_REPO, IMAGE_ADAPTER_FILE
from ...t2mv_core.unet.adapter import has_reference_weights
from .comfyui import (
    DEVICE_OPTION,
    BlockKey,
    ModelPatcher,
    WrappersMP,
    block_key,
    check_unet,
    latents_for,
)

REFERENCE_KEY = "t2mv_reference"
"""Key of the wrappers; in `transformer_options`, what a self-attention sees of the pictures."""
REF_SCALE_OPTION = "t2mv_ref_scale"
"""In `transformer_options`: a scale of the pictures for one evaluation, where it is below the node's."""
_WITH_PICTURE = 0  # ComfyUI's number of the positive condition in `cond_or_uncond`

States = dict[BlockKey, Tensor]
"""What the self-attentions are given when the UNet looks at pictures, each [n or 1, L, C]."""
Cache = dict[Any, States]
"""The states of one sampling, by condition and device."""


@dataclass(frozen=True)
class Reference:
    """The pictures that views are drawn from.

    Attributes:
        latents: as ComfyUI's LATENT has them, [n or 1, C, h, w], of n sets.
        scale: factor on reference attention; 0 drops the pictures.
    """

    latents: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class ReferenceAt:
    """What one self-attention sees of the pictures in one evaluation.

    Attributes:
        states: per condition, one after the other in the batch; None for one without pictures.
        scale: factor on reference attention.
    """

    states: list[Tensor | None]
    scale: float


def check_task(model: ModelPatcher, path: Path, reference: Reference | None) -> None:
    """Raise ValueError unless an adapter's file does the task that pictures, or none, ask for."""
    unet, is_of_picture = check_unet(model), has_reference_weights(path)
    if reference is None and is_of_picture:
        raise ValueError(
            f"{path.name} draws the views of a picture, and none is connected. Connect Load Image through "
            "Read Reference Image (T2MV) and VAE Encode to 'reference', or choose an MV-Adapter of text."
        )
    if reference is None:
        return
    if not is_of_picture:
        raise ValueError(
            f"{path.name} draws views of a text and cannot see a picture. Choose the MV-Adapter of image to "
            f"multiview ({IMAGE_ADAPTER_FILE} of {ADAPTER_REPO}), or disconnect 'reference'."
        )
    if reference.latents.ndim != 4 or reference.latents.shape[1] != unet.in_channels:
        raise ValueError(
            f"The reference is a latent of shape {tuple(reference.latents.shape)}; this model takes "
            f"[pictures, {unet.in_channels}, height, width]. Make it with VAE Encode and an SDXL VAE."
        )


def patch_reference(model: ModelPatcher, reference: Reference, num_views: int) -> None:
    """Let the pictures act on a model whose self-attentions have the adapter's patch, in place."""
    cache: Cache = {}
    positives: set[Any] = set()
    latents = latents_for(model, reference.latents)

    def evaluate(
        executor: Any, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor, *others: Any, **named: Any
    ) -> Tensor:
        control, options = others
        scale = min(float(options.get(REF_SCALE_OPTION, reference.scale)), reference.scale)
        if scale != 0.0:
            conditions = _conditions(options, len(x), positives)
            states: list[States | None] = [None] * len(conditions)
            for number, (key, rows) in enumerate(conditions):
                if key is not None:
                    # A set's views have one condition: its first view's.
                    views = slice(rows.start, rows.stop, num_views)
                    states[number] = _look_once(cache, key, executor, latents, context[views], y[views])
            options = {**options, REFERENCE_KEY: (states, scale)}
        return executor(x, timesteps, context, y, control, options, **named)

    def sample(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        _check_sampling(executor.class_obj, noise, latents, num_views)
        cache.clear()
        positives.clear()
        positives.update(_positives(executor.class_obj))
        try:
            return executor(noise, *args, **kwargs)
        finally:
            cache.clear()  # the states lie in the card's memory

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, REFERENCE_KEY, evaluate)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, REFERENCE_KEY, sample)


def reference_at(options: dict[str, Any]) -> ReferenceAt | None:
    """Return what the transformer block of these `extra_options` sees of the pictures; None without any."""
    if REFERENCE_KEY not in options:
        return None
    conditions, scale = options[REFERENCE_KEY]
    key = block_key(options)
    return ReferenceAt([None if states is None else states[key] for states in conditions], scale)


def _conditions(options: dict[str, Any], batch: int, positives: set[Any]) -> list[tuple[Any, slice]]:
    """Return of each condition in a batch its key in the cache, None if it has no picture, and its rows."""
    sides = options.get("cond_or_uncond") or [_WITH_PICTURE]
    names = options.get("uuids") or [None] * len(sides)
    rows = batch // len(sides)
    found = []
    for number, (side, name) in enumerate(zip(sides, names, strict=True)):
        is_positive = side == _WITH_PICTURE and (name is None or not positives or name in positives)
        key = (name, options.get(DEVICE_OPTION)) if is_positive else None
        found.append((key, slice(number * rows, (number + 1) * rows)))
    return found


def _positives(guider: Any) -> set[Any]:
    """Return the names that ComfyUI gives to a guider's positive conditions; none where it does not say.

    Some nodes evaluate a negative condition by itself (Self-Attention Guidance, Perp-Neg, DualModelGuider),
    and ComfyUI then numbers it as if it were positive. A negative with an area of its own is here as well:
    ComfyUI gives its name to the copy that it adds to the positives.
    """
    return {
        condition.get("uuid")
        for kind, entries in getattr(guider, "conds", {}).items()
        for condition in entries or ()
        if kind == "positive" or "area" in condition or condition.get("set_area_to_bounds")
    }


def _look_once(cache: Cache, key: Any, executor: Any, latents: Tensor, context: Tensor, y: Tensor) -> States:
    """Return the states under a condition; ComfyUI names those of a sampling, others are not kept."""
    if key in cache:
        return cache[key]
    states = _look(executor.original, latents, context, y)
    if key[0] is not None:
        cache[key] = states
    return states


def _look(evaluate: Callable[..., Tensor], latents: Tensor, context: Tensor, y: Tensor) -> States:
    """Run the UNet on pictures' clean latents; keep what its self-attentions are given.

    Args:
        evaluate: the UNet without wrappers.
        latents: [n or 1, C, h, w], scaled as the UNet takes them.
        context: text features of n sets, on the UNet's device and in its type.
        y: their pooled features and sizes.
    """
    states: States = {}

    def keep(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
        states[block_key(options)] = n  # type: ignore[index]
        return n, context, value

    if len(latents) == 1 and bool((context == context[:1]).all()) and bool((y == y[:1]).all()):
        context, y = context[:1], y[:1]  # sets of one picture and one prompt share the states
    pictures = latents.to(context).expand(len(context), -1, -1, -1)
    timesteps = torch.zeros(len(context), device=context.device)
    evaluate(pictures, timesteps, context, y, None, {"patches": {"attn1_patch": [keep]}})
    return states


def _check_sampling(guider: Any, noise: Tensor, latents: Tensor, num_views: int) -> None:
    sets = len(noise) // num_views
    if len(latents) not in (1, sets):
        raise ValueError(
            f"{len(latents)} reference pictures are given for {sets} sets of {num_views} views. Give one "
            "picture, or one per set: 'sets' of Empty Multiview Latent."
        )
    (height, width), (own_height, own_width) = noise.shape[-2:], latents.shape[-2:]
    if (own_height, own_width) != (max(height, width),) * 2:
        raise ValueError(
            f"The reference picture has {8 * own_width}x{8 * own_height} px, the views have "
            f"{8 * width}x{8 * height}. Set 'size' of Read Reference Image to {8 * max(height, width)}."
        )
    if "middle" in getattr(guider, "conds", {}):
        raise ValueError(
            "This guider has two positive conditionings (DualCFGGuider), and the order in which ComfyUI "
            "evaluates them does not tell which half has no picture. Use CFGGuider or KSampler."
        )
