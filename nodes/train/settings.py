"""The inputs of the node that trains, and the configuration that is made of them. Needs no ComfyUI.

A workflow file is a stranger's file. Nothing of it reaches the trainer but numbers, names from lists, and
paths that this pack built itself; prompts go through a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...t2mv_core.formats.atomic import replaced
from ...t2mv_core.formats.sources import TOYBOX_PRESETS
from ...training.config import (
    OBJECTIVE_NAMES,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
    read_preset,
)
from ..common.checks import Field, read_lines

if TYPE_CHECKING:
    from ..sockets import ModelHandle, RewardHandle

PRESETS_OWN = "preset's"
NOT_FOR_USERS = {"comparison", "conflict"}  # experiments of ours on the bundled model
MAX_NAME_CHARACTERS = 50  # of up to four bytes: with its endings still a file name everywhere
MAX_TRAINING_PROMPTS = 5000
GUIDE = "https://github.com/t2mv/t2mv/blob/main/docs/training.md"
DTYPE_WORDS = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


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
        "All settings, as in training/config/presets, rewards and memory among them. 'demo', 'pictures' "
        "(both 8 minutes on a processor) and 'toybox' (an hour) train bundled models; the others need "
        "weights and a graphics card. With LCM-SDXL or SDXL connected, choose lcm-sdxl-24gb or "
        "lcm-sdxl-12gb: the rewards of demo, toybox and pictures know the toybox only.",
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
        "objective", PRESETS_OWN, f"What is optimised; see {GUIDE}.",
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
        "download", False, "May fetch the preset's model, PickScore, HPSv2 and HPSv2.1.", is_advanced=True,
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


def read_training_prompts(text: str | None, has_pictures: bool = False) -> list[str]:
    """Split a text box into prompts, one per line; an empty one gives none: the preset's are meant.

    Args:
        text: of the box; None (a linked input, not known yet) gives none.
        has_pictures: each line belongs to a picture, so that equal lines all count.

    Raises:
        ValueError: too many prompts, or one that no model can use.
    """
    if text is None:
        return []
    lines = read_lines(text)
    prompts = lines if has_pictures else list(dict.fromkeys(lines))
    if len(prompts) > MAX_TRAINING_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts are too many; at most {MAX_TRAINING_PROMPTS} are allowed.")
    return prompts


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Check the node's inputs by name; one that is missing or None (linked, not known yet) passes.

    Raises:
        ValueError: the first that cannot be used, in a sentence.
    """
    readers = {"name": check_name, "prompts": read_training_prompts}
    for each in FIELDS:
        readers.get(each.name, each.check)(inputs.get(each.name))


def prompts_file_name(prompts: Sequence[str]) -> str:
    """Return a name that other prompts do not get, so that they never replace those of a run."""
    return f"prompts-{hashlib.sha256(_prompt_lines(prompts).encode()).hexdigest()[:16]}.jsonl"


def write_prompts(prompts: Sequence[str], path: Path) -> None:
    """Write prompts as JSON lines: in a plain text file one that begins with # would be a comment.

    Raises:
        OSError: the folder cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(_prompt_lines(prompts), encoding="utf-8")


def _prompt_lines(prompts: Sequence[str]) -> str:
    return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)


@dataclass(frozen=True)
class Places:
    """Where a run finds and writes things on this machine.

    Attributes:
        run_dir: its folder.
        reward_dir: folder with the weights of published rewards.
        prompts_path: file of the user's own prompts; None leaves the preset's.
        references_path: list of the pictures to draw the views of; None: the preset's, if it has any.
        on_cpu: ComfyUI computes on the processor.
    """

    run_dir: Path
    reward_dir: Path
    prompts_path: Path | None
    on_cpu: bool
    references_path: Path | None = None


def build_config(
    inputs: Mapping[str, Any],
    places: Places,
    model: ModelHandle | None = None,
    rewards: Sequence[RewardHandle] | None = None,
) -> TrainConfig:
    """Write the checked inputs into the chosen preset.

    Every iteration is an epoch of its own, so that pictures and a LoRA are there after each, and a run can be
    made longer by any number of iterations.

    Args:
        inputs: checked values by input name.
        places: see Places.
        model: the connected model, which then stands in the configuration; None is the preset's.
        rewards: the connected rewards, likewise.

    Raises:
        ValueError: the inputs do not go together, such as an objective without its reward, in a sentence; or
            the preset's rewards know the toybox only, and another model is connected.
    """
    preset = load_config(inputs["preset"])
    sections = _own_sections(inputs, places, preset)
    if rank := inputs["rank"]:
        # alpha / rank scales the LoRA; another rank is not to be another strength
        scale = preset.model.lora_alpha / preset.model.lora_rank
        sections["model"] |= {"lora_rank": rank, "lora_alpha": scale * rank}
    if count := inputs["prompts_per_iteration"]:
        sections["sampling"]["prompts_per_iteration"] = count
        if preset.optim.prompts_per_update is not None:
            sections["optim"]["prompts_per_update"] = min(preset.optim.prompts_per_update, count)
    if model is not None:
        sections["model"] |= _describe_model(model)
        sections["sampling"] |= _own_numbers(model, inputs["preset"])
        if not rewards:
            _check_preset_rewards(model, (*preset.reward.view, *preset.reward.joint))
    if rewards:
        sections["reward"] |= {
            kind: {handle.reward.name: 1.0 for handle in rewards if handle.reward.kind == kind}
            for kind in ("view", "joint")
        }
    if _sources(places):  # the user's own, often a few, which nobody can divide here: all are trained on
        sections["sampling"]["held_out_share"] = 0.0
        if places.prompts_path is not None and preset.sampling.held_out_share:
            sections["evaluation"]["prompts"] = "objects"  # SDXL's presets: the default set is the toybox's
    values = config_to_dict(preset)
    for name, section in sections.items():
        values[name] |= section
    if inputs["objective"] != PRESETS_OWN:
        values["objective"] = inputs["objective"]
    return config_from_dict(values)


def _own_sections(
    inputs: Mapping[str, Any], places: Places, preset: TrainConfig
) -> dict[str, dict[str, Any]]:
    """Return what the node states whatever is connected."""
    return {
        "run": {
            "out_dir": str(places.run_dir),
            "epochs": inputs["iterations"] or preset.run.epochs * preset.run.iterations_per_epoch,
            "iterations_per_epoch": 1,
            "save_every": 1,
            "keep_loras": 3,
            "sheet_prompts": max(preset.run.sheet_prompts, 1),
            "trackers": [],
            "seed": inputs["seed"],
        },
        "model": {"allow_download": inputs["download"]} | ({"device": "cpu"} if places.on_cpu else {}),
        "reward": {"allow_download": inputs["download"], "folder": str(places.reward_dir)},
        "sampling": _sources(places),
        "optim": {"lr": float(inputs["learning_rate"])} if inputs["learning_rate"] else {},
        # Nobody sees evaluations here; `training.evaluate` measures a finished run.
        "evaluation": {"every": 0, "stop_measure": None, "patience": 0, "view": [], "joint": []},
    }


def _sources(places: Places) -> dict[str, Any]:
    named = {"prompts": places.prompts_path, "references": places.references_path}
    return {name: str(path) for name, path in named.items() if path is not None}


def _own_numbers(model: ModelHandle, preset: str) -> dict[str, Any]:
    """Return the numbers of a connected model that the preset does not state for every model."""
    stated = read_preset(preset).get("sampling", {})
    return {name: number for name, number in model.bundle.defaults.numbers().items() if name not in stated}


def _check_preset_rewards(model: ModelHandle, rewards: Sequence[str]) -> None:
    """Refuse a preset's rewards that know the toybox only, where another model is connected."""
    name = model.bundle.sources.model
    bundled = [reward for reward in rewards if reward.startswith("toybox_")]
    if bundled and name not in TOYBOX_PRESETS:
        raise ValueError(
            f"{bundled[0]} knows only the toybox's objects, and the model is {name}; connect rewards, or "
            "choose the preset lcm-sdxl-24gb or lcm-sdxl-12gb."
        )


def _describe_model(model: ModelHandle) -> dict[str, Any]:
    """Return a connected model in the words of the configuration.

    Raises:
        ValueError: it is kept in float8, or one of its LoRAs has no file, by which a resumed run could know
            it again.
    """
    bundle = model.bundle
    if any(weight.dtype.itemsize == 1 for weight in bundle.unet.parameters()):
        raise ValueError("A model in float8 cannot be trained on; set Load Model's precision to another one.")
    nameless = [lora.name for lora in bundle.loras if lora.path is None]
    if nameless:
        raise ValueError(f"The model has a LoRA without a file ({nameless[0]}); connect one from Load LoRA.")
    sources = bundle.sources
    return {
        "name": sources.model,
        "adapter": sources.adapter,
        "unet": sources.unet,
        "vae": sources.vae,
        "scheduler": sources.scheduler,
        "solver": sources.solver,
        "dtype": DTYPE_WORDS[str(bundle.unet.dtype)],
        "base_loras": [{"path": str(lora.path), "strength": lora.strength} for lora in bundle.loras],
    }
