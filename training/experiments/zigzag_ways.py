"""Ways of zigzagging, for `training.experiments.zigzag`: what is tried in place of ZMV's zag.

standard   no zigzag, at several numbers of steps: what the same evaluations buy otherwise
zmv        the paper's: zig, zag, zig at the first step (two more evaluations)
late       the same at a later step, where the gap between zig and zag is wider
no view    the zag without the view condition (s_inv = 0); unconditional: w_inv = 0
reuse      the zag takes the zig's own prediction instead of asking the UNet (one more evaluation)
direct     no zag: the second zig starts from x_{t'} as if it were x_t (one more evaluation)
renoise    no zag: x_t is made anew from the zig's f and fresh noise (one more evaluation); carries no
information about how the noise was answered, so what is not better than this is not the zigzag
quiet      the zig that is undone takes its own ε instead of fresh noise, so that x̃_t keeps the noise of
x_t and differs from it by the gap alone
until still  zigzags at every step as long as a set's f moves by more than a tenth of its size (its
seconds include the sets that stand still, its evaluations do not)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.denoiser import CameraFeatures, predict_noise
from t2mv_core.policy import Noise, StepDistribution, denoise_step, invert_step, redraw_step
from t2mv_core.policy import sample as sample_action
from t2mv_core.samplers import SamplingSettings
from t2mv_core.text import TextCondition

from ..evaluation.measure import counted_rows

PAPERS = "zmv (first step)"
STILL = 0.1


@dataclass
class Walk:
    """One batch on its way from noise to pictures; counts UNet evaluations in sets.

    Attributes:
        num_evaluations: UNet evaluations so far, summed over the sets of the batch.
    """

    bundle: ModelBundle
    condition: TextCondition
    cameras: CameraFeatures
    settings: SamplingSettings
    noise: Noise
    num_evaluations: int = 0

    def predict(self, x: Tensor, step: int, guidance: float, view_scale: float) -> Tensor:
        """Return ε at a step's timestep."""
        t, scales = self.timesteps(step)[0], (guidance, view_scale)
        with counted_rows(self.bundle.unet) as rows:
            noise_pred = predict_noise(self.bundle, x, t, self.condition, self.cameras, *scales)
        self.num_evaluations += rows[0] // x.shape[1]  # two a set under classifier-free guidance
        return noise_pred.float()

    def zig(self, x: Tensor, step: int) -> tuple[StepDistribution, Tensor]:
        """Return the policy's distribution, and the ε it came from."""
        noise_pred = self.predict(x, step, self.settings.guidance_scale, self.settings.view_scale)
        return denoise_step(self.bundle.schedule, noise_pred, x, *self.timesteps(step)), noise_pred

    def zag_from(self, x_next: Tensor, step: int) -> Tensor:
        """Return x̃_t: x_{t'} inverted with the ε of the weaker condition."""
        settings = self.settings
        weak = self.predict(x_next, step, settings.inverse_guidance_scale, settings.inverse_view_scale)
        return invert_step(self.bundle.schedule, weak, x_next, *self.timesteps(step))

    def timesteps(self, step: int) -> tuple[int, int]:
        """Return t and t'."""
        schedule, count = self.bundle.schedule, self.settings.num_steps
        return int(schedule.timesteps(count)[step]), int(schedule.next_timesteps(count)[step])


Zag = Callable[[Walk, int, StepDistribution, Tensor], Tensor]
"""(walk, step, the zig's distribution, the zig's ε) -> x̃_t."""


def zag(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Go back as docs/method.md, section 4 has it."""
    return walk.zag_from(sample_action(distribution, walk.noise), step)


def quiet(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Go back from x_{t'} = √ᾱ_{t'}·f + √(1-ᾱ_{t'})·ε, the mean of the action with the zig's own noise."""
    return walk.zag_from(distribution.mean + distribution.std * noise_pred, step)


def reuse(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Invert with the zig's ε."""
    x_next = sample_action(distribution, walk.noise)
    return invert_step(walk.bundle.schedule, noise_pred, x_next, *walk.timesteps(step))


def direct(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Take x_{t'} itself."""
    return sample_action(distribution, walk.noise)


def renoise(walk: Walk, step: int, distribution: StepDistribution, noise_pred: Tensor) -> Tensor:
    """Redraw x_t, as `samplers.sample_redraw` does."""
    return redraw_step(walk.bundle.schedule, distribution.denoised, walk.timesteps(step)[0], walk.noise)


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Attributes:
        name: for people.
        settings: steps and scales.
        at: the steps that zigzag.
        zag: how they go back.
        is_until_still: a set stops zigzagging when its f has moved little.
        model: "toybox" or "toybox-teacher".
    """

    name: str
    settings: SamplingSettings
    at: tuple[int, ...] = ()
    zag: Zag = zag
    is_until_still: bool = False
    model: str = "toybox"


def sample(walk: Walk, way: Way) -> Tensor:
    """Return clean latents of a batch, [B, V, C, H, W]."""
    bundle, cameras = walk.bundle, walk.cameras
    size = (bundle.latent_channels, bundle.latent_px, bundle.latent_px)
    x = walk.noise(torch.Size((len(walk.condition), cameras.num_views, *size)))
    denoised = x
    is_moving = torch.ones(len(x), dtype=torch.bool)
    for step in range(way.settings.num_steps):
        distribution, noise_pred = walk.zig(x, step)
        if step in way.at and bool(is_moving.any()):
            first, again = distribution, walk.zig(way.zag(walk, step, distribution, noise_pred), step)[0]
            # Sets that stand still keep their first zig; what was computed for them is not counted.
            walk.num_evaluations -= 2 * int((~is_moving).sum())
            pick = is_moving.reshape(-1, 1, 1, 1, 1)
            mean, denoised = (
                torch.where(pick, new, old)
                for new, old in ((again.mean, first.mean), (again.denoised, first.denoised))
            )
            distribution = StepDistribution(mean, again.std, denoised)
            if way.is_until_still:
                moved = (again.denoised - first.denoised).flatten(1).norm(dim=1)
                is_moving &= moved > STILL * first.denoised.flatten(1).norm(dim=1)
        denoised = distribution.denoised
        x = sample_action(distribution, walk.noise)
    return denoised


def ways_of(guidance: float) -> list[Way]:
    """Return all ways at one guidance on the student; the first is the reference."""
    four = SamplingSettings(num_steps=4, guidance_scale=guidance)
    return [
        Way("standard, 4 steps", four),
        *(Way(f"standard, {n} steps", replace(four, num_steps=n)) for n in (2, 3, 5, 6)),
        Way(PAPERS, four, (0,)),
        *(Way(f"late: zigzag at step {k + 1}", four, (k,)) for k in (1, 2, 3)),
        Way("zmv, two steps", four, (0, 1)),
        Way("no view: s_inv = 0", replace(four, inverse_view_scale=0.0), (0,)),
        Way("unconditional: w_inv = 0, s_inv = 0, step 3",
            replace(four, inverse_guidance_scale=0.0, inverse_view_scale=0.0), (2,)),
        Way("reuse", four, (0,), reuse),
        Way("direct", four, (0,), direct),
        Way("renoise", four, (0,), renoise),
        Way("quiet", four, (0,), quiet),
        Way("quiet, step 2", four, (1,), quiet),
        Way("quiet, step 3, w_inv = 0, s_inv = 0",
            replace(four, inverse_guidance_scale=0.0, inverse_view_scale=0.0), (2,), quiet),
        Way("until still", four, (0, 1, 2, 3), is_until_still=True),
    ]  # fmt: skip


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
