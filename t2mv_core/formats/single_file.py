"""Weights files without a folder: an SDXL checkpoint, or a UNet or VAE alone, in either layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from .key_mapping import (
    Change,
    blocks_per_level,
    diffusers_unet_name,
    diffusers_vae_name,
    transformers_clip_names,
)
from .kinds import TEXT_PREFIXES, UNET_PREFIX, refuse_other_models
from .strict import Weight, WeightsFile

PARTS = {  # prefix in a checkpoint -> part of the model
    UNET_PREFIX: "unet",
    "first_stage_model.": "vae",
    TEXT_PREFIXES[0]: "text_encoder",
    TEXT_PREFIXES[1]: "text_encoder_2",
}
_CONSTANTS = re.compile(  # training's leftovers and constants, of no use to anyone who loads the file
    r"model_ema\..*|denoiser\.sigmas|.*position_ids|conditioner\.embedders\.\d\.(.*\.)?logit_scale|first_stage_model\.loss\..*|loss\..*|"
    r"(model\.)?(betas|alphas_cumprod(_prev)?|sqrt_\w*alphas\w*|log_one_minus_alphas_cumprod|posterior_\w+)|"
    r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?|epoch|global_step"
)
_HOME = {"unet": ("input_blocks.0.0.weight", "conv_in.weight"), "vae": ("encoder.conv_in.weight",)}

PartWeights = dict[str, Weight]


def part_of_file(file: WeightsFile, part: str) -> PartWeights:
    """Return the weights of one part, under diffusers' or transformers' names.

    Args:
        file: a checkpoint, or a UNet or VAE alone; in original or diffusers layout.
        part: one of `PARTS`' values.

    Raises:
        ValueError: the part is not in the file, or the file is known to be something else.
    """
    refuse_other_models(file)
    names = {_without_prefix(key): key for key, owner in _owners(file, part).items() if owner == part}
    if not names or (part in _HOME and not _looks_like(part, file)):
        raise ValueError(_absence(file, part))
    return _renamed(part, names, file)


def strays_of_file(file: WeightsFile) -> list[str]:
    """Return the tensors of a checkpoint that belong to no part of SDXL: nobody reads them."""
    return [key for key, owner in _owners(file, None).items() if owner is None]


def _owners(file: WeightsFile, part: str | None) -> dict[str, str | None]:
    """Name the part of each tensor, constants aside; a file without two prefixes is all of `part`."""
    part_alone = part if part in _HOME and not _is_checkpoint(file) else None
    return {
        key: next((owner for prefix, owner in PARTS.items() if key.startswith(prefix)), part_alone)
        for key in sorted(file.shapes)
        if not _CONSTANTS.fullmatch(key)
    }


def _is_checkpoint(file: WeightsFile) -> bool:
    return sum(any(key.startswith(prefix) for key in file.shapes) for prefix in PARTS) > 1


def _without_prefix(key: str) -> str:
    return key.removeprefix(next((prefix for prefix in PARTS if key.startswith(prefix)), ""))


def _absence(file: WeightsFile, part: str) -> str:
    if part != "unet" and _looks_like("unet", file) and not _is_checkpoint(file):
        return (
            f"{file.path} holds no {part} of SDXL: it is a UNet alone. Choose it as the unet of a whole "
            "model, from models/diffusion_models."
        )
    return (
        f"{file.path} holds no {part} of SDXL (first tensor: {next(iter(sorted(file.shapes)), 'none')!r}). "
        "Choose a checkpoint, or for a part alone a UNet from models/diffusion_models or a VAE from "
        "models/vae."
    )


def _looks_like(part: str, file: WeightsFile) -> bool:
    prefix = next(prefix for prefix, name in PARTS.items() if name == part)
    return any(start + home in file.shapes for home in _HOME[part] for start in ("", prefix))


def _renamed(part: str, names: Mapping[str, str], file: WeightsFile) -> PartWeights:
    """Name the weights of one part as its module does; `names`: name without prefix -> key in the file."""
    weights: PartWeights = {}
    rename = _renamer(part, names)
    for name, key in names.items():
        for renamed, change in rename(name):
            if renamed in weights:
                raise ValueError(
                    f"{file.path} holds {renamed!r} twice, as {weights[renamed].key!r} and as {key!r}: it "
                    "mixes two layouts. Fetch it again."
                )
            weights[renamed] = Weight(file, key, change)
    return weights


def _renamer(part: str, names: Collection[str]) -> Callable[[str], Iterable[tuple[str, Change | None]]]:
    """Return a rule from original names to diffusers' or transformers', and how to change the tensors.

    All `names` of the part tell how many blocks there are.
    """
    if part == "unet":
        per_level = blocks_per_level(names)
        return lambda name: [(diffusers_unet_name(name, per_level), None)]
    if part == "vae":
        levels = [re.match(r"decoder\.up\.(\d+)\.", name) for name in names]
        num_levels = 1 + max((int(level[1]) for level in levels if level), default=0)
        return lambda name: [diffusers_vae_name(name, num_levels)]
    return lambda name: [
        (new.removeprefix("text_model."), change) for new, change in transformers_clip_names(name)
    ]
