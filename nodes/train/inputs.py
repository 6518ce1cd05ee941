"""The inputs of the node that trains."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..sockets import advanced
from .settings import MAX_LEARNING_RATE, PRESETS_OWN, WHOLE_NUMBERS


def training_inputs(presets: Sequence[str], objectives: Sequence[str]) -> list[io.Input]:
    """All inputs of the node, in its order."""
    return [*_main_inputs(presets), *_advanced_inputs(objectives)]


def _main_inputs(presets: Sequence[str]) -> list[io.Input]:
    return [
        io.String.Input(
            "name",
            default="my lora",
            tooltip="Name of the LoRA and of its run folder in output/t2mv_runs. Letters, digits, spaces and "
            "- _ . only. Other settings need another name.",
        ),
        io.Combo.Input(
            "preset",
            options=list(presets),
            default="demo" if "demo" in presets else presets[0],
            tooltip="All settings, as in training/config/presets: 'demo' takes minutes on a processor "
            "and 'toybox' an hour, both on the bundled model. The others need weights, and a graphics card.",
        ),
        io.String.Input(
            "prompts",
            multiline=True,
            default="",
            tooltip="What to train on, one object per line; 50 to 300 are plenty. "
            "Empty: the preset's prompts.",
        ),
        _whole_input("iterations", "Length of the whole run; a larger number makes a finished run go on."),
    ]


def _advanced_inputs(objectives: Sequence[str]) -> list[io.Input]:
    own = [PRESETS_OWN, *objectives]
    inputs = [
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=MAX_LEARNING_RATE,
            step=1e-5,
            round=False,
            tooltip="Learning rate of AdamW. 0: the preset's.",
        ),
        _whole_input("rank", "Rank of the LoRA."),
        _whole_input("seed", "Every random draw of the run derives from it.", is_preset_at_zero=False),
        io.Combo.Input(
            "objective", options=own, default=PRESETS_OWN, tooltip="What is optimised; see docs/training.md."
        ),
        _whole_input(
            "prompts_per_iteration",
            "Prompts sampled in an iteration, each at least twice; fewer are quicker and noisier. An update "
            "uses at most as many.",
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip="Go on with the run of this name where it was. Off: refuse a name that has "
            "a run already.",
        ),
        io.Boolean.Input(
            "download",
            default=False,
            tooltip="Allow a preset that names a model of the Hugging Face Hub to download it.",
        ),
    ]
    return [advanced(widget) for widget in inputs]


def _whole_input(name: str, tooltip: str, is_preset_at_zero: bool = True) -> io.Input:
    low, high = WHOLE_NUMBERS[name]
    ending = " 0: the preset's." if is_preset_at_zero else ""
    return io.Int.Input(
        name,
        default=0,
        min=low,
        max=high,
        # Without this word the frontend would draw another seed after every queue: another run, not this one.
        control_after_generate=False,
        tooltip=tooltip + ending,
    )
