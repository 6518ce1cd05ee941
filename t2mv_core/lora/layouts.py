"""The layouts LoRAs are published in, read into one: two matrices and an alpha per module of the UNet.

    PEFT        [base_model.model.|unet.]<module>.lora_A.weight, .lora_B.weight
    diffusers   unet.<module>.lora.down.weight, .lora.up.weight;
                older: <attention>.processor.to_q_lora.down.weight
    kohya       lora_unet_<module>.lora_down.weight, .lora_up.weight, .alpha; "_" for ".", and modules named
                as in diffusers or as in SDXL's original layout

Ours, and those of the published code, are PEFT's (docs/method.md, section 9). What is left over is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..formats.key_mapping import diffusers_unet_name

_PREFIXES = ("base_model.model.", "unet.", "diffusion_model.")
_KOHYA_PREFIXES = ("lora_unet_", "lycoris_")
_ENDINGS = {  # end of a key, regular expression -> (layout, what the tensor is)
    r"\.lora_A(\.default)?\.weight": ("PEFT", "down"),
    r"\.lora_B(\.default)?\.weight": ("PEFT", "up"),
    r"[._]lora\.down\.weight": ("diffusers", "down"),
    r"[._]lora\.up\.weight": ("diffusers", "up"),
    r"\.lora_down\.weight": ("kohya", "down"),
    r"\.lora_up\.weight": ("kohya", "up"),
    r"\.alpha": ("kohya", "alpha"),
}
_OTHER_KINDS = {  # ends of keys that no plain LoRA has -> what has them
    r"\.hada_\w+": "LoHa",
    r"\.lokr_\w+": "LoKr",
    r"\.(dora_scale|lora_magnitude_vector.*)": "DoRA",
    r"\.lora_mid\.weight": "LoCon with a middle layer",
    r"\.(oft_\w+(\.weight)?|diff|diff_b|on_input)": "OFT, full difference or IA3",
    r"\.lora_[AB](\.default)?\.bias": "PEFT with biases",
}
_TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_te\d?_|text_encoder(_2)?\.|te\d?\.)")


@dataclass(frozen=True)
class LoraModule:
    """What a file holds for one module.

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
        layout: "PEFT", "diffusers" or "kohya"; several are joined by "and"; "" when no key fits.
        modules: by the UNet's module names.
        unmatched: keys without a place in this UNet.
    """

    layout: str = ""
    modules: dict[str, LoraModule] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()


def sort_lora(
    tensors: Mapping[str, Tensor], module_names: Collection[str], layers_per_block: int
) -> LoraContent:
    """Sort a file's tensors by the module they belong to.

    A module that lacks one of its matrices, or has parts that a plain LoRA does not have, is left out as a
    whole: it would act otherwise than it was trained.

    Args:
        tensors: the file's.
        module_names: linear and convolution layers of the UNet.
        layers_per_block: of the UNet, for original names.

    Raises:
        ValueError: two sets of matrices for one module.
    """
    parts: dict[str, dict[str, str]] = {}  # key without its end -> what the tensor is -> key
    layouts, unmatched = set(), []
    for key in tensors:
        stem, layout, kind = _split(key)
        if kind:
            group = parts.setdefault(stem, {})
            group[key if kind in ("other", *group) else kind] = key
            layouts.add(layout)
        else:
            unmatched.append(key)
    short_names = {name.replace(".", "_"): name for name in module_names}
    modules: dict[str, LoraModule] = {}
    for stem, keys in parts.items():
        module = _find_module(stem, module_names, short_names, layers_per_block + 1)
        if module is None or not {"down", "up"} <= keys.keys() <= {"down", "up", "alpha"}:
            unmatched += keys.values()
            continue
        if module in modules:
            raise ValueError(f"It holds two LoRAs for {module!r}, the second under {stem!r}; fetch it again.")
        alpha = float(tensors[keys["alpha"]].flatten()[0]) if "alpha" in keys else None
        modules[module] = LoraModule(tensors[keys["down"]], tensors[keys["up"]], alpha)
    return LoraContent(" and ".join(sorted(layouts - {""})), modules, tuple(unmatched))


def describe_unmatched(keys: Collection[str]) -> list[str]:
    """What the keys without a place are, in words, one line per kind."""
    counts = Counter(map(_kind_of_unmatched, keys))
    return [f"{count} keys {kind}" for kind, count in counts.most_common()]


def _kind_of_unmatched(key: str) -> str:
    if _TEXT_ENCODER.match(key):
        return "are for the text encoders, which T2MV leaves as they are"
    for ending, name in _OTHER_KINDS.items():
        if re.search(ending + "$", key):
            return f"are of another kind of adapter ({name}), which T2MV does not know"
    return "have no place in this UNet, or lack their other half"


def _split(key: str) -> tuple[str, str, str]:
    """A key as (key without its end, layout, "down", "up", "alpha", "other" or "")."""
    for ending, (layout, kind) in _ENDINGS.items():
        if found := re.search(ending + "$", key):
            return key[: found.start()], layout, kind
    for ending in _OTHER_KINDS:
        if found := re.search(ending + "$", key):
            return key[: found.start()], "", "other"
    return key, "", ""


def _find_module(
    stem: str, names: Collection[str], short_names: Mapping[str, str], per_level: int
) -> str | None:
    for prefix in _KOHYA_PREFIXES:
        if stem.startswith(prefix):
            bare = stem.removeprefix(prefix)
            return short_names.get(bare) or short_names.get(diffusers_unet_name(bare, per_level, "_"))
    bare = stem
    for prefix in _PREFIXES:
        bare = bare.removeprefix(prefix)
    plain = bare.replace(".processor.", ".")  # older diffusers kept LoRAs in the attention's processor
    candidates = (bare, diffusers_unet_name(bare, per_level), plain, f"{plain}.0")
    return next((name for name in candidates if name in names), None)
