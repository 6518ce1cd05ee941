"""The LoRA files of an evaluation: how much of each acts, and what in it contradicts the evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t2mv_core.bundle import ModelBundle
from t2mv_core.formats.safetensors_io import is_safetensors
from t2mv_core.formats.strict import WeightsFile
from t2mv_core.lora.files import load_lora
from t2mv_core.lora.words import count_left_out, describe_lora
from t2mv_core.samplers import SamplingSettings
from t2mv_core.schedule import SOLVERS

from ..models.base_loras import describe_other_base, log_lora

_FAMILY_FACTS = ("modelspec.architecture", "ss_base_model_version")
_OTHER_FAMILIES = re.compile(
    r"stable-diffusion-(v?[123])|sd_?v?[123]|flux|wan|hunyuan|lumina|qwen|pixart|auraflow|chroma|z-image"
)


@dataclass(frozen=True)
class LoraRecord:
    """What the report says of a LoRA file.

    Attributes:
        name: of its variants.
        file: where it lies.
        modules: of the UNet that it changes.
        modules_left_out: of the file, that have no effect.
        keys_left_out: tensors of those.
        sentences: for people, the count first.
    """

    name: str
    file: str
    modules: int
    modules_left_out: int
    keys_left_out: int
    sentences: tuple[str, ...]


def examine_loras(
    bundle: ModelBundle, names: Mapping[Path, str], settings: SamplingSettings, steps: Sequence[int]
) -> list[LoraRecord]:
    """Return what to know of LoRA files before they are measured; log it, problems as warnings.

    Args:
        bundle: the model that they are measured on.
        names: files and what the report calls them.
        settings: how all are sampled.
        steps: numbers of denoising steps that are measured.

    Raises:
        FileNotFoundError, ValueError: a file cannot be loaded, see `load_lora`.
    """
    records = []
    for path, name in names.items():
        handle = load_lora(bundle, path).loras[-1]
        contradictions = find_contradictions(WeightsFile(path).metadata, bundle, settings, steps)
        handle = replace(handle, notes=(*handle.notes, *contradictions), holder=None)
        log_lora(handle)
        unmatched = handle.unmatched
        sentences = tuple(describe_lora(handle))
        left_out = count_left_out(unmatched)
        records.append(LoraRecord(name, str(path), handle.num_matched, left_out, len(unmatched), sentences))
    return records


def find_contradictions(
    facts: Mapping[str, str], bundle: ModelBundle, settings: SamplingSettings, steps: Sequence[int]
) -> list[str]:
    """Return a sentence for each thing that a LoRA's file states otherwise than the evaluation has it.

    Args:
        facts: the file's metadata; one that states nothing contradicts nothing.
        bundle: the model of the evaluation.
        settings: of sampling.
        steps: numbers of denoising steps that are measured.
    """
    solver, guidance = bundle.schedule.solver_name, settings.guidance_scale
    pairs = [("solver", solver, _text(facts, "solver") == solver)]
    if _text(facts, "sampler") in SOLVERS:  # what earlier files call it
        pairs += [("sampler", solver, _text(facts, "sampler") == solver)]
    pairs += [("guidance_scale", f"{guidance:g}", _number(facts, "guidance_scale") == guidance)]
    pairs += [("num_steps", ", ".join(map(str, steps)), _number(facts, "num_steps") in steps)]
    pairs += [("base_model", bundle.name, _stem(_text(facts, "base_model")) == _stem(bundle.name))]
    sentences = [
        f"its file states {name}={facts[name]}, this evaluation has {now}"
        for name, now, is_equal in pairs
        if _text(facts, name) not in ("", "None") and not is_equal
    ]
    sentences += [
        f"its file states {name}={facts[name]}, which is another kind of model than SDXL"
        for name in _FAMILY_FACTS
        if _OTHER_FAMILIES.match(_text(facts, name).lower())
    ]
    return sentences + describe_other_base(facts, bundle.loras)


def _text(facts: Mapping[str, str], name: str) -> str:
    return facts.get(name, "").strip()


def _number(facts: Mapping[str, str], name: str) -> float | None:
    try:
        return float(_text(facts, name))
    except ValueError:
        return None


def _stem(model: str) -> str:
    """Return a model's name without folders and ending: its files may lie elsewhere by now."""
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return last.rpartition(".")[0] if is_safetensors(last) else last
