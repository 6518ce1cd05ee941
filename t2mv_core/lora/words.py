"""What became of a LoRA's file, in sentences for the nodes, the trainer's log and the evaluation's report."""

from __future__ import annotations

from collections.abc import Collection

from ..bundle import LoraHandle
from .layouts import READ_BY_COMFYUI, find_kind, group_keys, is_for_text_encoder


def describe_lora(handle: LoraHandle) -> list[str]:
    """Return how much of a file acts, what was left out and why, and what else the user should know."""
    return [
        f"{handle.num_matched} modules act, {count_left_out(handle.unmatched)} are left out",
        *describe_unmatched(handle.unmatched),
        *handle.notes,
    ]


def count_left_out(keys: Collection[str]) -> int:
    """Return the number of modules that a file's keys without a place belong to."""
    return len(group_keys(keys))


def describe_unmatched(keys: Collection[str]) -> list[str]:
    """Return what the keys without a place are, a sentence per kind."""
    counts: dict[str, list[int]] = {}
    for stem, parts in group_keys(keys).items():
        counts.setdefault(_kind(stem, parts), []).append(sum(map(len, parts.values())))
    ordered = sorted(counts.items(), key=lambda item: -len(item[1]))
    return [f"{len(sizes)} modules ({sum(sizes)} keys) {kind}" for kind, sizes in ordered]


def _kind(stem: str, parts: Collection[str]) -> str:
    if is_for_text_encoder(stem):
        return "are for the text encoders, which T2MV leaves as they are"
    if name := find_kind(parts):
        where = "only in Load LoRA, native" if name in READ_BY_COMFYUI else "nowhere"
        return f"are of another kind of adapter ({name}), which T2MV applies {where}"
    if ("down" in parts) != ("up" in parts):
        return "lack one of their two matrices"
    return "have no place in this UNet"
