"""Standard few-step sampling: the multiview MDP followed once, noisiest timestep to the picture."""

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
    """Return the number of UNet evaluations of `sample_standard`: one per step."""
    return settings.num_steps


def sample_standard(
    bundle: ModelBundle,
    condition: TextCondition,
    cameras: CameraFeatures,
    noise: Noise,
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    reference: ReferenceFeatures | None = None,
) -> Trajectory:
    """Sample all views of B prompts with the policy of the bundle's schedule.

    Args:
        bundle: the model.
        condition: text of B prompts.
        cameras: features of V views.
        noise: gives x_T first, then each step's noise.
        settings: the zigzag ones are ignored.
        on_step: called after every UNet evaluation.
        reference: of B pictures, for a model of image to multiview; None for one of text.

    Returns:
        Trajectory of T = `num_steps` steps on the bundle's device.

    Raises:
        ValueError: settings the schedule cannot follow, a prediction that is not finite, or a model that
            does not do the task.
    """
    num_evaluations = count_evaluations(settings)
    loop = StepLoop(bundle, condition, cameras, settings, num_evaluations, on_step, reference)
    x = loop.initial_latents(noise)
    for step in range(settings.num_steps):
        distribution = loop.zig(x, step)
        x = loop.act_and_record(x, distribution, noise)
    return loop.trajectory()
