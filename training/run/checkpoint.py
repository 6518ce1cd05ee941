"""The run folder's full state: written beside the old one and swapped in, so that a kill loses nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors

STATE_NAME = "last"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if nothing had happened.

    Attributes:
        iteration: iterations done.
        lora: the LoRA's tensors, by name.
        metadata: what the LoRA file says about itself.
        optimizer: AdamW's state_dict.
        counters: small JSON states by name: "dual", "prompts", "early_stop".
        ema: LoraEma's state_dict, or None.
    """

    iteration: int
    lora: dict[str, Tensor]
    metadata: dict[str, str]
    optimizer: dict[str, Any]
    counters: dict[str, Any]
    ema: dict[str, Any] | None = None


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Write `last/`, with the state of the random generators as it is now.

    The new folder is complete before the old one moves away; at every moment `last`, `last.new` or
    `last.old` holds a whole state, and `load_checkpoint` knows where to look.

    Raises:
        OSError: the folder cannot be written or the disk is full; the previous state is untouched.
    """
    final, fresh, old = (run_dir / f"{STATE_NAME}{suffix}" for suffix in ("", ".new", ".old"))
    _settle(run_dir)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write_safetensors(checkpoint.lora, fresh / "lora.safetensors", checkpoint.metadata)
    _write(checkpoint.optimizer, fresh / "optimizer.pt")
    _write(checkpoint.ema, fresh / "ema.pt")
    _write(_random_states(), fresh / "random.pt")
    counters = {"iteration": checkpoint.iteration, **checkpoint.counters}
    (fresh / "counters.json").write_text(json.dumps(counters), encoding="utf-8")
    _flush(fresh)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Read `last/` and restore the random generators; None when the run has not saved anything yet.

    Raises:
        ValueError: a file of the state is missing or damaged.
    """
    _settle(run_dir)
    folder = run_dir / STATE_NAME
    if not folder.is_dir():
        return None
    try:
        counters = json.loads((folder / "counters.json").read_text(encoding="utf-8"))
        lora, metadata = read_safetensors(folder / "lora.safetensors")
        optimizer, states = (_read(folder / f"{name}.pt") for name in ("optimizer", "random"))
        has_ema = (folder / "ema.pt").is_file()  # not in runs of version 0.1
        ema = _read(folder / "ema.pt") if has_ema else None
        checkpoint = Checkpoint(counters.pop("iteration"), lora, metadata, optimizer, counters, ema)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"The saved state in {folder} cannot be read ({error}); restore it from a backup, or train into "
            "another run.out_dir starting from the last file in lora/."
        ) from error
    _restore_random_states(states)
    return checkpoint


def _settle(run_dir: Path) -> None:
    """Finish or undo a swap that a kill interrupted."""
    final, fresh, old = (run_dir / f"{STATE_NAME}{suffix}" for suffix in ("", ".new", ".old"))
    if old.exists() and not final.exists():
        (fresh if fresh.is_dir() else old).rename(final)  # the old one moves only after the new one is whole
    shutil.rmtree(old, ignore_errors=True)


def _write(state: Any, path: Path) -> None:
    """Not torch.save to the path: on a full disk that raises no OSError."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())


def _flush(folder: Path) -> None:
    """Have the files of a folder on the disk, so that a power cut after the swap loses nothing either."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _read(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _random_states() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    legacy: Any = np.random.get_state(legacy=False)
    position = {"key": legacy["state"]["key"].tolist(), "pos": legacy["state"]["pos"]}
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": [version, list(numbers), gauss],
        "numpy": {**legacy, "state": position},
    }


def _restore_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states:  # not in runs of version 0.1
        position = states["numpy"]["state"]
        position = {"key": np.array(position["key"], dtype=np.uint32), "pos": position["pos"]}
        np.random.set_state({**states["numpy"], "state": position})
