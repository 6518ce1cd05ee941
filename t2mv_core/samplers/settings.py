"""The settings of the samplers, and the event they report after every UNet evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..defaults import DEFAULTS

_PUBLISHED = DEFAULTS["lcm-sdxl"]


@dataclass(frozen=True)
class SamplingSettings:
    """Settings shared by all samplers; standard sampling ignores those of the zigzag.

    The defaults are LCM-SDXL's; `SamplingSettings(**bundle.defaults.numbers())` has those of a bundle.

    Attributes:
        num_steps: denoising steps T.
        guidance_scale: text guidance w; 1 is none.
        view_scale: view-condition scale s; 1 is as trained.
        zigzag_steps: K, the number of first steps that zigzag.
        zigzag_repeats: zag-zig pairs per zigzag step.
        inverse_guidance_scale: w_inv of the zag, weaker than w.
        inverse_view_scale: s_inv of the zag; 0 drops the cameras.
        ref_scale: factor on the reference attention, for image to multiview; 1 is as trained, 0 drops the
            picture.
        inverse_ref_scale: the zag's, at most ref_scale; 0 drops the picture.
        state_dtype: the sampler rounds latents to it and records them in it; float32 or bfloat16.
    """

    num_steps: int = _PUBLISHED.num_steps
    guidance_scale: float = _PUBLISHED.guidance_scale
    view_scale: float = 1.0
    zigzag_steps: int = _PUBLISHED.zigzag_steps
    zigzag_repeats: int = 1
    inverse_guidance_scale: float = _PUBLISHED.inverse_guidance_scale
    inverse_view_scale: float = _PUBLISHED.inverse_view_scale
    ref_scale: float = 1.0
    inverse_ref_scale: float = 1.0
    state_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Refuse numbers that no sampler can use, before any expensive work."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1.")
        if not 0 <= self.zigzag_steps <= self.num_steps:
            raise ValueError(
                f"zigzag_steps={self.zigzag_steps} must lie between 0 and num_steps={self.num_steps}."
            )
        if self.zigzag_repeats < 1:
            raise ValueError(
                f"zigzag_repeats={self.zigzag_repeats} must be at least 1; use zigzag_steps=0 for none."
            )
        if self.state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype={self.state_dtype} must be torch.float32 or torch.bfloat16.")
        for name in (part for part in vars(self) if part.endswith("_scale")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value} must be a finite number of at least 0.")


@dataclass(frozen=True)
class StepEvent:
    """One UNet evaluation of a trajectory.

    Attributes:
        index: its number, from 1.
        total: number of evaluations of the whole trajectory.
        kind: "zig" (denoising) or "zag" (inversion).
        timestep: t of the evaluation.
        denoised: the clean latents it predicts, [B, V, C, H, W]; decode for a preview.
    """

    index: int
    total: int
    kind: Literal["zig", "zag"]
    timestep: int
    denoised: Tensor


OnStep = Callable[[StepEvent], None]
"""Called after every UNet evaluation; may raise to cancel."""
