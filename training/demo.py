"""The whole method on the bundled model in one command: sample, train, sample again, report.

python -m training.demo --out demo
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.images import contact_sheet
from t2mv_core.objects.colours import to_linear
from t2mv_core.objects.reconstruction import reconstruct
from t2mv_core.objects.rendering import render_surface
from t2mv_core.objects.silhouettes import object_masks
from t2mv_core.objects.viewing import Views

from .config import TrainConfig, home_path, load_config
from .data.prompts import load_held_out, load_split
from .evaluation.choice import refuse_watched
from .evaluation.intervals import Interval
from .evaluation.measure import (
    HULL_LEFT_OUT,
    Instruments,
    Measurement,
    Variant,
    load_instruments,
    make_questions,
    measure,
    spread,
)
from .evaluation.report import SHEET_PROMPTS, differences, markdown_table, summarize, write_report
from .models.base_loras import load_base_model
from .models.policy import sampling_settings
from .run.stop import stopping_on_signals
from .run.trainer import Trainer

logger = logging.getLogger(__name__)

# Far from the training seed, though the noise of training and measuring never coincides anyway.
SEEDS = (1000, 1001, 1002)
OVERVIEW_PX = 64
OBJECT_PX = 128
MEASURED_TOO = "evaluation.joint=[toybox_hyperscore]"
"""Beside the rewards that the preset learns from."""
GOALS = {
    "view_reward": "single-view reward (trained on)",
    "joint_reward": "joint-view reward (trained on, as a constraint)",
    "joint_reward/toybox_hyperscore": "HyperScore (not trained on)",
    "judge_family": "judge: right family",
    "judge_colour": "judge: right colour",
    "judge_part": "judge: right part colour",
    "judge_relation": "judge: right second object",
    "judge_azimuth": "judge: right azimuth",
}
"""What the LoRA should improve, in words."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=home_path, default=Path("demo"), help="folder of everything the demo writes"
    )
    parser.add_argument("--preset", default="demo", help="training preset")
    parser.add_argument(
        "--num-prompts", type=int, default=100, help="held-out prompts to measure on; ten are shown"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that differ from the preset"
    )
    return parser


def run(out_dir: Path, config: TrainConfig, num_prompts: int) -> Path | None:
    """Measure, train, measure again and write the report.

    Args:
        out_dir: receives sheets, report and curves; the training run lies in `run/` below it.
        config: the training run; its `run.out_dir` is below `out_dir`.
        num_prompts: held-out prompts to measure on.

    Returns:
        Path of report.md; None when training was interrupted (the same command continues it).
    """
    started = time.monotonic()
    out_dir.mkdir(parents=True, exist_ok=True)
    split = load_split(config.sampling.prompts, config.sampling.held_out_share)
    prompts = spread(load_held_out("heldout", split.train), num_prompts)
    refuse_watched(prompts, config, split)
    questions = replace(make_questions(config.sampling, prompts, SEEDS), num_kept=SHEET_PROMPTS)
    bundle = load_base_model(config.model)
    instruments = load_both(config, bundle.device)
    settings = sampling_settings(config.sampling)
    steps = f"{settings.num_steps} steps"

    def look(name: str, sampler: str, lora: Path | None = None) -> Measurement:
        logger.info("Measuring %s on %d held-out prompts ...", name, len(prompts))
        return measure(bundle, instruments, Variant(f"{name}, {steps}", sampler, settings, lora), questions)

    before, zmv = look("before: standard", "standard"), look("ZMV", "zmv")
    training_started = time.monotonic()
    lora = train_lora(config, bundle, instruments)
    if lora is None:
        return None
    training_seconds = time.monotonic() - training_started
    after = look("after: standard with the LoRA", "standard", lora)
    write_pictures({"before": before, "zmv": zmv, "after": after}, prompts, out_dir)
    write_object(after.images[0] / 255, out_dir)
    (out_dir / "curves.png").write_bytes((lora.parent.parent / "curves.png").read_bytes())
    duration = f"Training took {training_seconds:.0f} s, everything {time.monotonic() - started:.0f} s."
    remarks = [HULL_LEFT_OUT] * instruments.learns_geometry
    remarks += [*explain(before, zmv, after), f"{duration} LoRA: `{lora}`.", "![curves](curves.png)"]
    command = shlex.join(["python", "-m", "training.demo", *sys.argv[1:]])
    path = write_report([before, zmv, after], questions, out_dir, command, remarks)
    logger.info("%s", markdown_table(summarize([before, zmv, after]), "variant"))
    logger.info("\n%s", "\n".join(verdicts(differences(after, before))))
    return path


def load_both(config: TrainConfig, device: torch.device) -> Instruments:
    """Load the rewards that the training learns from, those that only measure, and the judge.

    Args:
        config: of the training.
        device: of the model; `reward.device` may name another.
    """
    reward, evaluation = config.reward, config.evaluation
    view, joint = ({*evaluation.view} - {*reward.view}, {*evaluation.joint} - {*reward.joint})
    names = [*reward.view, *view], [*reward.joint, *joint]
    loaded = load_instruments(*names, device, True, reward, config.sampling.used_azimuths_deg)
    return replace(loaded, only_measuring=frozenset(view | joint))


def explain(before: Measurement, zmv: Measurement, after: Measurement) -> list[str]:
    """Return the report's paragraphs on what the LoRA and ZMV-Sampling changed."""
    return [
        "**What the LoRA changed**, standard sampling before and after with the same noise:",
        "\n".join(f"* {line}" for line in verdicts(differences(after, before))),
        "**What ZMV-Sampling changes without training** (it costs "
        f"{zmv.evaluations_per_set:g} instead of {before.evaluations_per_set:g} UNet evaluations per set):",
        "\n".join(f"* {line}" for line in verdicts(differences(zmv, before))),
    ]


def train_lora(config: TrainConfig, bundle: ModelBundle, instruments: Instruments) -> Path | None:
    """Train, or continue an interrupted demo; return the best LoRA, None when interrupted.

    The best one is that of held-out evaluations, where the configuration asks for them, else the last.
    """
    learned = instruments.rewards.select(config.reward.view, config.reward.joint)
    trainer = Trainer(config, bundle, learned, resume=True, measures=instruments.rewards)
    if trainer.iteration >= trainer.num_iterations:
        logger.info(
            "The run in %s is complete already; delete that folder to train again.", config.run.out_dir
        )
    with stopping_on_signals(trainer.request_stop):
        is_done = trainer.run()
    if not is_done:
        return None
    best = trainer.folder.best_lora_path
    lora = best if best.is_file() else trainer.folder.newest_lora()
    if lora is None:
        raise ValueError(
            "The training stopped before its first epoch ended and no LoRA was better than the base model; "
            "raise evaluation.patience."
        )
    return lora


def verdicts(changes: Mapping[str, Interval]) -> list[str]:
    """Return a sentence per goal: better, worse, or not shown."""
    lines = []
    for name, words in GOALS.items():
        if name not in changes:
            continue
        change = changes[name]
        word = "not shown" if not change.excludes_zero else "better" if change.mean > 0 else "WORSE"
        lines.append(f"{words}: {word} ({change.in_words('+')}, 95 % interval, {change.count} prompts)")
    return lines


def write_pictures(variants: Mapping[str, Measurement], prompts: Sequence[str], out_dir: Path) -> None:
    """Write the first ten prompts, a row each: a picture per variant, and one with all side by side."""
    labels = list(prompts[:SHEET_PROMPTS])
    pictures = {name: measured.images[:SHEET_PROMPTS] / 255 for name, measured in variants.items()}
    for name, views in pictures.items():
        contact_sheet(views, row_labels=labels).save(out_dir / f"{name}.png")
    titles = [name if view == 0 else "" for name, views in pictures.items() for view in range(views.shape[1])]
    overview = torch.cat(list(pictures.values()), dim=1)
    contact_sheet(overview, labels, titles, cell_px=OVERVIEW_PX).save(out_dir / "overview.png")


def write_object(views: Tensor, out_dir: Path) -> None:
    """Write what six views show as object.glb and, from six cameras between theirs, as object.png.

    Args:
        views: [6, 3, H, W] in [0, 1], of the default cameras.
        out_dir: receives the files; views that show no object write none, and say so in the log.
    """
    import trimesh  # in the extra "dev", as make installs it

    try:
        result = reconstruct(Views(views, object_masks(views), DEFAULT_RIG))
    except ValueError as error:
        logger.warning("The first prompt's views make no object: %s", error)
        return
    x, y, z = result.surface.vertices.unbind(dim=1)  # glTF has y up and the front towards +z
    points, faces = torch.stack([x, z, -y], dim=1).numpy(), result.surface.faces.numpy()
    colours = (to_linear(result.colours) * 255).round().to(torch.uint8).numpy()
    trimesh.Trimesh(points, faces, vertex_colors=colours, process=False).export(out_dir / "object.glb")
    between = CameraRig(tuple(angle + 20 for angle in DEFAULT_RIG.azimuths_deg), (20.0,) * len(views))
    drawn = render_surface(result.volume, result.surface, result.colours, between, OBJECT_PX)
    contact_sheet(drawn[None], cell_px=OBJECT_PX).save(out_dir / "object.png")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done, 130 when interrupted, 1 with a sentence on stderr otherwise."""
    arguments = build_parser().parse_intermixed_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [f"run.out_dir={arguments.out / 'run'}", MEASURED_TOO, *arguments.overrides]
    try:
        path = run(arguments.out, load_config(arguments.preset, overrides), arguments.num_prompts)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    if path is None:
        print("Interrupted; the same command continues.", file=sys.stderr)  # noqa: T201
        return 130
    pictures = "overview.png, before.png, zmv.png, after.png, sheet.png, curves.png, object.png (object.glb)"
    print(f"\nReport: {path}\nPictures beside it: {pictures}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
