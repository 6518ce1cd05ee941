"""Measure models, samplers and LoRAs on held-out prompts: rewards, judge, intervals, pictures.

python -m training.evaluate --run runs/mine --lora runs/mine/lora/best.safetensors --out runs/mine/evaluation
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t2mv_core.bundle import ModelBundle
from t2mv_core.rewards.inputs import describe_unread
from t2mv_core.samplers import SAMPLERS, SamplingSettings
from t2mv_core.text import describe_reading

from .config import SamplingConfig, TrainConfig, home_path, load_config, preset_names, settings_first
from .data.prompts import load_held_out, load_prompts, load_split, name_some, shared_prompts
from .evaluation.choice import remark_on_choice, watched_prompts
from .evaluation.loras import examine_loras
from .evaluation.measure import (
    HULL_LEFT_OUT,
    Instruments,
    Measurement,
    Questions,
    Variant,
    is_judged,
    load_instruments,
    make_questions,
    measure,
    spread,
)
from .evaluation.report import SHEET_PROMPTS, write_report
from .models.base_loras import load_base_model
from .models.policy import sampling_settings
from .models.rewards import check_reward_models
from .models.subjects import Subjects, check_task
from .run.out_of_memory import explained_out_of_memory


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--run",
        type=home_path,
        help="a training run's folder: its settings and held-out prompts are used; a Python file that it "
        "names as a reward is run, so use a run that you trust",
    )
    source.add_argument(
        "--preset", default="toybox", help=f"one of {', '.join(preset_names())}, or the path of a YAML file"
    )
    add(
        "--lora",
        type=home_path,
        nargs="*",
        default=[],
        help="LoRA files; the model without is always measured too",
    )
    add("--strengths", type=float, nargs="+", default=[1.0], help="of the LoRAs, a row for each")
    add("--samplers", nargs="+", choices=sorted(SAMPLERS), default=["standard", "zmv"])
    add("--steps", type=int, nargs="+", help="denoising steps, a row for each; default: sampling.num_steps")
    add(
        "--prompts",
        type=os.path.expanduser,
        help="prompt set or file; default: held-out ones of sampling.prompts, evaluation.prompts, or heldout",
    )
    add("--num-prompts", type=int, default=100, help="how many of them, at even distances")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add(
        "--device",
        help="short for model.device=; without it the configuration's, and a GPU where that is auto",
    )
    add("--out", type=home_path, required=True, help="folder of report.md, report.json and the contact sheet")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that differ, as in training.mvczigal",
    )
    return parser


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, TrainConfig]:
    """Return the options, and the configuration of the run or preset with its overrides.

    Raises:
        FileNotFoundError, ValueError: there is no such run or preset, or a setting is wrong.
    """
    arguments = build_parser().parse_intermixed_args(settings_first(words))
    settings = list(arguments.overrides)
    if arguments.device is not None:
        settings.append(f"model.device={arguments.device}")
    preset = str(arguments.run / "config.yaml") if arguments.run is not None else arguments.preset
    if arguments.num_prompts < 1:
        raise ValueError(f"--num-prompts={arguments.num_prompts} must be at least 1.")
    if not all(map(math.isfinite, arguments.strengths)):
        raise ValueError(f"--strengths={arguments.strengths} must be finite numbers.")
    return arguments, load_config(preset, settings)


def make_variants(
    settings: SamplingSettings,
    loras: Sequence[Path],
    samplers: Sequence[str],
    steps: Sequence[int],
    strengths: Sequence[float] = (1.0,),
) -> list[Variant]:
    """Return base model and LoRAs of every strength with every sampler and number of steps.

    The first is the reference.
    """
    names = name_variants(loras)
    models: list[tuple[str, Path | None, float]] = [(names[None], None, 1.0)]
    for lora in loras:
        models += [(names[lora] + (f" at {x:g}" if x != 1 else ""), lora, x) for x in strengths]
    return [
        Variant(f"{sampler}, {count} steps, {name}", sampler, replace(settings, num_steps=count), lora, x)
        for name, lora, x in models
        for count in steps
        for sampler in samplers
    ]


def name_variants(paths: Sequence[Path]) -> dict[Path | None, str]:
    """Return names of LoRA files, and "base" for none: the stem, with as many folders as make it unique.

    Raises:
        ValueError: a file occurs twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError("--lora names a file twice; give every LoRA once.")
    for depth in range(1, max((len(path.parts) for path in resolved), default=1) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return {None: "base", **(dict(zip(paths, names, strict=True)) if paths else {})}


def find_prompts(arguments: argparse.Namespace, config: TrainConfig) -> Sequence[str]:
    """Return the prompts of the command line, or held-out ones of the configuration.

    Those that chose the run's best LoRA flatter it, so they are left out where others are held out.
    """
    sampling = config.sampling
    if arguments.prompts is not None:
        return load_prompts(arguments.prompts)
    split = load_split(sampling.prompts, sampling.held_out_share)
    held_out = split.held_out or load_held_out(config.evaluation.prompts or "heldout", split.train)
    return _without(held_out, watched_prompts(config, split))


def _without(prompts: Sequence[str], watched: Sequence[str]) -> Sequence[str]:
    left_out = set(shared_prompts(prompts, watched))
    return tuple(prompt for prompt in prompts if prompt not in left_out) or prompts


def find_pictures(
    arguments: argparse.Namespace, config: TrainConfig, bundle: ModelBundle
) -> tuple[Subjects, tuple[str, ...]]:
    """Return the configuration's pictures, and the names of those that are held out; of all if none is."""
    if arguments.prompts is not None:
        raise ValueError(
            "--prompts goes with text to multiview; this run draws views of pictures, and those that it "
            "holds out are measured on."
        )
    subjects = Subjects(bundle, config.sampling)
    split = subjects.split
    return subjects, tuple(_without(split.held_out, watched_prompts(config, split))) or split.train


def choose_questions(
    arguments: argparse.Namespace,
    config: SamplingConfig,
    prompts: Sequence[str],
    subjects: Subjects | None = None,
) -> Questions:
    """Return what to ask: some of the prompts, or of the subjects' pictures of these names."""
    names, seeds = spread(prompts, arguments.num_prompts), dict.fromkeys(arguments.seeds)
    pictures = None if subjects is None else subjects.pictures(names)
    asked = names if subjects is None else subjects.prompts(names)
    return replace(make_questions(config, asked, list(seeds), pictures), num_kept=SHEET_PROMPTS)


def remark_on_prompts(
    names: Sequence[str], config: TrainConfig, subjects: Subjects | None = None
) -> list[str]:
    """Return sentences for the report where prompts are not held out, or chose the best LoRA.

    Args:
        names: prompts, or names of the subjects' pictures.
        config: the run's or preset's.
        subjects: of a run on pictures.
    """
    sampling, kind = config.sampling, "prompts" if subjects is None else "pictures"
    try:
        split = subjects.split if subjects else load_split(sampling.prompts, sampling.held_out_share)
        watched = shared_prompts(names, watched_prompts(config, split))
    except (FileNotFoundError, ValueError) as error:
        return [f"Whether these {kind} were trained on is not known: {error}"]
    remarks = []
    if shared := shared_prompts(names, split.train):
        count = f"{len(shared)} of {len(names)} {kind}"
        remarks.append(f"**Not held out**: these settings train on {count} ({name_some(shared)}).")
    if watched:
        remarks.append(
            f"**Chosen on these {kind}**: by {len(watched)} of {len(names)} of them the run chose its "
            "best.safetensors, which therefore looks better on them than elsewhere."
        )
    return remarks


def remark_on_measures(
    config: TrainConfig, bundle: ModelBundle, instruments: Instruments, questions: Questions, has_loras: bool
) -> list[str]:
    """Return sentences for the report on what the measures prove, and on words that nobody reads."""
    learned = ", ".join([*config.reward.view, *config.reward.joint])
    remarks = [f"With these settings a LoRA learns from {learned}: no proof by themselves."] * has_loras
    remarks += [HULL_LEFT_OUT] * instruments.learns_geometry
    remarks += describe_reading(bundle, [*questions.prompts, questions.negative_prompt or ""])
    return remarks + describe_unread(instruments.rewards.scorers, questions.prompts)


def run(arguments: argparse.Namespace, config: TrainConfig) -> Path:
    """Measure what the command line asks for and write the report, after every variant; return its path."""
    reward, evaluation = config.reward, config.evaluation
    settings, is_of_text = sampling_settings(config.sampling), config.sampling.references is None
    prompts = find_prompts(arguments, config) if is_of_text else ()
    steps = arguments.steps or [settings.num_steps]
    strengths = list(dict.fromkeys(arguments.strengths))
    variants = make_variants(settings, arguments.lora, arguments.samplers, steps, strengths)
    names = (
        list(dict.fromkeys((*reward.view, *evaluation.view))),
        list(dict.fromkeys((*reward.joint, *evaluation.joint))),
    )
    check_reward_models(*names, reward, not is_of_text)  # before gigabytes are read for nothing
    for path in arguments.lora:
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no LoRA at {path}; a run writes lora/epoch_*.safetensors, and best.safetensors"
                " where evaluation.stop_measure is set and the base model was beaten."
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    bundle = load_base_model(config.model)
    check_task(bundle, config.sampling)
    subjects, prompts = (None, prompts) if is_of_text else find_pictures(arguments, config, bundle)
    questions = choose_questions(arguments, config.sampling, prompts, subjects)
    names_asked = spread(prompts, arguments.num_prompts)
    lora_names = {path: name for path, name in name_variants(arguments.lora).items() if path is not None}
    loras = examine_loras(bundle, lora_names, settings, steps)
    has_judge = questions.specs is not None and is_judged(bundle)
    loaded = load_instruments(*names, bundle.device, has_judge, reward, questions.azimuths_deg)
    learned = {*reward.view, *reward.joint}
    only_measuring = frozenset({*evaluation.view, *evaluation.joint} - learned)
    instruments: Instruments = replace(loaded, only_measuring=only_measuring)
    remarks = remark_on_prompts(names_asked, config, subjects) + remark_on_choice(lora_names, config)
    remarks += remark_on_measures(config, bundle, instruments, questions, bool(arguments.lora))
    for remark in remarks:
        logging.warning("%s", remark)
    remarks += [*bundle.notices, *bundle.schedule.notices]  # logged when they were loaded
    command = "python -m training.evaluate " + shlex.join(sys.argv[1:])
    measurements: list[Measurement] = []
    for variant in variants:  # a later variant may fail after hours
        measurements.append(measure(bundle, instruments, variant, questions))
        count = f"{len(measurements)} of {len(variants)} variants"
        unfinished = [f"**Not finished**: {count}."] * (len(measurements) < len(variants))
        path = write_report(measurements, questions, arguments.out, command, [*unfinished, *remarks], loras)
    return path


def main(words: Sequence[str] | None = None) -> int:
    """Run the command: 0 when done, 1 with a sentence on stderr otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with explained_out_of_memory(
            "Measure with sampling.batch_size=1, model.dtype=bf16 or reward.device=cpu."
        ):
            path = run(*parse(sys.argv[1:] if words is None else words))
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"evaluate: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    print(path.read_text(encoding="utf-8"))  # noqa: T201
    print(f"Report: {path}")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
