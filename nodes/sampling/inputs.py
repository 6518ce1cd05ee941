"""The inputs that sampling nodes share, and the settings read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import MAX_SEED, check_integer, check_number, check_text, first_problem, read_prompts
from ..sockets import Model, Rig, advanced

if TYPE_CHECKING:
    from ...t2mv_core.samplers import SamplingSettings

MAX_STEPS = 100
# Input -> (default, largest value); the smallest is 0.
SCALES = {
    "guidance": (7.0, 30.0),
    "view_scale": (1.0, 10.0),
    "inverse_guidance": (1.0, 30.0),
    "inverse_view_scale": (1.0, 10.0),
}
# Input -> (smallest, largest value).
COUNTS = {"steps": (1, MAX_STEPS), "zigzag_steps": (0, MAX_STEPS), "zigzag_repeats": (1, 10)}
SETTING_OF_INPUT = {
    "steps": "num_steps",
    "guidance": "guidance_scale",
    "view_scale": "view_scale",
    "zigzag_steps": "zigzag_steps",
    "zigzag_repeats": "zigzag_repeats",
    "inverse_guidance": "inverse_guidance_scale",
    "inverse_view_scale": "inverse_view_scale",
}


def sampling_problem(prompt: str | None, negative_prompt: str | None, **numbers: float | None) -> bool | str:
    """What `validate_inputs` answers: True, or the first thing that is wrong; None is a linked input."""
    return first_problem(
        lambda: read_prompts(prompt),
        lambda: check_text("negative_prompt", negative_prompt),
        lambda: check_sampling_numbers(numbers),
    )


def read_settings(numbers: dict[str, Any]) -> SamplingSettings:
    """The core's settings from numeric inputs by name, checked again: a linked value is not known earlier.

    Raises:
        ValueError: a number is out of its range.
    """
    from ...t2mv_core.samplers import SamplingSettings

    check_sampling_numbers(numbers)
    return SamplingSettings(**{SETTING_OF_INPUT[name]: number for name, number in numbers.items()})


def check_sampling_numbers(numbers: dict[str, Any]) -> None:
    """Refuse numbers that are out of range, or more zigzags than steps; None (linked, not known yet) passes.

    Raises:
        ValueError: with the value and what is allowed.
    """
    for name, number in numbers.items():
        if name in SCALES:
            check_number(name, number, 0.0, SCALES[name][1])
        else:
            check_integer(name, number, *COUNTS[name])
    steps, zigzag_steps = numbers.get("steps"), numbers.get("zigzag_steps")
    if steps is not None and zigzag_steps is not None and zigzag_steps > steps:
        raise ValueError(f"zigzag_steps={zigzag_steps} must lie between 0 and steps={steps}.")


def prompt_inputs(seed_tooltip: str) -> list[io.Input]:
    """Model, prompt and seed."""
    return [
        Model.Input("model", tooltip="From Load Model, with or without LoRAs."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="a red mug",
            tooltip="What to draw. One object per line: every line becomes a set of views.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=seed_tooltip
        ),
    ]


def step_inputs() -> list[io.Input]:
    """Steps and scales."""
    return [
        io.Int.Input(
            "steps",
            default=4,
            min=1,
            max=MAX_STEPS,
            tooltip="Denoising steps: 4 for the toybox, 25 for its teacher, 4 to 8 for LCM models.",
        ),
        _scale_input("guidance", "How strongly the views follow the prompt; 1 is no guidance."),
        advanced(_scale_input("view_scale", "How strongly the views follow the cameras; 1 is as trained.")),
    ]


def zigzag_inputs(is_advanced: bool = False) -> list[io.Input]:
    """What only the ZMV sampler reads; the number of zigzags is shown at once unless `is_advanced`."""
    steps = io.Int.Input(
        "zigzag_steps",
        default=1,
        min=0,
        max=MAX_STEPS,
        tooltip="How many of the first steps are zigzags; 0 is ordinary sampling.",
    )
    return [
        advanced(steps) if is_advanced else steps,
        advanced(
            io.Int.Input(
                "zigzag_repeats",
                default=1,
                min=1,
                max=COUNTS["zigzag_repeats"][1],
                tooltip="How often a zigzag step goes back and forth; each costs two more UNet evaluations.",
            )
        ),
        advanced(
            _scale_input("inverse_guidance", "Guidance on the way back; the gap to 'guidance' is what helps.")
        ),
        advanced(_scale_input("inverse_view_scale", "View scale on the way back.")),
    ]


def optional_inputs() -> list[io.Input]:
    """What may stay unconnected; new inputs come last, so that saved workflows keep their values."""
    return [
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


def latent_output() -> io.Output:
    """The latent in ComfyUI's convention."""
    return io.Latent.Output(
        "latent",
        display_name="latent",
        tooltip="The same views as a latent in ComfyUI's convention (as the VAE takes it, not scaled): VAE "
        "Decode with the model's VAE gives these pictures.",
    )


def _scale_input(name: str, tooltip: str) -> io.Input:
    default, high = SCALES[name]
    return io.Float.Input(name, default=default, min=0.0, max=high, step=0.1, tooltip=tooltip)
