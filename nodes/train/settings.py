"""The inputs of the node that trains, and the trainer's arguments that are made of them. Needs no ComfyUI.

A workflow file is a stranger's file. Nothing of it reaches the trainer's command line but numbers, names from
lists, and paths that this pack built itself; prompts go through a file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...t2mv_core.formats.atomic import replaced
from ...training.config import OBJECTIVE_NAMES, TrainConfig, preset_names
from ..common.checks import Field, split_lines

PRESETS_OWN = "preset's"
NOT_FOR_USERS = {"comparison"}  # what training.compare repeats the paper's comparison with
MAX_NAME_CHARACTERS = 50  # of up to four bytes: with its endings still a file name everywhere
MAX_TRAINING_PROMPTS = 5000


def list_presets() -> list[str]:
    """Return the presets that are offered."""
    return [name for name in preset_names() if name not in NOT_FOR_USERS]


def _whole(name: str, tooltip: str, low: int, high: int, is_advanced: bool = True) -> Field:
    # Without the last word the frontend would draw another seed after every queue: another run, not this one.
    return Field(name, 0, tooltip, low, high, is_advanced=is_advanced, more={"control_after_generate": False})


# In the node's order. 0 stands for the preset's value, except for the seed.
FIELDS = (
    Field(
        "name", "my lora",
        "Name of the LoRA and of its run folder in output/t2mv_runs. Letters, digits, spaces and - _ . "
        "only. Other settings need another name.",
    ),
    Field(
        "preset", "demo",
        "All settings, as in training/config/presets: 'demo' takes minutes on a processor and 'toybox' an "
        "hour, both on the bundled model. The others need weights, and a graphics card.",
        choices=list_presets,
    ),
    Field(
        "prompts", "",
        "What to train on, one object per line; 50 to 300 are plenty. Empty: the preset's prompts.",
        more={"multiline": True},
    ),
    _whole(
        "iterations", "Length of the whole run; a larger number makes a finished run go on. 0: the preset's.",
        0, 100_000, is_advanced=False,
    ),
    Field(
        "learning_rate", 0.0, "Learning rate of AdamW. 0: the preset's.", high=1, step=1e-5, is_advanced=True,
        more={"round": False},
    ),
    _whole("rank", "Rank of the LoRA. 0: the preset's.", 0, 256),
    _whole("seed", "Every random draw of the run derives from it.", 0, 2**32 - 1),
    Field(
        "objective", PRESETS_OWN, "What is optimised; see docs/training.md.",
        choices=(PRESETS_OWN, *OBJECTIVE_NAMES), is_advanced=True,
    ),
    _whole(
        "prompts_per_iteration",
        "Prompts sampled in an iteration, each at least twice; fewer are quicker and noisier. An update "
        "uses at most as many. 0: the preset's.",
        0, 1024,
    ),
    Field(
        "resume", True,
        "Go on with the run of this name where it was. Off: refuse a name that has a run already.",
        is_advanced=True,
    ),
    Field(
        "download", False, "Allow a preset that names a model of the Hugging Face Hub to download it.",
        is_advanced=True,
    ),
)  # fmt: skip
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
    prompts = list(dict.fromkeys(split_lines(text)))
    if len(prompts) > MAX_TRAINING_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts are too many; at most {MAX_TRAINING_PROMPTS} are allowed.")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError("A prompt holds half a character (an unpaired surrogate); write the whole one.")
    return prompts


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Check the node's inputs by name; one that is missing or None (linked, not known yet) passes.

    Raises:
        ValueError: the first that cannot be used, in a sentence.
    """
    readers = {"name": check_name, "prompts": read_training_prompts}
    for each in FIELDS:
        readers.get(each.name, each.check)(inputs.get(each.name))


def write_prompts(prompts: Sequence[str], path: Path) -> None:
    """Write prompts as JSON lines: in a plain text file one that begins with # would be a comment.

    Raises:
        OSError: the folder cannot be written.
    """
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def build_overrides(
    inputs: Mapping[str, Any],
    preset: TrainConfig,
    run_dir: Path,
    reward_dir: Path,
    on_cpu: bool,
    prompts_path: Path | None,
) -> list[str]:
    """Write the checked inputs as the trainer's `section.key=value` words.

    Every iteration is an epoch of its own, so that pictures and a LoRA are there after each, and a run can be
    made longer by any number of iterations.

    Args:
        inputs: checked values by input name.
        preset: the chosen one's configuration.
        run_dir: where the run lies.
        reward_dir: folder with the weights of published rewards.
        on_cpu: ComfyUI computes on the processor, so the trainer is to do likewise.
        prompts_path: file of the user's own prompts; None leaves the preset's.
    """
    values: dict[str, Any] = {
        "run.out_dir": str(run_dir),
        "run.epochs": inputs["iterations"] or preset.run.epochs * preset.run.iterations_per_epoch,
        "run.iterations_per_epoch": 1,
        "run.keep_loras": 3,
        "run.sheet_prompts": max(preset.run.sheet_prompts, 1),
        "run.trackers": [],
        "run.seed": inputs["seed"],
        "model.allow_download": inputs["download"],
        "reward.allow_download": inputs["download"],
        "reward.folder": str(reward_dir),
    }
    if on_cpu:
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
    """Write a value as YAML that reads back as it was, in plain ASCII whatever a path holds.

    Not `json.dumps`: YAML 1.1 reads neither its pairs of surrogates nor an unescaped delete character.
    """
    if isinstance(value, str):
        plain = (c if " " <= c <= "~" and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{"".join(plain)}"'
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number.")
    return json.dumps(value)
