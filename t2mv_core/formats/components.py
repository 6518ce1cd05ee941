"""The parts of a model from their files: UNet, VAE, text encoders, scheduler; from folders or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpoint import read_json
from .configs import INCOMPLETE, read_config
from .infer_config import SCHEDULER_CONFIG, text_config, unet_config, vae_config
from .key_mapping import diffusers_vae_name
from .kinds import refuse_other_models, refuse_quantised
from .shards import ShardedWeights, open_weights
from .single_file import part_of_file, strays_of_file
from .sources import ModelFiles
from .strict import Weight, WeightsFile, fill_module, without_weights
from .tokens import settle_tokens

W = TypeVar("W")
SHARED_KEY = "t2mv_rest"
"""Metadata key of a UNet file that holds only what differs from the model's own UNet (toybox teacher)."""
_INFER_CONFIG: dict[str, Callable[..., dict[str, Any]]] = {
    "unet": unet_config,
    "vae": vae_config,
    "text_encoder": partial(text_config, activation="quick_gelu"),
    "text_encoder_2": partial(text_config, activation="gelu"),
}


def load_parts(
    files: ModelFiles, dtype: torch.dtype, notices: list[str], vae_dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Load "unet", "vae", "text_encoder" and "text_encoder_2".

    Args:
        files: where they are.
        dtype: wanted precision.
        notices: takes sentences about what the files say or hold that has no effect.
        vae_dtype: that of the VAE; None is the same.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, of another kind, or does not fit.
    """

    @cache  # a checkpoint that holds all is opened once
    def open_place(place: Path) -> WeightsFile | ShardedWeights:
        return open_weights(place, notices)

    parts = {}
    for part in _INFER_CONFIG:
        place: Path = getattr(files, part)
        file = open_place(place)
        if isinstance(file, WeightsFile) and place.is_file():
            target, weights = "SDXL's architecture", part_of_file(file, part)
            config = _inferred_config(part, weights, place)
        else:
            (refuse_other_models if part == "unet" else refuse_quantised)(file)
            target, weights = "its config.json", _weights_of_folder(part, file)
            config = read_config(part, place / "config.json", notices)
        if part.startswith("text_encoder"):
            config = settle_tokens(config, part, place, notices)
        module = _create_part(part, config, place)
        if part == "unet" and SHARED_KEY in file.metadata and files.own_unet is not None:
            rest = open_place(files.own_unet).weights()
            weights = {**{key: rest[key] for key in module.state_dict().keys() & rest.keys()}, **weights}
        precision = vae_dtype if part == "vae" and vae_dtype is not None else dtype
        fill_module(module, _prefixed(module, weights), precision, target)
        parts[part] = module
    if files.text_encoder.is_file() and (strays := strays_of_file(WeightsFile(files.text_encoder))):
        notices.append(
            f"{files.text_encoder} holds {len(strays)} tensors that SDXL does not have, {strays[0]} for "
            "example; they are not read."
        )
    return parts


def has_guidance_input(place: Path) -> bool:
    """Return whether a UNet's file or folder says that guidance is an input of it, as only LCM's is."""
    if place.is_file():
        return any("time_embed" in key and "cond_proj" in key for key in WeightsFile(place).shapes)
    return read_json(place / "config.json", INCOMPLETE).get("time_cond_proj_dim") is not None


def read_scheduler_config(folder: Path | None) -> dict[str, Any]:
    """Read the scheduler's configuration in a folder; SDXL's when there is none."""
    return SCHEDULER_CONFIG if folder is None else read_json(folder / "scheduler_config.json", INCOMPLETE)


def _inferred_config(part: str, weights: Mapping[str, Weight], path: Path) -> dict[str, Any]:
    """Read the configuration of a part in a single file from the shapes of its weights."""
    try:
        return _INFER_CONFIG[part]({name: weight.shape for name, weight in weights.items()})
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} is not a {part} of SDXL: {error.args[0]!r} is missing or of another kind. "
            "Choose another file."
        ) from error


def _weights_of_folder(part: str, file: WeightsFile | ShardedWeights) -> dict[str, Weight]:
    """Return the weights under the names of today's diffusers, and of transformers without `text_model.`."""
    if part == "unet":
        return file.weights()
    if part == "vae":
        renamed = {key: diffusers_vae_name(key, num_levels=1) for key in file.shapes}
        return {
            renamed[key][0]: replace(weight, change=renamed[key][1]) for key, weight in file.weights().items()
        }
    return {
        key.removeprefix("text_model."): weight
        for key, weight in file.weights().items()
        if not key.endswith("embeddings.position_ids")  # a constant that older transformers saved
    }


def _create_part(part: str, config: dict[str, Any], place: Path) -> Any:
    """Create a part without weights; ValueError where its class refuses its configuration."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    encoder_class = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
    try:
        with without_weights():
            if part == "unet":
                return UNet2DConditionModel.from_config(config)
            if part == "vae":
                return AutoencoderKL.from_config(config)
            return encoder_class(CLIPTextConfig(**config))
    except Exception as error:  # diffusers and transformers check little: anything may fail
        raise ValueError(
            f"{place}: no {part} can be made from its configuration ({error}); fetch it again."
        ) from error


def _prefixed(module: nn.Module, weights: Mapping[str, W]) -> dict[str, W]:
    """Name weights as the module does: versions of transformers disagree about a `text_model.` in front."""
    names = module.state_dict().keys()
    return {f"text_model.{name}" if f"text_model.{name}" in names else name: x for name, x in weights.items()}
