"""What a workflow may ask of the trainer: values read or refused in words, then turned into its arguments.

A workflow file is a stranger's file. Nothing of it reaches the trainer's command line but numbers, names from
lists, and paths that this pack built itself; prompts go through a file. Needs no ComfyUI.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...t2mv_core.formats.atomic import replaced
from ..common.checks import MAX_PROMPT_CHARACTERS, check_boolean, check_choice, check_number

PRESETS_OWN = "preset's"
MAX_NAME_CHARACTERS = 50  # of up to four bytes: with its endings still a file name everywhere
MAX_TRAINING_PROMPTS = 5000
MAX_LEARNING_RATE = 1.0
# Input -> (smallest, largest); 0 stands for the preset's value, except for the seed.
WHOLE_NUMBERS = {
    "iterations": (0, 100_000),
    "rank": (0, 256),
    "seed": (0, 2**32 - 1),
    "prompts_per_iteration": (0, 1024),
}
SWITCHES = ("resume", "download")
_NAME = re.compile(r"[^\W_](?:[\w .-]*[\w-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)  # on Windows


def check_name(name: str | None) -> None:
    """Refuse what is no plain file name on every system; None (a linked input, not known yet) passes.

    Raises:
        ValueError: with the name and what is allowed.
    """
    if name is None:
        return
    is_plain = isinstance(name, str) and len(name) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(name)
    if not is_plain or _RESERVED.fullmatch(name):
        raise ValueError(
            f"name={str(name)[:80]!r} cannot name a LoRA; use at most {MAX_NAME_CHARACTERS} letters, digits, "
            "spaces and - _ . beginning with a letter or digit, not ending with a space or dot, without "
            "folders."
        )


def read_training_prompts(text: str | None) -> list[str]:
    """Split a text box into prompts, one per line; an empty one gives none: the preset's are meant.

    Raises:
        ValueError: too many prompts, one that is too long, or half a character.
    """
    if text is None:
        return []
    if not isinstance(text, str):
        raise ValueError(f"prompts={text!r} must be text, one prompt per line.")
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(prompts) > MAX_TRAINING_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts were given; at most {MAX_TRAINING_PROMPTS} are allowed.")
    longest = max(map(len, prompts), default=0)
    if longest > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"A prompt has {longest} characters; at most {MAX_PROMPT_CHARACTERS} are allowed, and the text "
            "encoders read only about the first 75 tokens. Shorten it."
        )
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("A prompt holds half a character (an unpaired surrogate); write the whole one.")
    return prompts


def check_inputs(inputs: Mapping[str, Any], presets: Sequence[str], objectives: Sequence[str]) -> None:
    """Check all inputs of the node that are given; None is a linked one, not known yet.

    Args:
        inputs: values by input name.
        presets: the presets that are offered.
        objectives: the trainer's objectives.

    Raises:
        ValueError: the first that cannot be used, in a sentence.
    """
    check_name(inputs.get("name"))
    check_choice("preset", inputs.get("preset"), presets, "Choose one of the list.")
    check_choice("objective", inputs.get("objective"), [PRESETS_OWN, *objectives], "Choose one of the list.")
    read_training_prompts(inputs.get("prompts"))
    for name, (low, high) in WHOLE_NUMBERS.items():
        value = inputs.get(name)
        if value is not None and type(value) is not int:
            raise ValueError(f"{name}={value!r} must be a whole number from {low} to {high}.")
        check_number(name, value, low, high)
    rate = inputs.get("learning_rate")
    if rate is not None and type(rate) not in (int, float):
        raise ValueError(f"learning_rate={rate!r} must be a number from 0 to {MAX_LEARNING_RATE:g}.")
    check_number("learning_rate", rate, 0.0, MAX_LEARNING_RATE)
    for name in SWITCHES:
        check_boolean(name, inputs.get(name))


def write_prompts(prompts: Sequence[str], path: Path) -> None:
    """Write prompts as JSON lines: in a plain text file one that begins with # would be a comment.

    Raises:
        OSError: the folder cannot be written.
    """
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Surroundings:
    """What ComfyUI has for the trainer.

    Attributes:
        run_dir: where the run lies.
        reward_dir: folder with the weights of published rewards.
        on_cpu: ComfyUI computes on the processor, so the trainer is to do likewise.
    """

    run_dir: Path
    reward_dir: Path
    on_cpu: bool


def build_overrides(
    inputs: Mapping[str, Any], preset: Any, surroundings: Surroundings, prompts_path: Path | None
) -> list[str]:
    """The checked inputs as the trainer's `section.key=value` words.

    Every iteration is an epoch of its own, so that pictures and a LoRA are there after each, and a run can be
    made longer by any number of iterations.

    Args:
        inputs: checked values by input name.
        preset: the preset's TrainConfig.
        surroundings: folders and device.
        prompts_path: file of the user's own prompts; None leaves the preset's.
    """
    values: dict[str, Any] = {
        "run.out_dir": str(surroundings.run_dir),
        "run.epochs": inputs["iterations"] or preset.run.epochs * preset.run.iterations_per_epoch,
        "run.iterations_per_epoch": 1,
        "run.keep_loras": 3,
        "run.sheet_prompts": max(preset.run.sheet_prompts, 1),
        "run.trackers": [],
        "run.seed": inputs["seed"],
        "model.allow_download": inputs["download"],
        "reward.allow_download": inputs["download"],
        "reward.folder": str(surroundings.reward_dir),
    }
    if surroundings.on_cpu:
        values["model.device"] = "cpu"
    if prompts_path is not None:
        values["sampling.prompts"] = str(prompts_path)
    if inputs["objective"] != PRESETS_OWN:
        values["objective"] = inputs["objective"]
    if inputs["learning_rate"]:
        values["optim.lr"] = float(inputs["learning_rate"])
    if inputs["rank"]:
        values["model.lora_rank"] = inputs["rank"]
        # alpha / rank scales the LoRA; another rank is not to be another strength
        values["model.lora_alpha"] = preset.model.lora_alpha / preset.model.lora_rank * inputs["rank"]
    if count := inputs["prompts_per_iteration"]:
        values["sampling.prompts_per_iteration"] = count
        if preset.optim.prompts_per_update is not None:
            values["optim.prompts_per_update"] = min(preset.optim.prompts_per_update, count)
    return [f"{key}={yaml_value(value)}" for key, value in values.items()]


def yaml_value(value: str | int | float | bool | list[Any]) -> str:
    """A value as YAML that reads back as it was, in plain ASCII whatever a path holds.

    Not `json.dumps`: YAML 1.1 reads neither its pairs of surrogates nor an unescaped delete character.
    """
    if isinstance(value, str):
        plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{"".join(plain)}"'
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number.")
    return json.dumps(value)
