"""What a LoRA's file says of its scale, where its modules say nothing themselves.

Alpha comes from PEFT's configuration (`adapter_config.json` beside the file, or `lora_adapter_metadata` in
its header, as diffusers writes it), else from the header under one of the names that trainers use.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..formats.safetensors_io import is_safetensors
from .layouts import LoraModule

_ALPHA = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")
_RANK = ("r", "rank", "lora_rank", "network_dim", "ss_network_dim")
_FOLLOWED = {*_ALPHA, *_RANK, "use_rslora", "alpha_pattern", "rank_pattern", "lora_adapter_metadata"}
_ABOUT_SCALE = re.compile(r"alpha|rs_?lora|lora_scale|rank_pattern")  # in a header's names
_NO_EFFECT = {  # of PEFT's LoraConfig: they concern training, or which modules and tensors the file holds
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_bias", "lora_dropout", "megatron_config", "megatron_core",
    "modules_to_save", "parent_library", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type", "use_dora",
}  # fmt: skip
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base model as it is."""
_UNSTATED = ("", "None", "null", "Dynamic")
"""Written in place of a number: kohya's trainers do so."""


def complete_alphas(
    modules: Mapping[str, LoraModule], metadata: Mapping[str, str], path: Path
) -> tuple[dict[str, LoraModule], list[str]]:
    """Return the modules with an alpha each, and sentences on what was assumed or not understood.

    Args:
        modules: of the file.
        metadata: of the file's header.
        path: the file.

    Raises:
        ValueError: a fact that decides on the scale is no number.
    """
    silent = {name: module for name, module in modules.items() if module.alpha is None}
    if not silent:
        return dict(modules), []
    facts, notes = _read_facts(metadata, path)
    alpha = _first_number(facts, _ALPHA, path)
    notes += _check_rank(facts, {module.rank for module in silent.values()}, path)
    patterns = _Patterns(facts.get("alpha_pattern") or {}, path)
    is_rank_stabilized = str(facts.get("use_rslora")).lower() in ("true", "1")
    completed, num_assumed, num_fitting = dict(modules), 0, 0
    for name, module in silent.items():
        fitting = patterns.find(name)
        num_fitting += fitting is not None
        stated = alpha if fitting is None else fitting
        num_assumed += stated is None
        factor = math.sqrt(module.rank) if is_rank_stabilized else 1.0  # rsLoRA: alpha / sqrt(rank)
        completed[name] = replace(module, alpha=module.rank if stated is None else stated * factor)
    if facts.get("alpha_pattern") and not num_fitting:
        notes.append("its alpha_pattern names none of the modules that have no alpha of their own")
    if num_assumed:
        notes.append(f"alpha is not stated for {num_assumed} modules; it was assumed to equal their rank")
    return completed, notes


def _read_facts(metadata: Mapping[str, str], path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the facts, the first source's first, and sentences on those that are not followed."""
    facts: dict[str, Any] = {}
    notes: list[str] = []
    alphas: dict[str, str] = {}
    for source, config in _sources(metadata, path):
        if config is None:
            notes.append(f"{source} cannot be read")
            continue
        notes += [f"{source} states {fact}, which T2MV does not follow" for fact in _unknown_facts(config)]
        for name in _ALPHA:
            if config.get(name) is not None and config[name] not in _UNSTATED:
                alphas.setdefault(f"{_number(name, config[name], path):g}", f"{name} in {source}")
        facts = {**{name: fact for name, fact in config.items() if fact is not None}, **facts}
    if len(alphas) > 1:
        stated = ", ".join(f"{value} ({place})" for value, place in alphas.items())
        notes.append(f"it states several alphas: {stated}; T2MV follows the first")
    for name in ("alpha_pattern", "rank_pattern"):
        if not isinstance(facts.get(name, {}), dict | None):
            notes.append(f"its {name} cannot be read")
            del facts[name]
    return facts, notes


def _sources(metadata: Mapping[str, str], path: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield what states facts on the UNet's LoRA: its name, and the facts; None for a damaged one."""
    beside = path.with_name("adapter_config.json")
    if beside.is_file() and _is_alone(path):
        yield "adapter_config.json", _parse_table(beside.read_text(encoding="utf-8-sig", errors="replace"))
    if "lora_adapter_metadata" in metadata:
        yield "lora_adapter_metadata", _for_unet(_parse_table(metadata["lora_adapter_metadata"]))
    header = _for_unet(metadata) or {}
    yield (
        "its header",
        {
            name: _parse_pattern(text) if name.endswith("_pattern") else text
            for name, text in header.items()
            if name in _FOLLOWED or _ABOUT_SCALE.search(name)
        },
    )


def _for_unet(table: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the UNet's part: diffusers keeps one table for all networks, their names before the keys."""
    if table is None:
        return None
    weights = {name.removeprefix("unet."): value for name, value in table.items()}
    return {name: value for name, value in weights.items() if not name.startswith("text_encoder")}


def _is_alone(path: Path) -> bool:
    """Return whether the configuration in a file's folder is the file's: PEFT's name, or no other file."""
    others = (file for file in path.parent.iterdir() if is_safetensors(file) and file.name != path.name)
    return path.name == "adapter_model.safetensors" or next(others, None) is None


def _unknown_facts(config: Mapping[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        if name not in _FOLLOWED | _NO_EFFECT and value not in (None, False, [], {}, ""):
            yield f"{name}={str(value)[:100]}"
    if str(config.get("peft_type", "LORA")).rpartition(".")[2] != "LORA":
        yield f"peft_type={config['peft_type']}"
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        yield f"init_lora_weights={config['init_lora_weights']} (trained on a changed base model)"


def _parse_table(text: str) -> dict[str, Any] | None:
    try:
        table = json.loads(text)
    except ValueError:
        return None
    return table if isinstance(table, dict) else None


def _parse_pattern(text: str) -> dict[str, Any] | str:
    table = _parse_table(text)
    return text if table is None else table


def _first_number(facts: Mapping[str, Any], names: tuple[str, ...], path: Path) -> float | None:
    for name in names:
        if facts.get(name) is not None and facts[name] not in _UNSTATED:
            return _number(name, facts[name], path)
    return None


def _check_rank(facts: Mapping[str, Any], ranks: set[int], path: Path) -> list[str]:
    rank = _first_number(facts, _RANK, path)
    if rank is not None and rank < 1:
        raise ValueError(f"{path}: rank {rank:g} beside alpha in its metadata must be at least 1.")
    if rank is None or rank in ranks or facts.get("rank_pattern"):
        return []
    return [f"it states rank {rank:g}, but its matrices have rank {', '.join(map(str, sorted(ranks)))}"]


def _number(name: str, value: object, path: Path) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: {name}={value!r} in its metadata (rank, alpha) must be a finite number.")
    return number


class _Patterns:
    """PEFT's `alpha_pattern`: a name or regular expression of the end of modules' names -> alpha.

    Plain names are looked up: a file may have one for each module, and so many expressions take long.
    """

    def __init__(self, table: Mapping[str, Any], path: Path) -> None:
        self._values = [_number(f"alpha_pattern {name}", value, path) for name, value in table.items()]
        self._plain: dict[str, int] = {}
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        for index, name in enumerate(table):
            if re.fullmatch(r"[\w.]+", name):
                self._plain.setdefault(name, index)
            else:
                self._expressions.append((index, _compile(name, path)))

    def find(self, module: str) -> float | None:
        """Return the value of the first pattern that fits, or None."""
        parts = module.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        indices = [self._plain[end] for end in ends if end in self._plain]
        indices += [index for index, pattern in self._expressions if pattern.match(module)]
        return self._values[min(indices)] if indices else None


def _compile(pattern: str, path: Path) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        problem = f"alpha_pattern {pattern!r} in its metadata is no expression ({error})"
        raise ValueError(f"{path}: {problem}.") from error
