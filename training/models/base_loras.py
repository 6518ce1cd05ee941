"""The model that a run trains on: its files, and frozen LoRAs that belong to it (`model.base_loras`)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from t2mv_core.bundle import LoraHandle, ModelBundle
from t2mv_core.formats.strict import WeightsFile
from t2mv_core.loading import load_bundle
from t2mv_core.lora.files import load_lora
from t2mv_core.lora.layouts import is_lora
from t2mv_core.lora.words import describe_lora

from ..config import BaseLoraConfig, ModelConfig
from .policy import TORCH_DTYPES, check_device, model_sources

logger = logging.getLogger(__name__)

FACT = "base_loras"
"""Key in the metadata of LoRA files."""


def check_base_loras(loras: Iterable[BaseLoraConfig]) -> None:
    """Refuse files that are no LoRA by the names in them, before a model is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds no LoRA.
    """
    for lora in loras:
        path = Path(lora.path)
        if not path.is_file():
            raise FileNotFoundError(
                f"model.base_loras: there is no file {path.absolute()}; correct the path."
            )
        keys = WeightsFile(path).shapes
        if not is_lora(keys):
            raise ValueError(
                f"model.base_loras: {path} holds no LoRA (first key: {next(iter(keys), 'none')!r}); a whole "
                "UNet is named by model.unet, a checkpoint by model.name."
            )


def load_base_model(config: ModelConfig, device: torch.device | str | None = None) -> ModelBundle:
    """Load the model of a run with its base LoRAs, onto a device; None: where `config.device` says.

    Raises:
        ValueError, FileNotFoundError: as `check_base_loras`, `load_bundle` and `load_lora`.
    """
    check_base_loras(config.base_loras)
    device = config.device if device is None else device
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    check_device("model.device", device)
    bundle = load_bundle(model_sources(config), device, TORCH_DTYPES[config.dtype])
    return add_base_loras(bundle, config.base_loras)


def add_base_loras(bundle: ModelBundle, loras: Iterable[BaseLoraConfig]) -> ModelBundle:
    """The model with LoRAs from files; what of a file has no place in the UNet is logged."""
    for lora in loras:
        bundle = load_lora(bundle, Path(lora.path), lora.strength)
        log_lora(bundle.loras[-1])
    return bundle


def log_lora(handle: LoraHandle) -> None:
    """Log how much of a LoRA's file acts, and warn of what does not."""
    first, *others = describe_lora(handle)
    logger.info("%s: %s", handle.path, first)
    for line in others:
        logger.warning("%s: %s", handle.path, line)


def describe_base_loras(handles: Sequence[LoraHandle]) -> dict[str, str]:
    """What a trained LoRA's file says of the LoRAs below it; nothing where there are none.

    Args:
        handles: those of the base, all read from files.
    """
    if not handles:
        return {}
    facts = [
        {"file": handle.path.name, "strength": handle.strength, "sha256": hash_file(handle.path)}
        for handle in handles
        if handle.path is not None
    ]
    return {FACT: json.dumps(facts)}


def refuse_other_base_loras(run_dir: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the base LoRAs of a saved LoRA's metadata with those of now; files may have moved.

    Args:
        run_dir: of the run, for the message.
        saved: metadata of the saved LoRA.
        now: as of `describe_base_loras`.

    Raises:
        ValueError: another file, other weights or another strength.
    """
    before, after = (json.loads(facts.get(FACT, "[]")) for facts in (saved, now))
    if _identities(before) != _identities(after):
        raise ValueError(
            f"The run in {run_dir} was started on base LoRAs {_words(before)}, now they are {_words(after)}; "
            "use the old ones (model.base_loras), or another name (run.out_dir)."
        )


def describe_other_base(facts: Mapping[str, str], handles: Sequence[LoraHandle]) -> list[str]:
    """Return a sentence where a LoRA's metadata name other base LoRAs than these; silent files pass."""
    if FACT not in facts:
        return []
    before, after = (json.loads(side.get(FACT, "[]")) for side in (facts, describe_base_loras(handles)))
    if _identities(before) == _identities(after):
        return []
    return [f"it was trained on base LoRAs {_words(before)}, not on {_words(after)}; set model.base_loras"]


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _identities(facts: Sequence[Mapping[str, object]]) -> list[tuple[object, object]]:
    return [(fact["sha256"], fact["strength"]) for fact in facts]


def _words(facts: Sequence[Mapping[str, object]]) -> str:
    named = [f"{fact['file']} at {fact['strength']} (sha256 {str(fact['sha256'])[:8]})" for fact in facts]
    return " + ".join(named) or "none"
