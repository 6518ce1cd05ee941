"""ZMV-Sampling: zigzag passes of inversion and denoising that push text and viewpoint into the latents.

For the first K steps, at timestep t with next timestep t' (docs/method.md, section 4; arXiv:2505.20107):

    zig:  x_{t'} ~ p_θ(· | x_t; w, s)
    zag:  ε_inv = ε_θ(x_{t'}, t; w_inv, s_inv),   x̃_t = √ᾱ_t·f(x_{t'}, ε_inv) + √(1-ᾱ_t)·ε_inv
    zig again from x̃_t; the recorded state is x̃_t, the recorded action the result of this last zig.

The gap between (w, s) and (w_inv, s_inv) is what strengthens the condition.
"""

from __future__ import annotations

from ..bundle import ModelBundle
from ..denoiser import CameraFeatures
from ..policy import Noise, sample
from ..text import TextCondition
from ..trajectory import Trajectory
from ..unet.reference_attention import ReferenceFeatures
from .loop import StepLoop
from .settings import OnStep, SamplingSettings


def count_evaluations(settings: SamplingSettings) -> int:
    """Return the number of UNet evaluations: one per step and two more per zigzag step and repeat."""
    return settings.num_steps + 2 * settings.zigzag_steps * settings.zigzag_repeats


def sample_zmv(
    bundle: ModelBundle,
    condition: TextCondition,
    cameras: CameraFeatures,
    noise: Noise,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    reference: ReferenceFeatures | None = None,
) -> Trajectory:
    """Sample all views of B prompts, the first `zigzag_steps` steps with zigzag.

    Arguments, result and errors as of `sample_standard`; with `zigzag_steps=0` it is the same, bit for bit.
    """
    num_evaluations = count_evaluations(settings)
    loop = StepLoop(bundle, condition, cameras, settings, num_evaluations, on_step, reference)
    x = loop.initial_latents(noise)
    for step in range(settings.num_steps):
        distribution = loop.zig(x, step)
        if step < settings.zigzag_steps:
            for _ in range(settings.zigzag_repeats):
                x = loop.zag(sample(distribution, noise), step)
                distribution = loop.zig(x, step)
        x = loop.act_and_record(x, distribution, noise)
    return loop.trajectory()
