"""The nodes that sample: a sentence and cameras become views, one set after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..common.checks import MAX_SEED, Field, first_problem, read_prompts, widgets
from ..common.memory import check_cancelled, decoding_bytes, denoising_bytes, intermediate_device
from ..common.progress import SamplingProgress, has_decoded_previews, show_notes
from ..sockets import ESSENTIALS, make_schema, output
from .inputs import (
    GUIDANCE,
    INVERSE_REF_SCALE,
    REF_SCALE,
    STEPS,
    VIEW_SCALE,
    ZIGZAG,
    check_sampling,
    describe_set,
    latent_output,
    numbers_read,
    optional_inputs,
    prompt_inputs,
    read_settings,
    reading_notes,
    settings_output,
)
from .reference import SetReferences, check_pictures, check_task, framing_notes

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.bundle import ModelBundle
    from ...t2mv_core.cameras import CameraRig
    from ...t2mv_core.samplers import SamplingSettings
    from ..sockets import ModelHandle

SEED_TOOLTIP = (
    "The same seed gives the same views. The second prompt line uses seed + 1, and so on; a line gives "
    "the same picture alone with its seed."
)


class SamplingNode(io.ComfyNode):
    """What the sampling nodes check before ComfyUI loads the model for them.

    ComfyUI paints every input red that a failed `validate_inputs` takes, so that one takes the prompt only.
    """

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Refuse unusable prompts before the run."""
        return first_problem(lambda: read_prompts(prompt))

    @classmethod
    def check_lazy_status(cls, prompt: str | None = None, **others: Any) -> list[str]:
        """Refuse values that ComfyUI let pass, linked ones too, and then ask for the model."""
        lines = read_prompts(prompt)
        check_sampling(**others)
        check_pictures(others.get("reference"), len(lines))
        return ["model"]


class T2MVSampleStandard(SamplingNode):
    """Ordinary few-step sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVSampleStandard",
            display_name="Sample Views (T2MV)",
            category="T2MV/sampling",
            description="Draws all views of an object together, in a few denoising steps.",
            essentials_category=ESSENTIALS,
            hidden=[io.Hidden.unique_id],
            search_aliases=["text to multiview", "few-step sampler", "lcm", "generate views", "ksampler"],
            inputs=_inputs((), (REF_SCALE,)),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; one UNet evaluation per step."""
        _show_notes(cls, model, prompt, **others)
        return io.NodeOutput(*sample_views("standard", model, prompt, seed, **others))


class T2MVSampleZMV(SamplingNode):
    """Few-step sampling with zigzags."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVSampleZMV",
            display_name="Sample Views with Zigzag (T2MV)",
            category="T2MV/sampling",
            description="Draws all views together; the first steps go forward, back under weaker guidance, "
            "and forward again (ZMV), which pushes what the prompt and the cameras ask for into the picture.",
            search_aliases=["zmv", "zigzag sampling", "z-sampling", "self-reflection", "text to multiview"],
            hidden=[io.Hidden.unique_id],
            inputs=_inputs(ZIGZAG, (REF_SCALE, INVERSE_REF_SCALE)),
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; a zigzag costs two more UNet evaluations per repeat."""
        _show_notes(cls, model, prompt, **others)
        return io.NodeOutput(*sample_views("zmv", model, prompt, seed, **others))


def _show_notes(
    node: type[io.ComfyNode], model: ModelHandle, prompt: str, reference: Tensor | None = None, **others: Any
) -> None:
    notes = reading_notes(model, read_prompts(prompt), **others)
    show_notes(node, [*notes, *framing_notes(reference)])


def _inputs(zigzag: Sequence[Field], ref_scales: Sequence[Field]) -> list[io.Input]:
    fields = widgets(STEPS, GUIDANCE, VIEW_SCALE, *zigzag)
    return [*prompt_inputs(SEED_TOOLTIP), *fields, *optional_inputs(*ref_scales)]


def _outputs() -> list[io.Output]:
    tooltip = "The views as a batch: in the rig's order, one set after the other."
    return [output(io.Image, "images", tooltip), latent_output(), settings_output()]


def sample_views(
    sampler: str,
    model: ModelHandle,
    prompt: str,
    seed: int,
    rig: CameraRig | None = None,
    negative_prompt: str = "",
    reference: Tensor | None = None,
    **numbers: float,
) -> tuple[Tensor, dict[str, Tensor], str]:
    """Sample every line of the prompt, one after the other, and decode the views.

    Args:
        sampler: a name of the core's SAMPLERS.
        model: the model, possibly with LoRAs.
        prompt: one object per line.
        seed: of the first line's noise; every further line uses the next one.
        rig: the cameras; None gives the six default views.
        negative_prompt: what two-pass guidance steers away from; "" is the empty condition.
        reference: for a model of image to multiview, [1 or lines, H, W, 3] in [0, 1], framed.
        numbers: the node's numeric inputs, by input name.

    Returns:
        Pictures as ComfyUI keeps them, [B·V, H, W, 3] float32 in [0, 1], the same as a LATENT, and what was
        used, a line per set.
    """
    from ...t2mv_core.samplers import count_evaluations

    prompts = read_prompts(prompt)
    check_task(model, reference)
    numbers = numbers_read(sampler, numbers, reference is not None)
    settings = read_settings(numbers, model)
    progress = SamplingProgress(model, count_evaluations(sampler, settings) * len(prompts))
    sample_set = SetSampler(model, sampler, settings, progress, prompts, rig, negative_prompt, reference)
    seeds = [(seed + index) % (MAX_SEED + 1) for index in range(len(prompts))]
    latents = [sample_set(line, seeds[line]) for line in range(len(prompts))]
    del sample_set  # its features lie in the card's memory
    images = [decode_set(model, views) for views in latents]
    used = "\n".join(describe_set(each, settings, numbers) for each in seeds)
    return torch.cat(images), comfy_latent(model, latents), used


class SetSampler:
    """Samples sets of one model, rig and setting: each bit for bit the same, whatever else the run samples.

    The parts of the model come to the compute device one after the other, as their work does: text encoders,
    camera encoder, UNet, and the VAE at last; on a small card ComfyUI sends away what has done its work.

    Sets never share a batch: matrix products of other sizes round differently, and memory would grow with the
    number of sets. Six views of SDXL keep a graphics card busy as they are.
    """

    def __init__(
        self,
        model: ModelHandle,
        sampler: str,
        settings: SamplingSettings,
        progress: SamplingProgress,
        prompts: Sequence[str],
        rig: CameraRig | None = None,
        negative_prompt: str = "",
        reference: Tensor | None = None,
    ) -> None:
        """Encode all prompts that will be sampled, pictures and cameras, then bring the UNet to the device.

        `progress` hears of every UNet evaluation; the other arguments are those of `sample_views`.
        """
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.denoiser import encode_cameras
        from ...t2mv_core.samplers import SAMPLERS
        from ...t2mv_core.text import encode_text

        self._model, self._sample, self._settings = model, SAMPLERS[sampler], settings
        self._progress, self._prompts = progress, prompts
        model.residency.load("text_encoder", "text_encoder_2")
        self._conditions = {
            prompt: encode_text(model.bundle, [prompt], negative_prompt or None)
            for prompt in dict.fromkeys(prompts)
        }
        check_cancelled()
        model.residency.load("camera_encoder")
        self._cameras = encode_cameras(model.bundle, rig or DEFAULT_RIG)
        self._references = None if reference is None else SetReferences.encode(model, reference)
        self._parts = ("unet", *(["vae"] if has_decoded_previews(model) else []))
        self._work_bytes = _work_bytes(model.bundle, settings, self._cameras.num_views)
        model.residency.load(*self._parts, work_bytes=self._work_bytes)

    def __call__(self, line: int, seed: int) -> Tensor:
        """Sample the views of one of the prompts: scaled latents [V, C, h, w], float32, on the CPU.

        Args:
            line: the prompt's number, from 0.
            seed: of the noise.

        Raises:
            ValueError: the model cannot follow the settings, or gave NaN.
        """
        from ...t2mv_core.trajectory import SeededNoise

        done, prompt = self._progress.done, self._prompts[line]
        condition = self._conditions[prompt]

        def sample(_: torch.device) -> Tensor:
            self._progress.done = done  # a second try, out of memory, counts anew
            noise, features = SeededNoise([seed]), None
            if self._references is not None:
                features = self._references.features(self._model, condition, prompt, line)
            trajectory = self._sample(
                self._model.bundle, condition, self._cameras, noise, self._settings, self._progress, features
            )
            return trajectory.denoised[0].float().cpu()

        return self._model.residency.run(sample, *self._parts, work_bytes=self._work_bytes)


def _work_bytes(bundle: ModelBundle, settings: SamplingSettings, num_views: int) -> float:
    """Estimate what an evaluation takes besides the weights; guidance in two passes evaluates all twice."""
    is_one_pass = bundle.has_guidance_embedding or bundle.has_sequential_guidance
    num_passes = 1 if is_one_pass or settings.guidance_scale == 1.0 else 2
    return denoising_bytes(num_views * num_passes * bundle.latent_px**2, bundle.dtype)


def decode_set(model: ModelHandle, latents: Tensor) -> Tensor:
    """Decode scaled latents [V, C, h, w] view by view, in the memory of one, to ComfyUI's [V, H, W, 3]."""
    from ...t2mv_core.images import decode_latents, to_comfy

    def decode(device: torch.device) -> Tensor:
        views = latents.to(device)[None]
        return decode_latents(model.bundle.vae, views, chunk_size=1, before_chunk=check_cancelled)[0]

    work_bytes = decoding_bytes(latents, model.bundle.vae.dtype)
    return to_comfy(model.residency.run(decode, "vae", work_bytes=work_bytes)).to(intermediate_device())


def comfy_latent(model: ModelHandle, latents: list[Tensor]) -> dict[str, Tensor]:
    """Join sets of scaled latents [V, C, h, w] to ComfyUI's LATENT, [B·V, C, h, w] and not scaled."""
    samples = torch.cat(latents) / model.bundle.vae.config["scaling_factor"]
    return {"samples": samples.to(intermediate_device())}
