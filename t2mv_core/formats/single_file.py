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

# What is known not to be SDXL's: beginning of a tensor's name that only such a file has -> what the file is.
_SCALED = "an fp8 file with scales of its own ('scaled fp8')"
_LORA = "a LoRA (it goes into models/loras and the Load LoRA node)"
_MARKS = {
    "v_pred": "a v-prediction model",
    "edm_mean": "an EDM model (Playground 2.5)",
    "edm_std": "an EDM model (Playground 2.5)",
    "scaled_fp8": _SCALED,
    UNET_PREFIX + "scaled_fp8": _SCALED,
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
_CONTEXT_WIDTHS = {768: "a Stable Diffusion 1.x model", 1024: "a Stable Diffusion 2.x model"}
_REFINER_WIDTH = 1280
_INPUTS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)"}


def part_of_file(file: WeightsFile, part: str) -> PartWeights:
    """Return the weights of one part, under diffusers' or transformers' names.

    Args:
        file: a checkpoint, or a UNet or VAE alone; in original or diffusers layout.
        part: one of `PARTS`' values.

    Raises:
        ValueError: the part is not in the file, the file is known to be something else, or holds a tensor
            that belongs to no part.
    """
    refuse_other_models(file)
    is_checkpoint = sum(any(key.startswith(prefix) for key in file.shapes) for prefix in PARTS) > 1
    part_alone = part if part in _HOME and not is_checkpoint else None
    names, unknown = {}, []
    for key in sorted(file.shapes):
        if _CONSTANTS.fullmatch(key):
            continue
        prefix = next((prefix for prefix in PARTS if key.startswith(prefix)), "")
        owner = PARTS.get(prefix, part_alone)
        if owner is None:
            unknown.append(key)
        elif owner == part:
            names[key.removeprefix(prefix)] = key
    if unknown:
        raise ValueError(
            f"{file.path} is not an SDXL checkpoint this project knows: {unknown[0]!r} belongs to no part of "
            f"it ({len(unknown)} such tensors of {len(file.shapes)}). Choose a single-file SDXL checkpoint."
        )
    if not names or (part in _HOME and not _looks_like(part, file)):
        first = next(iter(sorted(file.shapes)), "none")
        raise ValueError(
            f"{file.path} holds no {part} of SDXL (first tensor: {first!r}). Choose a checkpoint, or for a "
            "part alone a UNet from models/diffusion_models or a VAE from models/vae."
        )
    return _renamed(part, names, file)


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


def refuse_other_models(file: WeightsFile) -> None:
    """Raise ValueError for a file of a kind that is known not to be SDXL's, and say which."""
    marked = (kind for mark, kind in _MARKS.items() if any(key.startswith(mark) for key in file.shapes))
    kind = next(marked, None) or _by_shape(file)
    if kind is not None:
        raise ValueError(
            f"{file.path} is {kind}; T2MV needs an SDXL model (epsilon prediction). Choose another file."
        )


def _by_shape(file: WeightsFile) -> str | None:
    """Tell the kind by the UNet's inputs, channels of the latent and width of the text: no name says it."""
    for prefix in ("", UNET_PREFIX):
        for conv_in in ("input_blocks.0.0.weight", "conv_in.weight"):
            shape = file.shapes.get(prefix + conv_in, ())
            if len(shape) == 4 and shape[1] in _INPUTS:
                return _INPUTS[shape[1]]
    has_size_input = any(".label_emb." in f".{key}" or "add_embedding." in key for key in file.shapes)
    widths = (s[1] for key, s in file.shapes.items() if key.endswith("attn2.to_k.weight") and len(s) == 2)
    for width in widths:
        if width == _REFINER_WIDTH:
            return "an SDXL refiner"
        if width in _CONTEXT_WIDTHS and not has_size_input:
            return _CONTEXT_WIDTHS[width]
    return None
