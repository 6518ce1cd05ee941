"""The node that trains a LoRA inside ComfyUI, on the model and rewards of the graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..common.checks import first_problem, widgets
from ..common.folders import lora_folders, output_dir, refresh_lora_list, reward_folders
from ..common.memory import compute_device
from ..common.outputs import picture_tensor
from ..sampling.reference import framing_notes
from ..sockets import Model, Rewards, make_schema, output
from .pictures import check_references, write_references
from .publish import find_place, listed_name, name_loss, publish
from .settings import (
    FIELDS,
    Places,
    build_config,
    check_inputs,
    check_name,
    prompts_file_name,
    read_training_prompts,
    write_prompts,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...training.config import TrainConfig
    from ..sockets import ModelHandle, RewardHandle

PACK_DIR = Path(__file__).parents[2]
RUNS_FOLDER = "t2mv_runs"
# Not `python -m`: the Python of the Windows portable build does not look into the working folder.
START_EVALUATION = (
    f"import runpy, sys; sys.path.insert(0, {str(PACK_DIR)!r}); "
    "runpy.run_module('training.evaluate', run_name='__main__')"
)
# ComfyUI 0.3.64 gives io.Combo.Output no type name, so that nothing could be connected to it.
LoraName = io.Custom("COMBO")


class T2MVTrainLoRA(io.ComfyNode):
    """Settings to a trained LoRA among ComfyUI's LoRAs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVTrainLoRA",
            display_name="Train LoRA (T2MV)",
            category="T2MV/training",
            description="Trains a LoRA by reinforcement learning with rewards (MVC-ZigAL). Cancelling keeps "
            "the state; queueing again goes on.",
            shows_result=True,
            search_aliases=["mvc-zigal", "reinforcement learning", "finetune", "rl training", "train lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *widgets(*FIELDS),
                Model.Input(
                    "model",
                    optional=True,
                    lazy=True,
                    tooltip="What to train on, LoRAs included, which stay as they are. Unconnected: the "
                    "preset's model.",
                ),
                Rewards.Input(
                    "rewards",
                    optional=True,
                    lazy=True,
                    tooltip="What to learn from, each with weight 1. Unconnected: the preset's rewards.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    lazy=True,
                    tooltip="For models of image to multiview: framed pictures to draw views of, one per "
                    "line of 'prompts', or several with one line or none.",
                ),
            ],
            outputs=[
                output(
                    LoraName, "lora_name", "The LoRA's name: connect it to the input 'lora' of Load LoRA."
                ),
                output(io.String, "report", "Where it lies, and how the rewards changed."),
                output(io.Image, "curves", "Rewards, lambda and loss over the iterations."),
                output(io.Image, "samples", "What the last iteration drew, a row per set."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        """Refuse unusable names before the run; of other inputs ComfyUI would paint the innocent ones."""
        return first_problem(lambda: check_name(name))

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Refuse what cannot be trained, and then ask for the model and the rewards that are connected."""
        from .session import check_preset_files

        check_inputs(inputs)
        find_place(inputs["name"], _run_dir(inputs["name"]), lora_folders())
        connected = [name for name in ("model", "rewards", "reference") if name in inputs]
        check_preset_files(inputs["preset"], inputs["download"], "model" in connected, "rewards" in connected)
        return connected

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: Any) -> str:
        """Return the same word for a finished run, so that it is not repeated, until its files are gone.

        A LoRA that somebody removed is then put back, and a run that somebody deleted is trained anew.
        """
        try:
            check_name(name)
        except ValueError:
            return "unusable"  # refused elsewhere, in words
        return "" if name is None else name_loss(name, _run_dir(name), lora_folders())

    @classmethod
    def execute(
        cls,
        model: ModelHandle | None = None,
        rewards: tuple[RewardHandle, ...] | None = None,
        reference: Tensor | None = None,
        **inputs: Any,
    ) -> io.NodeOutput:
        """Train to the end, or go on where the run was; put the LoRA into its place."""
        check_inputs(inputs)
        prompts = read_training_prompts(inputs["prompts"], reference is not None)
        check_references(reference, len(prompts), inputs["preset"], model, rewards)
        run_dir = _run_dir(inputs["name"])
        place = find_place(inputs["name"], run_dir, lora_folders())
        config = _prepare(inputs, run_dir, model, rewards, reference)
        notes = framing_notes(reference) + _train(config, inputs, model, rewards, cls.hidden.unique_id)
        source = publish(run_dir, place)
        refresh_lora_list()
        report = _report(inputs, run_dir, source, notes)
        outputs = (listed_name(inputs["name"]), report, *_pictures(run_dir))
        return io.NodeOutput(*outputs, ui=ui.PreviewText(report))


def _prepare(
    inputs: dict[str, Any],
    run_dir: Path,
    model: ModelHandle | None,
    rewards: tuple[RewardHandle, ...] | None,
    reference: Tensor | None,
) -> TrainConfig:
    """Build the configuration, and write the prompts of a run that may begin or go on."""
    from .session import check_resumption, share_core

    share_core()  # the configuration reads the models' own numbers there
    reward_dirs = reward_folders()
    reward_dir = next((folder for folder in reward_dirs if folder.is_dir()), reward_dirs[0])
    prompts = read_training_prompts(inputs["prompts"], reference is not None)
    prompts_path = run_dir / prompts_file_name(prompts) if prompts and reference is None else None
    pictures = None if reference is None else write_references(reference, prompts, run_dir / "pictures")
    places = Places(run_dir, reward_dir, prompts_path, compute_device().type == "cpu", pictures)
    config = build_config(inputs, places, model, rewards)
    if inputs["resume"]:
        check_resumption(config)
    if prompts_path is not None:
        write_prompts(prompts, prompts_path)
    if pictures is None:
        from ...training.data.prompts import load_split

        load_split(config.sampling.prompts, config.sampling.held_out_share)  # a preset's file may be missing
    return config


def _train(
    config: TrainConfig,
    inputs: dict[str, Any],
    model: ModelHandle | None,
    rewards: tuple[RewardHandle, ...] | None,
    node_id: str | None,
) -> list[str]:
    """Train on what is connected, and for the rest on what the preset names; say what nobody reads."""
    from ...t2mv_core.rewards.inputs import describe_unread
    from ...t2mv_core.text import describe_reading
    from .progress import TrainingDisplay
    from .session import load_preset_model, load_run_rewards, train

    run_dir, total = Path(config.run.out_dir), config.run.epochs * config.run.iterations_per_epoch
    display = TrainingDisplay(run_dir, total, node_id)
    model = model or load_preset_model(config.model)
    scorers = load_run_rewards(config, rewards)
    has_trained = train(config, inputs["resume"], model, scorers, display)
    display.finish(_read_records(run_dir))
    prompts = read_training_prompts(inputs["prompts"])
    unread = describe_unread((handle.reward for handle in scorers), prompts)
    notes = [*describe_reading(model.bundle, prompts), *unread]
    if not has_trained:
        notes.append(
            "Nothing was trained, as this run was finished. More iterations go on; other settings need "
            "another name."
        )
    return notes


def _report(inputs: dict[str, Any], run_dir: Path, source: Path, notes: Sequence[str]) -> str:
    from .progress import reward_lines

    records = _read_records(run_dir)
    num_done = int(records[-1]["iteration"]) if records else 0
    lines = [
        f"LoRA: {listed_name(inputs['name'])} ({source.name} after {num_done} iterations)",
        f"preset: {inputs['preset']}",
        *reward_lines(records),
        *notes,
        "Every iteration draws other prompts: compare pictures with and without the LoRA, or measure on "
        "prompts that were not trained on (--prompts names others):",
        f'"{sys.executable}" -c "{START_EVALUATION}" --run "{run_dir}" --lora "{source}" '
        f'--out "{run_dir / "evaluation"}"',
        f"run folder: {run_dir}",
    ]
    return "\n".join(lines)


def _read_records(run_dir: Path) -> list[dict[str, float]]:
    from ...training.run.metrics import read_metrics

    return read_metrics(run_dir / "metrics.jsonl")


def _pictures(run_dir: Path) -> list[Tensor]:
    """Return the curves and the newest sample sheet; white where somebody removed one."""
    from PIL import Image

    from .progress import newest_sheet, read_picture

    pictures = [path and read_picture(path) for path in (run_dir / "curves.png", newest_sheet(run_dir))]
    return [picture_tensor(picture or Image.new("RGB", (64, 64), "white")) for picture in pictures]


def _run_dir(name: str) -> Path:
    return output_dir() / RUNS_FOLDER / name
