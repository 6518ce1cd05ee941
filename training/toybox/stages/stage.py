"""What every stage of the toybox recipe shares: where it works, how it stops and goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from t2mv_core.formats.atomic import replaced


@dataclass(frozen=True)
class StageConfig:
    """Settings of one run of the recipe.

    Attributes:
        out_dir: working folder; each stage has a sub-folder, results to ship are under `export`.
        quick: a tiny version for tests; its weights are useless.
        seed: of the run; the shipped weights were made with 0.
        device: where to train, for example "cpu" or "cuda".
    """

    out_dir: Path = Path("runs/toybox")
    quick: bool = False
    seed: int = 0
    device: str = "cpu"

    @property
    def data_dir(self) -> Path:
        """Folder of the rendered training scenes."""
        return self.out_dir / "data"

    @property
    def test_data_dir(self) -> Path:
        """Folder of the rendered held-out scenes."""
        return self.out_dir / "data_test"

    @property
    def export_dir(self) -> Path:
        """Folder in the layout of `t2mv_core/toybox`."""
        return self.out_dir / "export"


class Stateful(Protocol):
    """A module or optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take a state."""
        ...


@dataclass
class Checkpointer:
    """Saves and restores a stage's whole state: named modules and optimizers, update count, random states.

    Attributes:
        path: the checkpoint file, written atomically.
        parts: modules and optimizers by name.
        interval_s: seconds between two saves.
    """

    path: Path
    parts: Mapping[str, Stateful]
    interval_s: float = 60.0
    _last_save: float = field(default_factory=time.monotonic)

    def resume(self) -> int:
        """Restore the saved state, if there is one, and return the number of updates done."""
        if not self.path.is_file():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["torch_rng"])
        return int(state["update"])

    def save(self, update: int) -> None:
        """Write the state after `update` updates, atomically."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        with replaced(self.path) as temporary:
            torch.save({"update": update, "parts": parts, "torch_rng": torch.get_rng_state()}, temporary)
        self._last_save = time.monotonic()

    def updates(self, total: int, description: str) -> Iterator[int]:
        """Count the updates still to do, with a progress bar; save in between and at the end."""
        from tqdm import tqdm

        done = self.resume()
        for update in tqdm(range(done, total), initial=done, total=total, desc=description, mininterval=5.0):
            yield update
            if time.monotonic() - self._last_save > self.interval_s:
                self.save(update + 1)
        if done < total:
            self.save(total)


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def update_rng(seed: int, update: int) -> np.random.Generator:
    """The generator of one update: depends on seed and update only, so a resumed run draws the same."""
    return np.random.default_rng([seed, update])


def descend(
    loss: torch.Tensor,
    parameters: Iterable[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_norm: float = 1.0,
) -> None:
    """One step of an optimizer, the gradient's norm clipped."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def cosine_lr(update: int, total: int, peak: float, warmup: int = 100) -> float:
    """Learning rate with linear warm-up and cosine decay to a hundredth of the peak."""
    if update < warmup:
        return peak * (update + 1) / warmup
    fraction = (update - warmup) / max(1, total - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + float(np.cos(np.pi * fraction))))


def trapezoid_lr(update: int, total: int, peak: float, warmup: int = 100, decay_share: float = 0.3) -> float:
    """Learning rate with linear warm-up, plateau and linear decay over the last share of the updates.

    Unlike a cosine it does not know the total until the decay begins: a run can be prolonged on its plateau.
    """
    decay = max(1.0, decay_share * total)
    return peak * min((update + 1) / warmup, 1.0, max(0.01, (total - update) / decay))
