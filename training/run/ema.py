"""Exponential moving average of the LoRA in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class LoraEma:
    """Averages s of parameters p, updated after each optimizer step.

        s <- d·s + (1 - d)·p,   d = min(decay, (1 + n) / (10 + n))

    n is the number of updates before this one: d begins at 1/10 and grows, so that the values at the start
    of training are soon forgotten. The averages start as a copy of the parameters; they are fp32, on the
    device that each parameter is on at that time.

    Args:
        parameters: what is averaged; always the same objects in the same order.
        decay: upper bound of d, in (0, 1); 0.999 averages over about the last 1000 updates.

    Raises:
        ValueError: `decay` outside of its range.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(
                f"EMA decay={decay} must lie strictly between 0 and 1; use 0.99 to 0.9999, or no average."
            )
        self.parameters = list(parameters)
        self.decay = decay
        self.num_updates = 0
        # copy=True: float() of an fp32 parameter would be the parameter itself
        self.shadows = [p.detach().to(torch.float32, copy=True) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move every average towards its parameter; call it after each optimizer step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for shadow, parameter in zip(self.shadows, self.parameters, strict=True):
            shadow.lerp_(parameter.float(), 1 - decay)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the parameters hold the averages, afterwards the trained values, bit for bit."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        try:
            self._fill(self.shadows)
            yield
        finally:
            self._fill(trained)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the averages and n; `torch.load(weights_only=True)` can read them."""
        return {"num_updates": self.num_updates, "shadows": [shadow.clone() for shadow in self.shadows]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, on whatever device it is.

        Raises:
            ValueError: it is of other parameters; nothing has changed.
        """
        saved, own = [list(s.shape) for s in state["shadows"]], [list(s.shape) for s in self.shadows]
        if len(saved) != len(own):
            raise ValueError(
                f"The saved average has {len(saved)} tensors, this LoRA has {len(own)}; resume with the "
                "model.name the run was started with."
            )
        wrong = [number for number in range(len(own)) if saved[number] != own[number]]
        if wrong:
            raise ValueError(
                f"The saved average does not fit: tensor {wrong[0]} is {saved[wrong[0]]}, this LoRA's is "
                f"{own[wrong[0]]}; resume with the model.name and model.lora_rank the run was started with."
            )
        for shadow, tensor in zip(self.shadows, state["shadows"], strict=True):
            shadow.copy_(tensor)
        self.num_updates = int(state["num_updates"])

    @torch.no_grad()
    def _fill(self, values: Sequence[torch.Tensor]) -> None:
        """Copy values into the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
