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
from .strict import Weight, WeightsFile

UNET_PREFIX = "model.diffusion_model."
PARTS = {  # prefix in a checkpoint -> part of the model
    UNET_PREFIX: "unet",
    "first_stage_model.": "vae",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
_CONSTANTS = re.compile(  # training's leftovers and constants, of no use to anyone who loads the file
    r"model_ema\..*|denoiser\.sigmas|.*position_ids|(.*\.)?logit_scale|first_stage_model\.loss\..*|loss\..*|"
    r"(model\.)?(betas|alphas_cumprod(_prev)?|sqrt_\w*alphas\w*|log_one_minus_alphas_cumprod|posterior_\w+)|"
    r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?|ztsnr|epoch|global_step"
)
_HOME = {"unet": ("input_blocks.0.0.weight", "conv_in.weight"), "vae": ("encoder.conv_in.weight",)}

PartWeights = dict[str, Weight]

# What is known not to be SDXL's.
_ONLY_SDXL = "T2MV needs an SDXL model (epsilon prediction)"
_SCALED = "an fp8 file with scales of its own ('scaled fp8')"
_LORA = "a LoRA (it goes into models/loras and the Load LoRA node)"
_KEYS = {  # a tensor that only such a file has -> what the file is
    "v_pred": "a v-prediction model",
    "edm_mean": "an EDM model (Playground 2.5)",
    "edm_std": "an EDM model (Playground 2.5)",
    "scaled_fp8": _SCALED,
    UNET_PREFIX + "scaled_fp8": _SCALED,
}
_STARTS = {  # likewise, by the beginning of a name
    "edm_vpred.": "a v-prediction (EDM) model",
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "cond_stage_model.model.": "a Stable Diffusion 2.x model",
    "cond_stage_model.": "a Stable Diffusion 1.x model",
    "double_blocks.": "a Flux model",
    "single_transformer_blocks.": "a Flux model",
    UNET_PREFIX + "double_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    UNET_PREFIX + "joint_blocks.": "a Stable Diffusion 3 model",
    "control_model.": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "lora_unet_": _LORA,
    "lora_te": _LORA,
}
_CONTEXT_WIDTHS = {
    768: "a Stable Diffusion 1.x model",
    1024: "a Stable Diffusion 2.x model",
    1280: "an SDXL refiner",
}
_INPUTS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)"}


def split_file(file: WeightsFile, part_alone: str | None = None) -> dict[str, PartWeights]:
    """Sort a file's weights by part, under diffusers' and transformers' names.

    Args:
        file: in original or diffusers layout.
        part_alone: "unet" or "vae": what weights without a prefix are taken for; None refuses them.

    Returns:
        Weights by name, by part; the parts the file has.

    Raises:
        ValueError: the file is known to be something else, or holds a tensor that belongs to no part.
    """
    refuse_other_models(file)
    raw: dict[str, dict[str, str]] = {}
    foreign = []
    for key in sorted(file.shapes):
        if _CONSTANTS.fullmatch(key):
            continue
        prefix = next((prefix for prefix in PARTS if key.startswith(prefix)), "")
        part = PARTS.get(prefix, part_alone)
        if part is None:
            foreign.append(key)
        else:
            raw.setdefault(part, {})[key.removeprefix(prefix)] = key
    if foreign:
        raise ValueError(
            f"{file.path} is not an SDXL checkpoint this project knows: {foreign[0]!r} belongs to no part of "
            f"it ({len(foreign)} such tensors of {len(file.shapes)}). Choose a single-file SDXL checkpoint."
        )
    return {part: _renamed(part, names, file) for part, names in raw.items()}


def part_of_file(file: WeightsFile, part: str, alone: bool = False) -> PartWeights:
    """The weights of one part; see `split_file`.

    Args:
        file: a checkpoint, or the part alone.
        part: one of `PARTS`' values.
        alone: whether the part may be alone in the file, without a prefix.

    Raises:
        ValueError: the part is not in the file; see also `split_file`.
    """
    is_checkpoint = sum(any(key.startswith(prefix) for key in file.shapes) for prefix in PARTS) > 1
    weights = split_file(file, part if alone and not is_checkpoint else None).get(part)
    if not weights or (alone and not _looks_like(part, file)):
        first = next(iter(sorted(file.shapes)), "none")
        raise ValueError(
            f"{file.path} holds no {part} of SDXL (first tensor: {first!r}). Choose a checkpoint, or for a "
            "part alone a UNet from models/diffusion_models or a VAE from models/vae."
        )
    return weights


def _looks_like(part: str, file: WeightsFile) -> bool:
    prefix = next(prefix for prefix, name in PARTS.items() if name == part)
    return any(start + home in file.shapes for home in _HOME[part] for start in ("", prefix))


def _renamed(part: str, names: Mapping[str, str], file: WeightsFile) -> PartWeights:
    """Weights of one part under its module's names; `names`: name without prefix -> key in the file."""
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
    """A rule from a part's original names to diffusers' or transformers', and how to change their tensors.

    Args:
        part: one of `PARTS`' values.
        names: all its names, without prefix: they tell how many blocks there are.
    """
    if part == "unet":
        per_level = blocks_per_level(names)
        return lambda name: [(diffusers_unet_name(name, per_level), None)]
    if part == "vae":
        levels = [
            int(found[1]) for found in (re.match(r"decoder\.up\.(\d+)\.", name) for name in names) if found
        ]
        num_levels = max(levels, default=0) + 1
        return lambda name: [diffusers_vae_name(name, num_levels)]
    return lambda name: [
        (new.removeprefix("text_model."), change) for new, change in transformers_clip_names(name)
    ]


def refuse_other_models(file: WeightsFile) -> None:
    """Refuse files that are known not to be SDXL, with what they are.

    Raises:
        ValueError: v-prediction, SD 1.x or 2.x, refiner, inpainting, Flux, SD 3, ControlNet, LoRA, scaled
            fp8.
    """
    kind = _marked(file) or _by_shape(file)
    if kind is not None:
        raise ValueError(f"{file.path} is {kind}; {_ONLY_SDXL}. Choose another file.")


def _marked(file: WeightsFile) -> str | None:
    by_key = (kind for mark, kind in _KEYS.items() if mark in file.shapes)
    by_start = (kind for mark, kind in _STARTS.items() if any(key.startswith(mark) for key in file.shapes))
    return next(by_key, None) or next(by_start, None)


def _by_shape(file: WeightsFile) -> str | None:
    """By the UNet's inputs: channels of the latent and width of the text, as neither can be seen by names."""
    for prefix in ("", UNET_PREFIX):
        for conv_in in ("input_blocks.0.0.weight", "conv_in.weight"):
            shape = file.shapes.get(prefix + conv_in, ())
            if len(shape) == 4 and shape[1] in _INPUTS:
                return _INPUTS[shape[1]]
    has_size_input = any(".label_emb." in f".{key}" or "add_embedding." in key for key in file.shapes)
    for key, shape in file.shapes.items():
        if key.endswith("attn2.to_k.weight") and len(shape) == 2 and shape[1] in _CONTEXT_WIDTHS:
            is_refiner = shape[1] == 1280
            return _CONTEXT_WIDTHS[shape[1]] if is_refiner or not has_size_input else None
    return None
