"""Training inside ComfyUI's process, on the model and the rewards that the graph has loaded.

So there is no second copy of a model, and nothing is started that ComfyUI or the user does not see: a cancel
ends the run at the next UNet evaluation, and the state on the disk is that of the last whole iteration.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..common.memory import (
    check_cancelled,
    is_out_of_memory,
    load_together,
    unload_everything,
)
from ..loaders.load_model import AUTO, load_handle
from ..loaders.load_reward import check_reward, load_reward_handle
from ..loaders.model_files import BUNDLED, PUBLISHED, ModelChoice, check_model_choice

if TYPE_CHECKING:
    from ...training.algorithm.scoring import Rewards, Scorer
    from ...training.config import ModelConfig, TrainConfig
    from ...training.run.trainer import Trainer
    from ..sockets import ModelHandle, RewardHandle
    from .progress import TrainingDisplay

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # the trainer's word -> Load Model's


def check_preset_files(preset: str, download: bool, has_model: bool, has_rewards: bool) -> None:
    """Refuse a preset whose model or rewards are not on this machine; loads nothing.

    Args:
        preset: its name.
        download: whether files may be fetched.
        has_model: a model is connected, and takes the place of the preset's.
        has_rewards: likewise of rewards.

    Raises:
        ValueError: files are missing, with what to fetch.
    """
    share_core()
    from ...training.config import load_config

    config = load_config(preset)
    if not has_model:
        check_model_choice(_preset_choice(config.model.name, download))
    if not has_rewards:
        for name in _preset_rewards(config):
            check_reward(name, download)


def check_resumption(config: TrainConfig) -> None:
    """Refuse to go on with a run that was started with other settings.

    Raises:
        ValueError: a setting differs that must not.
    """
    share_core()
    from ...training.run.checkpoint import refuse_another_run
    from ...training.run.folder import RunFolder

    folder = RunFolder(Path(config.run.out_dir))
    if folder.has_records():
        refuse_another_run(folder.config_path, config)


def load_preset_model(config: ModelConfig) -> ModelHandle:
    """Load the model that a preset names, as Load Model does: shared with the graph, if that has it too.

    Raises:
        ValueError: files are missing, with what to fetch.
    """
    choice = _preset_choice(config.name, config.allow_download)
    return load_handle(choice, PRECISIONS[config.dtype], config.solver or AUTO)


def load_run_rewards(config: TrainConfig, connected: Sequence[RewardHandle] | None) -> Sequence[RewardHandle]:
    """Return the rewards that a run learns from: the connected ones, or else loaded as Load Reward does.

    Those that stay on the processor are loaded in its precision, even where half-precision ones are
    connected.

    Raises:
        ValueError: weights are missing, with what to fetch.
    """
    device = "cpu" if config.reward.device == "cpu" else None
    if connected and device is None:
        return connected
    names, download = _preset_rewards(config), config.reward.allow_download
    return tuple(load_reward_handle(name, download, device) for name in names)


def _preset_choice(name: str, download: bool) -> ModelChoice:
    choices = {name: choice for choice, name in {**BUNDLED, **PUBLISHED}.items()}
    return ModelChoice(choices[name], download=download)


def _preset_rewards(config: TrainConfig) -> list[str]:
    return list(dict.fromkeys((*config.reward.view, *config.reward.joint)))


def train(
    config: TrainConfig,
    resume: bool,
    model: ModelHandle,
    rewards: Sequence[RewardHandle],
    display: TrainingDisplay,
) -> bool:
    """Train to the end, or go on to it from the saved state; the model is afterwards as it was.

    Args:
        config: everything the run depends on.
        resume: whether to go on with a run that the folder holds.
        model: what to train on; its weights and those of its LoRAs stay frozen.
        rewards: those that the configuration names, and perhaps more.
        display: shows the run; raises when the user cancels.

    Returns:
        Whether anything was trained: a finished run has nothing left to do.

    Raises:
        InterruptProcessingException: cancelled; the state of the last whole iteration is on the disk.
        ValueError, OSError: the run folder holds another run, or cannot be written, in a sentence.
        NonFiniteError: a reward, a loss or a gradient is not finite.
        MemoryError: the device is out of memory.
    """
    share_core()
    from ...training.models.policy import undo_policy
    from ...training.run.folder import RunFolder
    from ...training.run.metrics import read_metrics
    from ...training.run.trainer import Trainer

    unload_everything()
    on_device = [] if config.reward.device == "cpu" else rewards
    learned = _select(config, rewards)
    try:
        load_together([model.residency, *(handle.residency for handle in on_device)])
        # ComfyUI runs nodes in inference mode, in which nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad():
            return _run(Trainer(config, model.bundle, learned, resume=resume, display=display))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).split("\n")[0]
        iterations = read_metrics(RunFolder(Path(config.run.out_dir)).metrics_path)
        saved = "The state of the last iteration is saved. " if iterations else ""
        raise MemoryError(
            f"The device ran out of memory while training ({reason}). {saved}Use the preset lcm-sdxl-12gb "
            "under another name, or train from the command line with fewer views "
            "(sampling.azimuths_deg=[0,90,180,270])."
        ) from error
    finally:
        undo_policy(model.bundle)
        # Trainer and recorder refer to each other, and hold the LoRA, its average and AdamW's moments;
        # after an error ComfyUI collects them once it has reported the error.
        gc.collect()
        # The trainer moved text encoders without ComfyUI: with nothing loaded its books are right again.
        unload_everything()


def _run(trainer: Trainer) -> bool:
    """Run a trainer that nobody else holds, so that it is gone afterwards."""
    start = trainer.iteration
    trainer.run()
    return trainer.iteration > start


def share_core() -> None:
    """Give `training` the core that ComfyUI has loaded, under the name that the command line knows it by.

    `python -m training.mvczigal` and ComfyUI see the same files under two names: `t2mv_core`, and
    `<the pack>.t2mv_core`. Without this the trainer would load a second core, whose records are other classes
    than those of the graph.
    """
    core = importlib.import_module("...t2mv_core", __package__)
    for path in Path(core.__path__[0]).rglob("*.py"):
        parts = path.relative_to(core.__path__[0]).with_suffix("").parts
        for count in range(len(parts) + 1):
            name = "".join(f".{part}" for part in parts[:count] if part != "__init__")
            sys.modules[f"t2mv_core{name}"] = importlib.import_module(f"{core.__name__}{name}")


def _select(config: TrainConfig, rewards: Sequence[RewardHandle]) -> Rewards:
    """Return the rewards that the configuration names, each of which a cancel stops before its next call."""
    from ...t2mv_core.rewards.geometry import with_cameras
    from ...training.algorithm.scoring import Rewards
    from ...training.models.policy import camera_rig

    rig = camera_rig(config.sampling.used_azimuths_deg)
    view, joint = config.reward.view, config.reward.joint
    named = [handle.reward for handle in rewards if handle.reward.name in {**view, **joint}]
    scorers = {reward.name: _cancellable(with_cameras(reward, rig)) for reward in named}
    return Rewards({name: scorers[name] for name in view}, {name: scorers[name] for name in joint})


def _cancellable(scorer: Callable[..., Any]) -> Scorer:
    def score(*given: Any) -> Any:
        check_cancelled()
        return scorer(*given)

    score.takes_pictures = getattr(scorer, "takes_pictures", False)  # type: ignore[attr-defined]
    score.reward = scorer  # type: ignore[attr-defined]  # `describe_unread` looks through it
    return score
