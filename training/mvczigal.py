"""Train a LoRA by reinforcement learning.

python -m training.mvczigal --preset demo run.out_dir=runs/demo --resume auto
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from .config import EvaluationConfig, TrainConfig, load_config, preset_names
from .run.out_of_memory import explained_out_of_memory
from .run.stop import stopping_on_signals

if TYPE_CHECKING:
    from .run.trainer import Trainer

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.mvczigal", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", default="toybox", help=f"one of {', '.join(preset_names())}, or the path of a YAML file"
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto: continue the run in run.out_dir if there is one; never: refuse such a folder",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that differ from the preset"
    )
    return parser


def train(config: TrainConfig, resume: bool) -> bool:
    """Load model and rewards, train, and save on interruption.

    Args:
        config: everything the run depends on.
        resume: continue from the run folder's saved state when there is one.

    Returns:
        Whether the run reached its end.

    Raises:
        ValueError, OSError: bad input or a folder that cannot be used, in a sentence.
        NonFiniteError: training had to stop.
        MemoryError: the device is out of memory.
    """
    with explained_out_of_memory(
        "Use the preset lcm-sdxl-12gb, model.dtype=bf16 or reward.device=cpu; or resume with "
        "model.gradient_checkpointing=true, optim.splits_pairs=true, a smaller optim.micro_batch or "
        "sampling.batch_size."
    ):
        trainer = make_trainer(config, resume)
        with stopping_on_signals(trainer.request_stop):
            is_done = trainer.run()
    state = "finished" if is_done else "was stopped and saved; continue it with --resume auto"
    logger.info("The run in %s %s (iteration %d).", config.run.out_dir, state, trainer.iteration)
    return is_done


def check(config: TrainConfig, resume: bool) -> None:
    """Refuse what needs no model to be refused, before gigabytes are read for nothing; see `train`."""
    from .data.prompts import load_split
    from .evaluation.validation import check_stop_measure, choose_held_out
    from .models.base_loras import check_base_loras
    from .models.rewards import check_reward_models
    from .run.checkpoint import refuse_another_run
    from .run.folder import RunFolder

    has_pictures = config.sampling.references is not None
    check_reward_models(*measured_rewards(config), config.reward, has_pictures)
    check_stop_measure(config)
    check_base_loras(config.model.base_loras)
    if not has_pictures:
        split = load_split(config.sampling.prompts, config.sampling.held_out_share)
        choose_held_out(config.evaluation, split)
    folder = RunFolder(Path(config.run.out_dir))
    folder.check(resume)
    if folder.has_records():
        refuse_another_run(folder.config_path, config)
    folder.root.mkdir(parents=True, exist_ok=True)


def measured_rewards(config: TrainConfig) -> tuple[list[str], list[str]]:
    """Return the view and joint rewards that a run learns from, or measures in its evaluations."""
    measuring = config.evaluation if config.evaluation.every else EvaluationConfig()
    return [*config.reward.view, *measuring.view], [*config.reward.joint, *measuring.joint]


def make_trainer(config: TrainConfig, resume: bool) -> Trainer:
    """Check the whole configuration, then load model and rewards; see `train` for what raises."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from .models.base_loras import load_base_model
    from .models.policy import available_trackers
    from .models.rewards import load_rewards
    from .run.processes import process_slots
    from .run.trainer import Trainer

    model, reward = config.model, config.reward
    trackers = available_trackers(config.run.trackers)
    check(config, resume)
    if model.device.startswith("cuda:"):
        import torch

        if int(model.device.removeprefix("cuda:")) < torch.cuda.device_count():
            torch.cuda.set_device(model.device)  # the accelerator's device is then this one, not the first
    accelerator = Accelerator(
        cpu=model.device == "cpu",
        log_with=trackers or None,
        project_dir=config.run.out_dir,
        # The others wait while the main process evaluates; NCCL's ten minutes can be too few for that.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    process_slots(accelerator, config.sampling.prompts_per_iteration)
    device = accelerator.device if model.device == "auto" else model.device
    bundle = load_base_model(model, device)
    view, joint = measured_rewards(config)
    if not accelerator.is_main_process:  # the others do not evaluate
        view, joint = list(reward.view), list(reward.joint)
    reward_device = device if reward.device == "auto" else reward.device
    measures = load_rewards(view, joint, reward_device, reward, config.sampling.used_azimuths_deg)
    rewards = measures.select(reward.view, reward.joint)
    return Trainer(config, bundle, rewards, accelerator, resume, measures)


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 when done, 130 when interrupted, 1 with a sentence on stderr otherwise."""
    parser = build_parser()
    arguments = parser.parse_intermixed_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(arguments.preset, arguments.overrides)
        is_done = train(config, arguments.resume == "auto")
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"mvczigal: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    return 0 if is_done else EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
