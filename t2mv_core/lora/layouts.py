"""The layouts LoRAs are published in, read into one: matrices and differences by the UNet's names.

`ENDINGS` is the table of what a key's end means. Its start names a module of the UNet, as diffusers, SDXL's
original layout or kohya's trainer ("_" for ".") write it, perhaps behind wrappers of PEFT and PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..bundle import LoraHandle
from ..formats.key_mapping import diffusers_unet_name


class Ending(NamedTuple):
    """What a key is by its end.

    Attributes:
        pattern: regular expression of the end; PEFT puts the adapter's name before ".weight".
        layout: who writes it; "" for parts that T2MV does not read.
        part: of `PARTS_READ`, or the kind of adapter that has such parts.
    """

    pattern: str
    layout: str
    part: str


WHOLE_WEIGHTS = "whole weights"
_NAME = r"(\.[^.]+)?"  # an adapter's
ENDINGS = tuple(
    (re.compile(rf"{ending.pattern}$"), ending)
    for ending in (
        Ending(rf"\.lora_A({_NAME}\.weight)?", "PEFT", "down"),
        Ending(rf"\.lora_B({_NAME}\.weight)?", "PEFT", "up"),
        Ending(r"[._]lora\.down\.weight", "diffusers", "down"),
        Ending(r"[._]lora\.up\.weight", "diffusers", "up"),
        Ending(r"\.lora_linear_layer\.down\.weight", "diffusers", "down"),
        Ending(r"\.lora_linear_layer\.up\.weight", "diffusers", "up"),
        Ending(r"\.lora_down\.weight", "kohya", "down"),
        Ending(r"\.lora_up\.weight", "kohya", "up"),
        Ending(r"\.alpha", "kohya", "alpha"),
        Ending(r"\.(diff|w_norm)", "differences", "weight"),
        Ending(r"\.(diff_b|b_norm)", "differences", "bias"),
        Ending(r"\.dora_scale", "", "DoRA"),
        Ending(rf"\.lora_magnitude_vector{_NAME}(\.weight)?", "", "PEFT's DoRA"),
        Ending(r"\.lora_mid\.weight", "", "LoCon with a middle layer"),
        Ending(rf"\.lora_[AB]{_NAME}\.bias", "", "PEFT with biases"),
        Ending(rf"\.hada_\w+{_NAME}", "", "LoHa"),
        Ending(rf"\.lokr_\w+{_NAME}", "", "LoKr"),
        Ending(r"\.(oft_blocks|oft_diag|rescale)", "", "OFT"),
        Ending(rf"\.(oft|boft)_\w+{_NAME}(\.weight)?", "", "PEFT's OFT"),
        Ending(r"\.[ab][12]\.weight", "", "GLoRA"),
        Ending(rf"\.(on_input|ia3_l{_NAME})", "", "(IA)3"),
        Ending(rf"\.vera_lambda_\w+{_NAME}", "", "VeRA"),
        Ending(r"\.(set_weight|reshape_weight)", "", "replaced weights"),
        Ending(r"\.scalar", "", "LyCORIS with a scalar"),
        Ending(r"\.(weight|bias)", "", WHOLE_WEIGHTS),
    )
)
PARTS_READ = {"down", "up", "alpha", "weight", "bias"}
READ_BY_COMFYUI = {
    "DoRA", "LoCon with a middle layer", "LoHa", "LoKr", "OFT", "GLoRA", "replaced weights",
}  # fmt: skip
"""Kinds that ComfyUI's own loaders apply as they were trained."""

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
    r"|(?<=_)_orig_mod_"  # in kohya's names
)
_PREFIXES = re.compile(r"(?:(?:base_model\.model|unet|model|diffusion_model)\.)*")
_KOHYA_PREFIXES = ("lora_unet_", "lycoris_")
_TEXT_ENCODER = re.compile(r"lora_te\d?_|(text_encoders?(_\d)?|text_model|te\d?|clip_[lg]|conditioner)\.")


@dataclass(frozen=True)
class LoraModule:
    """The matrices that a file holds for one module.

    Attributes:
        down: [rank, in] or, for a convolution, [rank, in, height, width].
        up: [out, rank] or [out, rank, 1, 1].
        alpha: the effect is scaled by alpha / rank; None when the file says nothing at this module.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """Rank; 1 for a tensor that is no matrix (its shape is refused later)."""
        return (*self.down.shape, 1)[0]


@dataclass(frozen=True)
class LoraContent:
    """A file, sorted.

    Attributes:
        layout: of `ENDINGS`; several are joined by "and"; "" when no key fits.
        modules: matrices, by the UNet's module names.
        differences: tensors that are added to the UNet's, by the names of its weights and biases.
        unmatched: what has no place in this UNet, by the file's keys.
        notes: sentences on what the user should know of the file beside that.
    """

    layout: str = ""
    modules: dict[str, LoraModule] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    unmatched: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_matched(self) -> int:
        """Number of the UNet's modules that the file changes."""
        return len(self.modules.keys() | {name.rpartition(".")[0] for name in self.differences})

    def handle(self, name: str, strength: float, path: Path, holder: object = None) -> LoraHandle:
        """Return the record of the file acting in a bundle."""
        unmatched = tuple(self.unmatched)
        return LoraHandle(name, strength, self.num_matched, unmatched, self.layout, path, holder, self.notes)


def sort_lora(
    tensors: Mapping[str, Tensor], module_names: Collection[str], layers_per_block: int
) -> LoraContent:
    """Sort a file's tensors by the module they belong to.

    A module that lacks one of its matrices, or has parts that T2MV does not read, is left out as a whole: it
    would act otherwise than it was trained.

    Args:
        tensors: the file's.
        module_names: layers of the UNet that may change.
        layers_per_block: of the UNet, for original names.

    Raises:
        ValueError: two sets of matrices for one module, or an alpha that is not one number.
    """
    content, layouts = LoraContent(), set()
    short_names = {name.replace(".", "_"): name for name in module_names}
    for stem, keys in group_keys(tensors).items():
        parts = {part: keys_of_part[0] for part, keys_of_part in keys.items()}
        module = _find_module(stem, module_names, short_names, layers_per_block + 1)
        if module is None or not _is_complete(parts.keys()):
            content.unmatched.update({key: tensors[key] for group in keys.values() for key in group})
            continue
        names = {f"{module}.{part}": part for part in ("weight", "bias") if part in parts}
        if module in content.modules or names.keys() & content.differences.keys() or _is_double(keys):
            raise ValueError(f"It holds two LoRAs for {module!r}, the second under {stem!r}; fetch it again.")
        layouts |= {_split(key)[1].layout for key in parts.values()}
        content.differences.update({name: tensors[parts[part]] for name, part in names.items()})
        if "up" in parts:
            alpha = _alpha(tensors[parts["alpha"]], parts["alpha"]) if "alpha" in parts else None
            content.modules[module] = LoraModule(tensors[parts["down"]], tensors[parts["up"]], alpha)
    return LoraContent(" and ".join(sorted(layouts)), content.modules, content.differences, content.unmatched)


def group_keys(keys: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Return a file's keys by what they say of the module, without wrappers, and by part."""
    groups: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        stem, ending = _split(key)
        groups.setdefault(stem, {}).setdefault(ending.part, []).append(key)
    return groups


def is_lora(keys: Collection[str]) -> bool:
    """Return whether a file's names have an end that a LoRA of any kind has."""
    return any(_split(key)[1].part not in ("", WHOLE_WEIGHTS) for key in keys)


def find_kind(parts: Collection[str]) -> str:
    """Return what kind of adapter a module's parts make it; "" for those that T2MV reads."""
    others = [part for part in parts if part and part not in PARTS_READ]
    return next((part for part in others if part != WHOLE_WEIGHTS), others[0] if others else "")


def is_for_text_encoder(stem: str) -> bool:
    """Return whether a module's name in a file is one of a text encoder."""
    return _TEXT_ENCODER.match(_PREFIXES.sub("", stem, count=1)) is not None


def _alpha(tensor: Tensor, key: str) -> float:
    if tensor.numel() != 1:
        raise ValueError(f"{key!r} has {tensor.numel()} numbers, an alpha is one; fetch it again.")
    return float(tensor)


def _is_complete(parts: Collection[str]) -> bool:
    has_matrices = {"down", "up"} <= set(parts)
    is_half = not has_matrices and not {"down", "up"}.isdisjoint(parts)
    return set(parts) <= PARTS_READ and not is_half and set(parts) != {"alpha"}


def _is_double(keys: Mapping[str, list[str]]) -> bool:
    return any(len(keys_of_part) > 1 for keys_of_part in keys.values())


def _split(key: str) -> tuple[str, Ending]:
    """Return a key without wrappers and end, and what its end says."""
    bare = _WRAPPERS.sub("", key)
    for pattern, ending in ENDINGS:
        if match := pattern.search(bare):
            return bare[: match.start()], ending
    return bare, Ending("", "", "")


def _find_module(
    stem: str, names: Collection[str], short_names: Mapping[str, str], per_level: int
) -> str | None:
    for prefix in _KOHYA_PREFIXES:
        if stem.startswith(prefix):
            bare = stem.removeprefix(prefix)
            return short_names.get(bare) or short_names.get(diffusers_unet_name(bare, per_level, "_"))
    bare = _PREFIXES.sub("", stem, count=1)
    plain = bare.replace(".processor.", ".")  # older diffusers kept LoRAs in the attention's processor
    candidates = (bare, diffusers_unet_name(bare, per_level), plain, f"{plain}.0")
    return next((name for name in candidates if name in names), None)
