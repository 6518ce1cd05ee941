"""Measure models, samplers and LoRAs on held-out prompts: rewards, judge, intervals, pictures.

python -m training.evaluate --model toybox --lora run/lora/epoch_0005.safetensors --samplers standard zmv \
        --prompts heldout --num-prompts 100 --seeds 0 1 2 --out evaluation
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle, ModelSources, load_bundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.samplers import SAMPLERS, SamplingSettings, StepEvent, count_evaluations

from .measure import Instruments, Measurement, Questions, Variant, measure
from .prompts import load_prompts
from .setup import load_rewards

if TYPE_CHECKING:
    from .toybox.captions import PromptSpec

logger = logging.getLogger(__name__)


def find_specs(prompts: Sequence[str]) -> tuple[PromptSpec, ...] | None:
    """What toybox prompts ask for; None unless every prompt is one of the toybox's own."""
    from .toybox import captions

    lists = (captions.TRAIN_PROMPTS, captions.TRAIN_PART_PROMPTS, captions.DEV_PROMPTS)
    held_out = (captions.HELD_OUT_PROMPTS, captions.MORE_HELD_OUT_PROMPTS)
    known = {spec.prompt: spec for specs in (*lists, *held_out) for spec in specs}
    return tuple(known[prompt] for prompt in prompts) if all(prompt in known for prompt in prompts) else None


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` items at even distances, so that a short evaluation still meets every kind of prompt."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def make_variants(arguments: argparse.Namespace) -> list[Variant]:
    """Base model and every LoRA, with every sampler and number of steps; the first is the reference."""
    settings = SamplingSettings(
        guidance_scale=arguments.guidance_scale,
        zigzag_steps=arguments.zigzag_steps,
        zigzag_repeats=arguments.zigzag_repeats,
        inverse_guidance_scale=arguments.inverse_guidance_scale,
        inverse_view_scale=arguments.inverse_view_scale,
    )
    return [
        Variant(
            ", ".join([sampler, f"{steps} steps", "base" if lora is None else lora.stem]),
            sampler,
            replace(settings, num_steps=steps),
            lora,
        )
        for lora in [None, *arguments.lora]
        for steps in arguments.steps
        for sampler in arguments.samplers
    ]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="toybox", help="toybox, toybox-teacher, a diffusers folder or a Hub id")
    add("--lora", type=Path, nargs="*", default=[], help="LoRA files; the base model is always measured too")
    add("--samplers", nargs="+", choices=sorted(SAMPLERS), default=["standard", "zmv"])
    add(
        "--steps", type=int, nargs="+", default=[4], help="denoising steps; several numbers give several rows"
    )
    add("--prompts", default="heldout", help="a prompt set (heldout, dev, toybox, animals) or a text file")
    add("--num-prompts", type=int, default=100, help="how many of them, at even distances")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--view-rewards", nargs="+", default=["toybox_clip"], help="scorers of single views")
    add("--joint-rewards", nargs="*", default=["toybox_hyperscore"], help="scorers of sets of views")
    add("--guidance-scale", type=float, default=7.0, help="w; use the one a LoRA was trained with")
    add("--zigzag-steps", type=int, default=1)
    add("--zigzag-repeats", type=int, default=1)
    add("--inverse-guidance-scale", type=float, default=1.0)
    add("--inverse-view-scale", type=float, default=1.0)
    add("--batch-size", type=int, default=10, help="prompts in one forward pass")
    add("--device", default="cpu")
    add("--allow-download", action="store_true", help="let a Hub id be fetched")
    add("--out", type=Path, required=True, help="folder of report.md, report.json and the contact sheets")
    return parser


def run(arguments: argparse.Namespace) -> Path:
    """Measure what the command line asks for and write the report; returns its path."""
    from .report import write_report

    for name in ("num_prompts", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(arguments, name)} must be at least 1.")
    prompts = tuple(spread(load_prompts(arguments.prompts), arguments.num_prompts))
    specs = find_specs(prompts)
    bundle = load_bundle(
        ModelSources(arguments.model, allow_download=arguments.allow_download), arguments.device
    )
    instruments = load_instruments(
        arguments.view_rewards, arguments.joint_rewards, arguments.device, specs is not None
    )
    questions = Questions(prompts, tuple(arguments.seeds), arguments.batch_size, specs)
    measurements = [
        measure_with_progress(bundle, instruments, variant, questions) for variant in make_variants(arguments)
    ]
    command = "python -m training.evaluate " + " ".join(sys.argv[1:])
    return write_report(measurements, questions, arguments.out, command)


def load_instruments(
    view_rewards: Iterable[str], joint_rewards: Iterable[str], device: torch.device | str, has_judge: bool
) -> Instruments:
    """Load rewards by name, and the bundled judge when prompts have specs for it.

    Raises:
        ValueError: an unknown reward, or a damaged file.
        FileNotFoundError: weights that are not on this machine.
    """
    from .toybox.judge import load_judge

    rewards = load_rewards(view_rewards, joint_rewards, device)
    return Instruments(rewards, load_judge().to(device) if has_judge else None)


def measure_with_progress(
    bundle: ModelBundle, instruments: Instruments, variant: Variant, questions: Questions
) -> Measurement:
    """`measure` for the default rig behind a progress bar."""
    num_batches = len(questions.seeds) * -(-len(questions.prompts) // questions.batch_size)
    total = num_batches * count_evaluations(variant.sampler, variant.settings)
    with tqdm(total=total, desc=variant.name, disable=not sys.stderr.isatty(), leave=False) as progress:

        def on_step(_: StepEvent) -> None:
            progress.update()

        return measure(bundle, DEFAULT_RIG.azimuths_deg, instruments, variant, questions, on_step)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of the command line."""
    arguments = build_parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = run(arguments)
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    print(path.read_text(encoding="utf-8"))  # noqa: T201
    print(f"Report: {path}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
