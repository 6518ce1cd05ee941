"""Measure models, samplers and LoRAs on held-out prompts: rewards, judge, intervals, pictures.

python -m training.evaluate --run runs/mine --lora runs/mine/lora/best.safetensors --out runs/mine/evaluation

--run takes model, sampling settings, rewards and held-out prompts from a training run; options override it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.samplers import SAMPLERS, SamplingSettings, StepEvent, count_evaluations
from t2mv_core.schedule import SOLVERS
from t2mv_core.toybox.judge import load_judge
from t2mv_core.toybox.prompt_lists import find_specs

from ..config import BaseLoraConfig, ModelConfig, RewardConfig, load_config
from ..data.prompts import load_prompts, load_split
from ..models.base_loras import load_base_model, warn_of_another_base
from ..models.policy import TORCH_DTYPES
from ..models.rewards import check_reward_models, load_rewards
from .measure import Instruments, Measurement, Questions, Variant, measure

logger = logging.getLogger(__name__)


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` items at even distances, so that a short evaluation still meets every kind of prompt."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def make_variants(arguments: argparse.Namespace) -> list[Variant]:
    """Base model and every LoRA, with every sampler and number of steps; the first is the reference."""
    settings = SamplingSettings(
        num_steps=max(arguments.steps),
        view_scale=arguments.view_scale,
        guidance_scale=arguments.guidance_scale,
        zigzag_steps=arguments.zigzag_steps,
        zigzag_repeats=arguments.zigzag_repeats,
        inverse_guidance_scale=arguments.inverse_guidance_scale,
        inverse_view_scale=arguments.inverse_view_scale,
    )
    names = name_variants(arguments.lora)
    return [
        Variant(
            ", ".join([sampler, f"{steps} steps", names[lora]]),
            sampler,
            replace(settings, num_steps=steps),
            lora,
        )
        for lora in [None, *arguments.lora]
        for steps in arguments.steps
        for sampler in arguments.samplers
    ]


def name_variants(paths: Sequence[Path]) -> dict[Path | None, str]:
    """Names of LoRA files, and "base" for none: the stem, with as many folders as tell it from the others.

    Raises:
        ValueError: a file is given twice.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError("--lora names a file twice; give every LoRA once.")
    for depth in range(1, max((len(path.parts) for path in resolved), default=1) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return {None: "base", **(dict(zip(paths, names, strict=True)) if paths else {})}


def run_defaults(run_dir: Path) -> dict[str, Any]:
    """Options as a training run had them: model, sampling, rewards, and its held-out prompts if it has any.

    Raises:
        FileNotFoundError, ValueError: there is no run in that folder, or its configuration is damaged.
    """
    config = load_config(str(run_dir / "config.yaml"))
    sampling, held_out = config.sampling, load_split(config.sampling.prompts, config.sampling.held_out_share)
    defaults: dict[str, Any] = {
        "model": config.model.name,
        "adapter": config.model.adapter,
        "unet": config.model.unet,
        "scheduler": config.model.scheduler,
        "model_solver": config.model.solver,
        "base_loras": list(config.model.base_loras),
        "dtype": config.model.dtype,
        "azimuths": list(sampling.azimuths_deg[: sampling.num_views]),
        "negative_prompt": sampling.negative_prompt,
        "steps": [sampling.num_steps],
        "view_rewards": list(dict.fromkeys((*config.reward.view, *config.evaluation.view))),
        "joint_rewards": list(dict.fromkeys((*config.reward.joint, *config.evaluation.joint))),
        "reward": config.reward,
    }
    for name in ("guidance_scale", "view_scale", "zigzag_steps", "zigzag_repeats"):
        defaults[name] = getattr(sampling, name)
    for name in ("inverse_guidance_scale", "inverse_view_scale"):
        defaults[name] = getattr(sampling, name)
    if held_out.held_out:
        defaults["held_out"] = held_out.held_out
    elif config.evaluation.prompts is not None:
        defaults["prompts"] = config.evaluation.prompts
    return defaults


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        help="a training run's folder: its settings and held-out prompts become defaults; a Python file that "
        "it names as a reward is run, so it must be a run to trust",
    )
    add("--model", default="toybox", help="toybox, toybox-teacher, a diffusers folder or a Hub id")
    add("--adapter", help="MV-Adapter file or Hub id")
    add("--unet", help="UNet in place of the model's own")
    add("--scheduler", help="scheduler configuration in place of the model's own")
    add("--model-solver", choices=SOLVERS, help="how the model is sampled; otherwise as its files say")
    add(
        "--base-loras",
        type=base_lora,
        nargs="*",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="LoRAs that belong to the base model, such as an LCM-LoRA; what --lora names comes on top",
    )
    add("--dtype", choices=sorted(TORCH_DTYPES), default="fp32")
    add(
        "--azimuths",
        type=float,
        nargs="+",
        default=list(DEFAULT_RIG.azimuths_deg),
        help="degrees, one per view",
    )
    add("--negative-prompt", help="for models with classifier-free guidance")
    add("--lora", type=Path, nargs="*", default=[], help="LoRA files; the base model is always measured too")
    add("--samplers", nargs="+", choices=sorted(SAMPLERS), default=["standard", "zmv"])
    add(
        "--steps", type=int, nargs="+", default=[4], help="denoising steps; several numbers give several rows"
    )
    add("--prompts", help="a prompt set or file; otherwise the run's held-out prompts, or the set heldout")
    add("--num-prompts", type=int, default=100, help="how many of them, at even distances")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--view-rewards", nargs="+", default=["toybox_clip"], help="scorers of single views")
    add("--joint-rewards", nargs="*", default=["toybox_hyperscore"], help="scorers of sets of views")
    add("--rewards-folder", type=Path, help="where the weights of published rewards are (docs/rewards.md)")
    add("--guidance-scale", type=float, default=7.0, help="w; use the one a LoRA was trained with")
    add("--view-scale", type=float, default=1.0)
    add("--zigzag-steps", type=int, default=1)
    add("--zigzag-repeats", type=int, default=1)
    add("--inverse-guidance-scale", type=float, default=1.0)
    add("--inverse-view-scale", type=float, default=1.0)
    add("--batch-size", type=int, default=10, help="prompts in one forward pass")
    add("--device", default="cpu")
    add("--allow-download", action="store_true", help="let a Hub id be fetched")
    add("--out", type=Path, required=True, help="folder of report.md, report.json and the contact sheets")
    return parser


def base_lora(word: str) -> BaseLoraConfig:
    """`FILE`, or `FILE=STRENGTH`."""
    path, equals, strength = word.rpartition("=")
    has_strength = equals and not word.endswith(".safetensors")  # a folder's name may hold "=", too: lr=1e-4/
    try:
        return BaseLoraConfig(path, float(strength)) if has_strength else BaseLoraConfig(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not FILE or FILE=STRENGTH: {error}") from error


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what `--run` says are defaults."""
    parser = build_parser()
    parser.set_defaults(held_out=(), reward=RewardConfig())
    run_dir = parser.parse_known_args(words)[0].run
    if run_dir is not None:
        parser.set_defaults(**run_defaults(run_dir))
    arguments = parser.parse_args(words)
    if arguments.prompts is None and not arguments.held_out:
        arguments.prompts = "heldout"
    return arguments


def run(arguments: argparse.Namespace) -> Path:
    """Measure what the command line asks for and write the report; returns its path."""
    from .report import write_report

    for name in ("num_prompts", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(arguments, name)} must be at least 1.")
    source = arguments.held_out if arguments.prompts is None else load_prompts(arguments.prompts)
    prompts = tuple(spread(source, arguments.num_prompts))
    # The judge knows the default cameras only.
    specs = find_specs(prompts) if tuple(arguments.azimuths) == DEFAULT_RIG.azimuths_deg else None
    variants = make_variants(arguments)
    model = ModelConfig(
        name=arguments.model,
        adapter=arguments.adapter,
        unet=arguments.unet,
        scheduler=arguments.scheduler,
        solver=arguments.model_solver,
        base_loras=tuple(arguments.base_loras),
        allow_download=arguments.allow_download,
        dtype=arguments.dtype,
    )
    names, reward = (arguments.view_rewards, arguments.joint_rewards), reward_config(arguments)
    check_reward_models(*names, reward)  # before gigabytes are read for nothing
    bundle = load_base_model(model, arguments.device)
    warn_of_another_base(arguments.lora, bundle.loras)
    reward_device = arguments.device if reward.device == "auto" else reward.device
    instruments = load_instruments(*names, reward_device, specs is not None, reward)
    questions = Questions(
        prompts, tuple(arguments.seeds), arguments.batch_size, specs, arguments.negative_prompt
    )
    measurements = [
        measure_with_progress(bundle, instruments, variant, questions, arguments.azimuths)
        for variant in variants
    ]
    command = "python -m training.evaluate " + " ".join(sys.argv[1:])
    return write_report(measurements, questions, arguments.out, command)


def reward_config(arguments: argparse.Namespace) -> RewardConfig:
    """Where the command line, or else the run, has the weights of rewards."""
    config: RewardConfig = arguments.reward
    if arguments.rewards_folder is not None:
        config = replace(config, folder=str(arguments.rewards_folder))
    return replace(config, allow_download=config.allow_download or arguments.allow_download)


def load_instruments(
    view_rewards: Iterable[str],
    joint_rewards: Iterable[str],
    device: torch.device | str,
    has_judge: bool,
    config: RewardConfig | None = None,
) -> Instruments:
    """Load rewards by name, and the bundled judge when prompts have specs for it.

    Raises:
        ValueError: an unknown reward, or a damaged file.
        FileNotFoundError: weights that are not on this machine.
    """
    rewards = load_rewards(view_rewards, joint_rewards, device, config)
    return Instruments(rewards, load_judge().to(device) if has_judge else None)


def measure_with_progress(
    bundle: ModelBundle,
    instruments: Instruments,
    variant: Variant,
    questions: Questions,
    azimuths_deg: Sequence[float] = DEFAULT_RIG.azimuths_deg,
) -> Measurement:
    """`measure` behind a progress bar."""
    num_batches = len(questions.seeds) * -(-len(questions.prompts) // questions.batch_size)
    total = num_batches * count_evaluations(variant.sampler, variant.settings)
    with tqdm(total=total, desc=variant.name, disable=not sys.stderr.isatty(), leave=False) as progress:

        def on_step(_: StepEvent) -> None:
            progress.update()

        return measure(bundle, azimuths_deg, instruments, variant, questions, on_step)


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = run(parse(words))
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    print(path.read_text(encoding="utf-8"))  # noqa: T201
    print(f"Report: {path}")  # noqa: T201
    return 0
