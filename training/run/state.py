"""Everything of a run that changes while it goes on, to and from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from t2mv_core.lora.files import lora_state_dict

from ..algorithm.constraint import DualVariable
from ..algorithm.rollout import Policy
from ..config import OptimConfig
from ..data.prompts import PromptSampler
from ..evaluation.early_stop import EarlyStop
from ..models.policy import LORA_NAME, restore_lora
from .checkpoint import Checkpoint
from .ema import LoraEma


@dataclass(frozen=True)
class RunState:
    """The parts that change; the record holds them, it does not own them.

    Attributes:
        policy: whose LoRA is trained.
        optimizer: of the LoRA.
        dual: multiplier and threshold.
        prompts: how far the prompts are drawn.
        early_stop: the best evaluation.
        ema: the LoRA's moving average, or None.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    dual: DualVariable
    prompts: PromptSampler
    early_stop: EarlyStop
    ema: LoraEma | None

    def capture(self, iteration: int, facts: dict[str, str]) -> Checkpoint:
        """A checkpoint after `iteration` iterations; `facts` go into the LoRA's metadata."""
        return Checkpoint(
            iteration,
            lora_state_dict(self.policy.bundle.unet, LORA_NAME),
            facts,
            self.optimizer.state_dict(),
            {
                "dual": self.dual.state_dict(),
                "prompts": self.prompts.state_dict(),
                "early_stop": self.early_stop.state_dict(),
            },
            None if self.ema is None else self.ema.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint, optim: OptimConfig) -> None:
        """Go on from a checkpoint; the optimizer's settings are those of now, its moments the saved ones.

        Raises:
            ValueError: it is of another model, other prompts, or a run without a moving average.
        """
        restore_lora(self.policy, checkpoint.lora)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group in self.optimizer.param_groups:
            group.update(lr=optim.lr, weight_decay=optim.weight_decay)
        self.dual.load_state_dict(checkpoint.counters["dual"])
        self.prompts.load_state_dict(checkpoint.counters["prompts"])
        # Not in runs of version 0.1; and a run saved before its first iteration measures its start again.
        if checkpoint.iteration and "early_stop" in checkpoint.counters:
            self.early_stop.load_state_dict(checkpoint.counters["early_stop"])
        if self.ema is not None:
            if checkpoint.ema is None:
                raise ValueError("The saved run kept no moving average; resume it with optim.ema_decay=null.")
            self.ema.load_state_dict(checkpoint.ema)
