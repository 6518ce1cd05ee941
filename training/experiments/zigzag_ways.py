"""Ways of zigzagging, for `training.experiments.zigzag`: what is tried in place of ZMV's zag.

standard   no zigzag, at several numbers of steps: what the same evaluations buy otherwise
zmv        the paper's: zig, zag, zig at the first step (two more evaluations)
late       the same at a later step, where the gap between zig and zag is wider
no view    the zag without the view condition (s_inv = 0); unconditional: w_inv = 0
reuse      the zag takes the zig's own prediction instead of asking the UNet (one more evaluation)
direct     no zag: the second zig starts from x_{t'} as if it were x_t (one more evaluation)
renoise    no zag: x_t is made anew from the zig's f and fresh noise (one more evaluation); carries no
information about how the noise was answered, so what is not better than this is not the zigzag
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.denoiser import CameraFeatures
from t2mv_core.policy import Noise, StepDistribution, invert_step
from t2mv_core.policy import sample as sample_action
from t2mv_core.samplers import SamplingSettings
from t2mv_core.samplers.loop import StepLoop
from t2mv_core.schedule import NoiseSchedule
from t2mv_core.text import TextCondition

PAPERS = "zmv (first step)"


@dataclass(frozen=True)
class Zig:
    """A step's first zig, which a way goes back from.

    Attributes:
        x: the state it started from, [B, V, C, H, W].
        distribution: where it leads.
        step: index of the step, 0 the noisiest.
    """

    x: Tensor
    distribution: StepDistribution
    step: int


Zag = Callable[[StepLoop, NoiseSchedule, Zig, Noise], Tensor]
"""Goes back from a zig to x̃_t, [B, V, C, H, W]."""


def zag(loop: StepLoop, schedule: NoiseSchedule, zig: Zig, noise: Noise) -> Tensor:
    """Ask the UNet again, under the weaker condition (docs/method.md, section 4)."""
    return loop.zag(sample_action(zig.distribution, noise), zig.step)


def reuse(loop: StepLoop, schedule: NoiseSchedule, zig: Zig, noise: Noise) -> Tensor:
    """Invert with the zig's own ε, which is what x_t and f determine."""
    timestep, next_timestep = loop.timesteps(zig.step)
    c_skip, c_out = schedule.boundary_scalings(timestep)
    alpha_bar = schedule.alpha_bar_at(timestep)
    clean = (zig.distribution.denoised - c_skip * zig.x) / c_out
    noise_pred = (zig.x - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
    x_next = sample_action(zig.distribution, noise)
    return invert_step(schedule, noise_pred, x_next, timestep, next_timestep)


def direct(loop: StepLoop, schedule: NoiseSchedule, zig: Zig, noise: Noise) -> Tensor:
    """Take x_{t'} itself."""
    return sample_action(zig.distribution, noise)


def renoise(loop: StepLoop, schedule: NoiseSchedule, zig: Zig, noise: Noise) -> Tensor:
    """Redraw x_t, as `samplers.sample_redraw` does."""
    return loop.redraw(zig.distribution, zig.step, noise)


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Attributes:
        name: for people.
        settings: steps and scales.
        at: the steps that zigzag.
        zag: how they go back.
        model: "toybox" or "toybox-teacher".
    """

    name: str
    settings: SamplingSettings
    at: tuple[int, ...] = ()
    zag: Zag = zag
    model: str = "toybox"


@torch.no_grad()
def sample(
    bundle: ModelBundle, condition: TextCondition, cameras: CameraFeatures, noise: Noise, way: Way
) -> Tensor:
    """Return clean latents of B prompts, [B, V, C, H, W]."""
    loop = StepLoop(bundle, condition, cameras, way.settings, 0, None, None)
    x = loop.initial_latents(noise)
    for step in range(way.settings.num_steps):
        distribution = loop.zig(x, step)
        if step in way.at:
            x = way.zag(loop, bundle.schedule, Zig(x, distribution, step), noise)
            distribution = loop.zig(x, step)
        x = loop.act_and_record(x, distribution, noise)
    return loop.trajectory().denoised


def ways_of(guidance: float) -> list[Way]:
    """Return all ways at one guidance on the student; the first is the reference."""
    four = SamplingSettings(num_steps=4, guidance_scale=guidance)
    no_view = replace(four, inverse_view_scale=0.0)
    nothing = replace(no_view, inverse_guidance_scale=0.0)
    return [
        Way("standard, 4 steps", four),
        *(Way(f"standard, {n} steps", replace(four, num_steps=n)) for n in (2, 3, 5, 6)),
        Way(PAPERS, four, (0,)),
        *(Way(f"late: zigzag at step {k + 1}", four, (k,)) for k in (1, 2, 3)),
        Way("zmv, two steps", four, (0, 1)),
        Way("no view: s_inv = 0", no_view, (0,)),
        Way("unconditional: w_inv = 0, s_inv = 0, step 3", nothing, (2,)),
        Way("reuse", four, (0,), reuse),
        Way("direct", four, (0,), direct),
        Way("renoise", four, (0,), renoise),
    ]


def teacher_ways() -> list[Way]:
    """Return the teacher's ways, 8 DDIM steps: real guidance, the zigzag on the first 4."""
    eight = SamplingSettings(num_steps=8, guidance_scale=2.0)
    weak = replace(eight, guidance_scale=1.0, inverse_guidance_scale=0.0)
    first = (0, 1, 2, 3)
    teacher = "toybox-teacher"
    return [
        Way("teacher, w = 2", eight, model=teacher),
        Way("teacher, w = 2, zmv 4 steps", eight, first, model=teacher),
        Way("teacher, w = 1", weak, model=teacher),
        Way("teacher, w = 1, w_inv = 0, zmv 4 steps", weak, first, model=teacher),
    ]
