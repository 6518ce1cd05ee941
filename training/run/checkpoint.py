"""The saved state of a run: one file, from which the run goes on as if nothing had happened."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2mv_core.formats.atomic import replaced
from t2mv_core.lora.files import lora_state_dict

from ..algorithm.constraint import DualVariable
from ..algorithm.rollout import Policy
from ..config import OptimConfig, TrainConfig, config_from_dict, flat_settings
from ..data.prompt_sampler import PromptSampler
from ..evaluation.early_stop import EarlyStop
from ..models.policy import LORA_NAME, restore_lora

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

FREE = {
    "model.device", "model.dtype", "model.allow_download", "model.gradient_checkpointing",
    "sampling.batch_size", "reward.device", "reward.dtype", "reward.folder", "reward.paths",
    "reward.allow_download", "constraint.unit", "optim.lr", "optim.weight_decay",
    "optim.max_grad_norm", "optim.kl_weight", "optim.micro_batch", "optim.splits_pairs",
    "optim.mixed_precision",
    # The files may have moved; base_loras.py and PromptSampler compare what is in them.
    "model.base_loras", "sampling.prompts", "sampling.references",
}  # fmt: skip
FREE_SECTIONS = {"preset", "run", "evaluation"}
BOUND = {"run.seed", "run.iterations_per_epoch"}
"""A resumed run may change the settings of FREE and of FREE_SECTIONS without those of BOUND: they cost or
steer a run without changing what its saved state means."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that changed since a run began, as tensors and plain values.

    Attributes:
        iteration: iterations done.
        base_loras: facts about the LoRAs below the trained one.
        lora: the LoRA's tensors, by name.
        optimizer: state of AdamW.
        average: state of the LoRA's moving average, or None.
        dual: state of the dual variable, or None.
        prompts: state of the prompt sampler.
        early_stop: state of early stopping.
    """

    iteration: int
    base_loras: dict[str, str]
    lora: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    dual: dict[str, Any] | None
    prompts: dict[str, Any]
    early_stop: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint atomically, see `replaced`.

    Raises:
        OSError: the folder cannot be written or the disk is full; the previous state is untouched.
    """
    buffer = io.BytesIO()
    torch.save(vars(checkpoint), buffer)
    with replaced(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())  # torch.save raises no OSError on a full disk


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Read a checkpoint; None when the run has not saved anything yet.

    Raises:
        ValueError: the file is damaged, or an earlier version began the run and kept its state in a folder.
    """
    if not path.is_file():
        if (path.parent / "last").is_dir():
            raise ValueError(
                f"{path.parent} holds a run of an earlier version, which cannot be resumed; choose another "
                "name (run.out_dir)."
            )
        return None
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(
            f"The saved state {path} cannot be read ({error}); restore it from a backup, or train under "
            "another name (run.out_dir)."
        ) from error


@dataclass(frozen=True)
class RunState:
    """The parts of a run whose state a Checkpoint holds; the trainer owns them."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    average: EMAModel | None
    dual: DualVariable | None
    prompts: PromptSampler
    early_stop: EarlyStop

    def capture(self, iteration: int, base_loras: dict[str, str]) -> Checkpoint:
        """Return the state after `iteration` iterations; its tensors are those of the run, not copies."""
        lora = lora_state_dict(self.policy.bundle.unet, LORA_NAME)
        return Checkpoint(
            iteration,
            base_loras,
            {name: tensor.detach() for name, tensor in lora.items()},
            self.optimizer.state_dict(),
            None if self.average is None else self.average.state_dict(),
            None if self.dual is None else self.dual.state_dict(),
            self.prompts.state_dict(),
            self.early_stop.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint, optim: OptimConfig) -> None:
        """Go on from a checkpoint with its moments, but with the optimizer settings of `optim`.

        Raises:
            ValueError: it is of another model, of other prompts, or of a run without a moving average.
        """
        restore_lora(self.policy, checkpoint.lora)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group in self.optimizer.param_groups:
            group.update(lr=optim.lr, weight_decay=optim.weight_decay)
        if self.average is not None:
            if checkpoint.average is None:
                raise ValueError("The saved run kept no moving average; resume it with optim.ema_decay=null.")
            self.average.load_state_dict(checkpoint.average)
            self.average.to(self.policy.bundle.device)
        if self.dual is not None and checkpoint.dual is not None:
            self.dual.load_state_dict(checkpoint.dual)
        self.prompts.load_state_dict(checkpoint.prompts)
        if checkpoint.iteration:  # a run saved before its first iteration measures its start again
            self.early_stop.load_state_dict(checkpoint.early_stop)


def saved_config(config_path: Path) -> TrainConfig | None:
    """Read a run's config.yaml; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    from ..config.yaml_text import read_yaml

    if not config_path.is_file():
        return None
    try:
        return config_from_dict(read_yaml(config_path.read_text(encoding="utf-8"), config_path.name))
    except ValueError as error:
        raise ValueError(
            f"{config_path} cannot be read ({error}); train under another name (run.out_dir)."
        ) from error


def fits(config_path: Path, config: TrainConfig) -> bool:
    """Return whether a run may go on with a configuration, see `refuse_another_run`."""
    try:
        refuse_another_run(config_path, config)
    except ValueError:
        return False
    return True


def refuse_another_run(config_path: Path, config: TrainConfig) -> None:
    """Compare a run's saved configuration with the one it is to go on with.

    Args:
        config_path: the run folder's config.yaml; without one every configuration passes.
        config: the new one.

    Raises:
        ValueError: a setting differs that must not, or the file is damaged.
    """
    saved = saved_config(config_path)
    if saved is None:
        return
    before = flat_settings(saved)
    for key, value in flat_settings(config).items():
        is_free = key in FREE or (key.partition(".")[0] in FREE_SECTIONS and key not in BOUND)
        if not is_free and before[key] != value:
            raise ValueError(
                f"The run in {config_path.parent} was started with {key}={before[key]}, now it is {value}; "
                "use the old value, or another name (run.out_dir)."
            )
