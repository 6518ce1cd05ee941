"""Nodes that sample: a sentence and cameras become views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .checks import MAX_SEED, check_number, first_problem, read_prompts
from .sockets import Model, Rig, advanced, make_schema

if TYPE_CHECKING:
    from torch import Tensor

    from ..t2mv_core.cameras import CameraRig
    from .sockets import ModelHandle

MAX_STEPS = 100
# Input -> (default, largest value); the smallest is 0.
SCALES = {
    "guidance": (7.0, 30.0),
    "view_scale": (1.0, 10.0),
    "inverse_guidance": (1.0, 30.0),
    "inverse_view_scale": (1.0, 10.0),
}
SETTING_OF_INPUT = {
    "steps": "num_steps",
    "guidance": "guidance_scale",
    "view_scale": "view_scale",
    "zigzag_steps": "zigzag_steps",
    "zigzag_repeats": "zigzag_repeats",
    "inverse_guidance": "inverse_guidance_scale",
    "inverse_view_scale": "inverse_view_scale",
}


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
            inputs=_common_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls, prompt: str | None = None, guidance: float | None = None, view_scale: float | None = None
    ) -> bool | str:
        """Refuse unusable texts and numbers before the run."""
        return _first_problem(prompt, guidance=guidance, view_scale=view_scale)

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; one UNet evaluation per step."""
        return io.NodeOutput(sample_views("standard", model, prompt, seed, **others))


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
            inputs=[*_common_inputs(), *_zigzag_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        prompt: str | None = None,
        guidance: float | None = None,
        view_scale: float | None = None,
        inverse_guidance: float | None = None,
        inverse_view_scale: float | None = None,
    ) -> bool | str:
        """Refuse unusable texts and numbers before the run."""
        return _first_problem(
            prompt,
            guidance=guidance,
            view_scale=view_scale,
            inverse_guidance=inverse_guidance,
            inverse_view_scale=inverse_view_scale,
        )

    @classmethod
    def execute(cls, model: ModelHandle, prompt: str, seed: int, **others: Any) -> io.NodeOutput:
        """Sample; a zigzag costs two more UNet evaluations per repeat."""
        return io.NodeOutput(sample_views("zmv", model, prompt, seed, **others))


def sample_views(
    sampler: str,
    model: ModelHandle,
    prompt: str,
    seed: int,
    rig: CameraRig | None = None,
    negative_prompt: str = "",
    **numbers: float,
) -> Tensor:
    """Sample every line of the prompt and decode the views.

    Args:
        sampler: a name of the core's SAMPLERS.
        model: the model, possibly with LoRAs.
        prompt: one object per line.
        seed: of the first line's noise; every further line uses the next one.
        rig: the cameras; None gives the six default views.
        negative_prompt: what two-pass guidance steers away from; "" is the empty condition.
        numbers: the node's numeric inputs, by input name.

    Returns:
        Pictures as ComfyUI keeps them, [B·V, H, W, 3] float32 in [0, 1] on its intermediate device.

    Raises:
        ValueError: an input is unusable, or the model gave NaN.
    """
    import comfy.model_management

    from ..t2mv_core.cameras import DEFAULT_RIG
    from ..t2mv_core.denoiser import encode_cameras
    from ..t2mv_core.images import decode_latents, to_comfy
    from ..t2mv_core.samplers import SAMPLERS, SamplingSettings, count_evaluations
    from ..t2mv_core.text import encode_text
    from ..t2mv_core.trajectory import SeededNoise
    from .progress import SamplingProgress

    prompts = read_prompts(prompt)
    _check_scales(numbers)
    settings = SamplingSettings(**{SETTING_OF_INPUT[name]: number for name, number in numbers.items()})
    bundle, residency = model.bundle, model.residency
    progress = SamplingProgress(model, count_evaluations(sampler, settings))
    residency.load()
    condition = encode_text(bundle, prompts, negative_prompt or None)
    cameras = encode_cameras(bundle, rig or DEFAULT_RIG)
    noise = SeededNoise([(seed + line) % (MAX_SEED + 1) for line in range(len(prompts))])
    trajectory = SAMPLERS[sampler](bundle, condition, cameras, noise, settings, progress)
    images = decode_latents(bundle.vae, trajectory.denoised).flatten(0, 1)
    return to_comfy(images).to(comfy.model_management.intermediate_device())


def _first_problem(prompt: str | None, **scales: float | None) -> bool | str:
    return first_problem(lambda: read_prompts(prompt), lambda: _check_scales(scales))


def _check_scales(numbers: dict[str, float | None] | dict[str, float]) -> None:
    for name, number in numbers.items():
        if name in SCALES:
            check_number(name, number, 0.0, SCALES[name][1])


def _common_inputs() -> list[io.Input]:
    """The inputs both samplers share."""
    return [
        Model.Input("model", tooltip="From Load Model, with or without LoRAs."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a red mug",
            tooltip="What to draw. One object per line: every line becomes a set of views.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="The same seed gives the same views. The second prompt line uses seed + 1, and so on.",
        ),
        io.Int.Input(
            "steps",
            default=4,
            min=1,
            max=MAX_STEPS,
            tooltip="Denoising steps: 4 for the toybox, 25 for its teacher, 4 to 8 for LCM models.",
        ),
        _scale_input("guidance", "How strongly the views follow the prompt; 1 is no guidance."),
        advanced(_scale_input("view_scale", "How strongly the views follow the cameras; 1 is as trained.")),
        Rig.Input("rig", optional=True, tooltip="The cameras. Without a rig: the six default views."),
        advanced(
            io.String.Input(
                "negative_prompt",
                default="",
                optional=True,
                tooltip="What to steer away from. Only models with two-pass guidance use it (the toybox "
                "teacher), few-step models do not.",
            )
        ),
    ]


def _zigzag_inputs() -> list[io.Input]:
    """The inputs only the ZMV sampler has."""
    return [
        io.Int.Input(
            "zigzag_steps",
            default=1,
            min=0,
            max=MAX_STEPS,
            tooltip="How many of the first steps are zigzags; 0 is ordinary sampling.",
        ),
        advanced(
            io.Int.Input(
                "zigzag_repeats",
                default=1,
                min=1,
                max=10,
                tooltip="How often a zigzag step goes back and forth; each costs two more UNet evaluations.",
            )
        ),
        advanced(
            _scale_input("inverse_guidance", "Guidance on the way back; the gap to 'guidance' is what helps.")
        ),
        advanced(_scale_input("inverse_view_scale", "View scale on the way back.")),
    ]


def _scale_input(name: str, tooltip: str) -> io.Input:
    default, high = SCALES[name]
    return io.Float.Input(name, default=default, min=0.0, max=high, step=0.1, tooltip=tooltip)


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            "images",
            display_name="images",
            tooltip="The views as a batch: in the rig's order, one set after the other.",
        )
    ]
