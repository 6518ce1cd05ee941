"""The inputs that sampling nodes share, and the core's settings read from them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...t2mv_core.defaults import TOYBOX_OF_PICTURE
from ..common.checks import MAX_SEED, Field, check_fields, widgets
from ..sockets import Model, Rig, output
from .own import own_words

if TYPE_CHECKING:
    from ...t2mv_core.samplers import SamplingSettings
    from ..sockets import ModelHandle

PROMPT = Field(
    "prompt", "a red mug", "What to draw. One object per line: every line becomes a set of views.",
    more={"multiline": True},
)  # fmt: skip
SEED = Field("seed", 0, "", high=MAX_SEED, more={"control_after_generate": True})
# What is best differs from model to model, and a widget's value does not: so at first it is a number that no
# sampler can use and that stands for the model's own.
STEPS = Field(
    "steps", 0, f"Denoising steps. 0 takes the model's own: {own_words('num_steps')}.", 1, 100, own=0,
)  # fmt: skip
GUIDANCE = Field(
    "guidance", 0.0,
    "How strongly the views follow the prompt; 1 is no guidance. 0 takes the model's own: "
    f"{own_words('guidance_scale')}.",
    high=30, step=0.1, own=0,
)  # fmt: skip
VIEW_SCALE = Field(
    "view_scale", 1.0, "How strongly the views follow the cameras; 1 is as trained.", high=10, step=0.1,
    is_advanced=True,
)  # fmt: skip
ZIGZAG_STEPS = Field(
    "zigzag_steps", -1,
    "How many of the first steps are zigzags; 0 is ordinary sampling. -1 takes the model's own: "
    f"{own_words('zigzag_steps')}.",
    high=STEPS.high, own=-1,
)  # fmt: skip
ZIGZAG_REPEATS = Field(
    "zigzag_repeats", 1,
    "How often a zigzag step goes back and forward; each time costs two more UNet evaluations.",
    1, 10, is_advanced=True,
)  # fmt: skip
INVERSE_GUIDANCE = replace(
    GUIDANCE, name="inverse_guidance", default=-1.0, own=-1, is_advanced=True,
    tooltip="Guidance on the way back, 1 is none; the gap to 'guidance' is what helps. -1 takes the model's "
    f"own: {own_words('inverse_guidance_scale')}.",
)  # fmt: skip
INVERSE_VIEW_SCALE = replace(
    VIEW_SCALE, name="inverse_view_scale", default=-1.0, own=-1,
    tooltip="View scale on the way back; 0 drops the cameras there, which was not tried with LCM-SDXL and "
    f"SDXL. -1 takes the model's own: {own_words('inverse_view_scale')}.",
)  # fmt: skip
NEGATIVE_PROMPT = Field(
    "negative_prompt", "",
    "What to steer away from. Only models with two-pass guidance use it (the toybox teacher), few-step "
    "models do not.",
    is_optional=True, is_advanced=True,
)  # fmt: skip
REF_SCALE = Field(
    "ref_scale", -1.0,
    "How strongly the views follow the picture, where one is connected; 1 is as trained, 0 drops it. "
    f"-1 takes the model's own: {TOYBOX_OF_PICTURE.ref_scale:g} for toybox image, 1 for all others.",
    high=10, step=0.05, own=-1, is_optional=True, is_advanced=True,
)  # fmt: skip
INVERSE_REF_SCALE = replace(
    REF_SCALE, name="inverse_ref_scale", default=1.0, own=None,
    tooltip="How strongly the views follow the picture on the way back, at most as 'ref_scale' says; 0 drops "
    "the picture there.",
)  # fmt: skip
ZIGZAG = (ZIGZAG_STEPS, ZIGZAG_REPEATS, INVERSE_GUIDANCE, INVERSE_VIEW_SCALE)
# A setting of the core -> the input that it is read from.
NUMBERS = {
    "num_steps": STEPS,
    "guidance_scale": GUIDANCE,
    "view_scale": VIEW_SCALE,
    "zigzag_steps": ZIGZAG_STEPS,
    "zigzag_repeats": ZIGZAG_REPEATS,
    "inverse_guidance_scale": INVERSE_GUIDANCE,
    "inverse_view_scale": INVERSE_VIEW_SCALE,
    "ref_scale": REF_SCALE,
    "inverse_ref_scale": INVERSE_REF_SCALE,
}


def read_settings(numbers: dict[str, Any], model: ModelHandle) -> SamplingSettings:
    """Make the core's settings of numeric inputs by name, checked again and the model's own filled in.

    Raises:
        ValueError: a number is out of its range, or there are more zigzags than steps.
    """
    from ...t2mv_core.samplers import SamplingSettings

    check_sampling_numbers(numbers)
    values = {
        setting: numbers.get(each.name, each.default)
        for setting, each in NUMBERS.items()
        if each.name in numbers or each.is_optional
    }
    own = model.bundle.defaults
    return SamplingSettings(
        **{
            setting: getattr(own, setting) if value == NUMBERS[setting].own else value
            for setting, value in values.items()
        }
    )


def reading_notes(model: ModelHandle, prompts: list[str], negative_prompt: str = "", **_: Any) -> list[str]:
    """Say what the model does not read of prompts as they may be meant; mostly nothing."""
    from ...t2mv_core.text import describe_reading

    return describe_reading(model.bundle, [*prompts, negative_prompt])


def describe_set(seed: int, settings: SamplingSettings, numbers: dict[str, Any]) -> str:
    """Say in a line what a set was sampled with.

    Args:
        seed: of its noise.
        settings: as `read_settings` made them.
        numbers: of the node, those that its sampler reads.
    """
    own = " (the model's own)" if numbers["guidance"] == GUIDANCE.own else ""
    steps = "1 step" if settings.num_steps == 1 else f"{settings.num_steps} steps"
    parts = [f"seed {seed}", steps, f"guidance {settings.guidance_scale:g}{own}"]
    if settings.view_scale != 1:
        parts.append(f"view scale {settings.view_scale:g}")
    if settings.ref_scale != 1:
        parts.append(f"picture scale {settings.ref_scale:g}")
    if numbers.get("zigzag_steps") and settings.zigzag_steps:
        inverse = [f"guidance {settings.inverse_guidance_scale:g}"]
        if settings.inverse_view_scale != 1:
            inverse.append(f"view scale {settings.inverse_view_scale:g}")
        if (ref_scale := min(settings.inverse_ref_scale, settings.ref_scale)) != settings.ref_scale:
            inverse.append(f"picture scale {ref_scale:g}")
        back = " and ".join(inverse)
        parts.append(f"{settings.zigzag_steps} x {settings.zigzag_repeats} zigzag, back at {back}")
    return " · ".join(parts)


def settings_output() -> io.Output:
    """Return the output that says what was used, for a contact sheet's caption."""
    tooltip = "What every set was sampled with, a line each: for Create Contact Sheet's caption."
    return output(io.String, "settings", tooltip)


def check_sampling_numbers(numbers: dict[str, Any]) -> None:
    """Refuse numbers that are out of range, or more zigzags than steps; None (linked, not known yet) passes.

    Raises:
        ValueError: with the value and what is allowed.
    """
    check_fields(NUMBERS.values(), numbers)
    steps, zigzag_steps = numbers.get("steps"), numbers.get("zigzag_steps")
    is_known = None not in (steps, zigzag_steps) and steps != STEPS.own  # the model may not be loaded yet
    if is_known and zigzag_steps > steps:
        raise ValueError(f"zigzag_steps={zigzag_steps} must lie between 0 and steps={steps}.")


def check_sampling(negative_prompt: str | None = "", seed: int | None = None, **numbers: Any) -> None:
    """Refuse values of the inputs that all sampling nodes have, except the prompt; others are ignored.

    Raises:
        ValueError: with the value and what is allowed.
    """
    NEGATIVE_PROMPT.check(negative_prompt)
    SEED.check(seed)
    check_sampling_numbers(numbers)


def numbers_read(sampler: str | None, numbers: dict[str, Any], has_picture: bool = True) -> dict[str, Any]:
    """Return the numbers that a sampler reads: the standard one has no zigzags, text no picture's scale."""
    unread = [each.name for each in (*ZIGZAG, INVERSE_REF_SCALE)] if sampler == "standard" else []
    if not has_picture:
        unread += [REF_SCALE.name, INVERSE_REF_SCALE.name]
    return {name: number for name, number in numbers.items() if name not in unread}


def prompt_inputs(seed_tooltip: str, *between: io.Input, prompt_name: str = PROMPT.name) -> list[io.Input]:
    """Return model, the inputs in between, prompt, seed."""
    return [
        Model.Input("model", lazy=True, tooltip="From Load Model, with or without LoRAs."),
        *between,
        *widgets(replace(PROMPT, name=prompt_name), replace(SEED, tooltip=seed_tooltip)),
    ]


def optional_inputs(*ref_scales: Field) -> list[io.Input]:
    """Return what may stay unconnected; new inputs come last, so that saved workflows keep their values."""
    return [
        Rig.Input("rig", optional=True, tooltip="The cameras. Without a rig: the six default views."),
        NEGATIVE_PROMPT.widget(),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="What a model of image to multiview draws the views of, from Read Reference Image: one "
            "picture for all prompt lines, or one per line.",
        ),
        *widgets(*ref_scales),
    ]


def latent_output() -> io.Output:
    """Return the latent in ComfyUI's convention."""
    return output(
        io.Latent,
        "latent",
        "The same views as a latent in ComfyUI's convention (as the VAE takes it, not scaled): VAE Decode "
        "with the model's VAE gives these pictures.",
    )
