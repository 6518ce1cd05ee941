"""Nodes that sample: a sentence and cameras become views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import MAX_SEED, check_integer, check_text, read_prompts
from ..sockets import make_schema
from .inputs import (
    latent_output,
    optional_inputs,
    prompt_inputs,
    read_settings,
    sampling_problem,
    step_inputs,
    zigzag_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig
    from ..sockets import ModelHandle

SEED_TOOLTIP = (
    "The same seed gives the same views. The second prompt line uses seed + 1, and so on; a line gives "
    "the same picture alone with its seed."
)


class T2MVSampleStandard(io.ComfyNode):
    """Ordinary few-step sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVSampleStandard",
            display_name="Sample Views (T2MV)",
            category="T2MV/sampling",
            description="Draws all views of an object together, in a few denoising steps.",
            search_aliases=["text to multiview", "few-step sampler", "lcm", "generate views", "ksampler"],
            inputs=[*prompt_inputs(SEED_TOOLTIP), *step_inputs(), *optional_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        view_scale: float | None = None,
    ) -> bool | str:
        """Refuse unusable texts and numbers before the run."""
        return sampling_problem(
            prompt, negative_prompt, steps=steps, guidance=guidance, view_scale=view_scale
        )

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; one UNet evaluation per step."""
        return io.NodeOutput(*sample_views("standard", model, prompt, seed, **others))


class T2MVSampleZMV(io.ComfyNode):
    """Few-step sampling with zigzags."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVSampleZMV",
            display_name="Sample Views with Zigzag (T2MV)",
            category="T2MV/sampling",
            description="Draws all views together; the first steps go forth, back under weaker guidance, and "
            "forth again (ZMV), which pushes what the prompt and the cameras ask for into the picture.",
            search_aliases=["zmv", "zigzag sampling", "z-sampling", "self-reflection", "text to multiview"],
            inputs=[*prompt_inputs(SEED_TOOLTIP), *step_inputs(), *zigzag_inputs(), *optional_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        view_scale: float | None = None,
        zigzag_steps: int | None = None,
        zigzag_repeats: int | None = None,
        inverse_guidance: float | None = None,
        inverse_view_scale: float | None = None,
    ) -> bool | str:
        """Refuse unusable texts and numbers before the run."""
        return sampling_problem(
            prompt,
            negative_prompt,
            steps=steps,
            guidance=guidance,
            view_scale=view_scale,
            zigzag_steps=zigzag_steps,
            zigzag_repeats=zigzag_repeats,
            inverse_guidance=inverse_guidance,
            inverse_view_scale=inverse_view_scale,
        )

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; a zigzag costs two more UNet evaluations per repeat."""
        return io.NodeOutput(*sample_views("zmv", model, prompt, seed, **others))


def sample_views(
    sampler: str,
    model: ModelHandle,
    prompt: str,
    seed: int,
    rig: CameraRig | None = None,
    negative_prompt: str = "",
    **numbers: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sample every line of the prompt, one after the other, and decode the views.

    Args:
        sampler: a name of the core's SAMPLERS.
        model: the model, possibly with LoRAs.
        prompt: one object per line.
        seed: of the first line's noise; every further line uses the next one.
        rig: the cameras; None gives the six default views.
        negative_prompt: what two-pass guidance steers away from; "" is the empty condition.
        numbers: the node's numeric inputs, by input name.

    Returns:
        Pictures as ComfyUI keeps them, [B·V, H, W, 3] float32 in [0, 1], and the same as a LATENT.

    Raises:
        ValueError: an input is unusable, or the model gave NaN.
    """
    import torch

    from ...t2mv_core.samplers import count_evaluations
    from ..common.progress import SamplingProgress
    from .set_sampler import SetSampler, comfy_latent, decode_set

    prompts = read_prompts(prompt)
    check_integer("seed", seed, 0, MAX_SEED)
    check_text("negative_prompt", negative_prompt)
    settings = read_settings(numbers)
    progress = SamplingProgress(model, count_evaluations(sampler, settings) * len(prompts))
    sample_set = SetSampler(model, sampler, settings, progress, prompts, rig, negative_prompt)
    latents = [sample_set(line, seed + index) for index, line in enumerate(prompts)]
    images = [decode_set(model, views) for views in latents]
    return torch.cat(images), comfy_latent(model, latents)


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            "images",
            display_name="images",
            tooltip="The views as a batch: in the rig's order, one set after the other.",
        ),
        latent_output(),
    ]
