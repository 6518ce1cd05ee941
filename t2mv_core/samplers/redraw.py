"""Redrawn sampling, the control of ZMV-Sampling: the zag is replaced by fresh noise.

For the first K steps, at timestep t:

    zig:     f = f(x_t, ε_θ(x_t, t; w, s))
    redraw:  x̃_t = √ᾱ_t·f + √(1-ᾱ_t)·z,   z standard normal
    zig again from x̃_t; recorded as in ZMV.

x̃_t holds the zig's picture and nothing of how its noise was answered. What ZMV does beyond this is the
inversion's doing. It costs one evaluation less per zigzag.
"""

from __future__ import annotations

from ..bundle import ModelBundle
from ..denoiser import CameraFeatures
from ..policy import Noise
from ..text import TextCondition
from ..trajectory import Trajectory
from ..unet.reference_attention import ReferenceFeatures
from .loop import StepLoop
from .settings import OnStep, SamplingSettings


def count_evaluations(settings: SamplingSettings) -> int:
    """Return the number of UNet evaluations: one per step and one more per redraw."""
    return settings.num_steps + settings.zigzag_steps * settings.zigzag_repeats


def sample_redraw(
    bundle: ModelBundle,
    condition: TextCondition,
    cameras: CameraFeatures,
    noise: Noise,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    reference: ReferenceFeatures | None = None,
) -> Trajectory:
    """Sample all views of B prompts, redrawing x_t in the first `zigzag_steps` steps.

    Arguments, result and errors as of `sample_standard`; with `zigzag_steps=0` it is the same, bit for bit.
    """
    num_evaluations = count_evaluations(settings)
    loop = StepLoop(bundle, condition, cameras, settings, num_evaluations, on_step, reference)
    x = loop.initial_latents(noise)
    for step in range(settings.num_steps):
        distribution = loop.zig(x, step)
        if step < settings.zigzag_steps:
            for _ in range(settings.zigzag_repeats):
                x = loop.redraw(distribution, step, noise)
                distribution = loop.zig(x, step)
        x = loop.act_and_record(x, distribution, noise)
    return loop.trajectory()
