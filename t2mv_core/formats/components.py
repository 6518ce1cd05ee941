"""The parts of a model from their files: UNet, VAE, text encoders, scheduler; from folders or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from .checkpoint import read_json
from .infer_config import SCHEDULER_CONFIG, Shapes, text_config, unet_config, vae_config
from .key_mapping import diffusers_vae_name
from .single_file import part_of_file
from .sources import weights_file
from .strict import Weight, WeightsFile, fill_module, without_weights

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

W = TypeVar("W")
SHARED_KEY = "t2mv_rest"
"""Metadata key of a UNet file that holds only what differs from the model's own UNet (toybox teacher)."""
_SDXL_FACTS = "SDXL's architecture"
_ACTIVATIONS = {"text_encoder": "quick_gelu", "text_encoder_2": "gelu"}


class PartsLoader:
    """Loads parts in one precision; a file that several parts share is opened once."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Load in `dtype`."""
        self._dtype = dtype
        self._open: Callable[[Path], WeightsFile] = cache(WeightsFile)

    def load_unet(self, place: Path, own: Path | None = None) -> UNet2DConditionModel:
        """The UNet of a folder or file.

        Args:
            place: folder with config.json, or file.
            own: folder of the model's own UNet, for a file marked `SHARED_KEY`.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, foreign, or does not fit.
        """
        from diffusers import UNet2DConditionModel

        if place.is_file():
            return self._from_file(place, "unet", alone=True)
        config = _read_config(place / "config.json")
        file = self._open(weights_file(place))
        weights = file.weights()
        with without_weights():
            unet = UNet2DConditionModel.from_config(config)
        if SHARED_KEY in file.metadata and own is not None:
            rest = self._open(weights_file(own))
            known = unet.state_dict().keys() & rest.shapes.keys()
            weights = {**{key: Weight(rest, key) for key in known}, **weights}
        fill_module(unet, weights, self._dtype, "its config.json")
        return unet

    def load_vae(self, place: Path) -> AutoencoderKL:
        """The VAE of a folder or file; see `load_unet` for what raises."""
        from diffusers import AutoencoderKL

        if place.is_file():
            return self._from_file(place, "vae", alone=True)
        config = _read_config(place / "config.json")
        file = self._open(weights_file(place))
        weights = {}
        for key in file.shapes:
            name, change = diffusers_vae_name(key, 1)  # older diffusers named the attention otherwise
            weights[name] = Weight(file, key, change)
        with without_weights():
            vae = AutoencoderKL.from_config(config)
        fill_module(vae, weights, self._dtype, "its config.json")
        return vae

    def load_text_encoders(
        self, first: Path, second: Path
    ) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
        """Both text encoders; see `load_unet` for what raises."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return (
            self._load_text_encoder(CLIPTextModel, first, "text_encoder"),
            self._load_text_encoder(CLIPTextModelWithProjection, second, "text_encoder_2"),
        )

    def _load_text_encoder(self, encoder_class: Any, place: Path, part: str) -> Any:
        from transformers import CLIPTextConfig

        if place.is_file():
            return self._from_file(place, part)
        config = _read_config(place / "config.json")
        file = self._open(weights_file(place))
        weights = {
            key.removeprefix("text_model."): Weight(file, key)
            for key in file.shapes
            if not key.endswith("embeddings.position_ids")  # a constant that older transformers saved
        }
        with without_weights():
            encoder = encoder_class(CLIPTextConfig(**config))
        fill_module(encoder, prefixed(encoder, weights), self._dtype, "its config.json")
        return encoder

    def _from_file(self, path: Path, part: str, alone: bool = False) -> Any:
        """A part whose configuration is read from the shapes of its weights."""
        file = self._open(path)
        weights = part_of_file(file, part, alone)
        try:
            module = _create_part(part, {name: weight.shape for name, weight in weights.items()})
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path} is not a {part} of SDXL: {error.args[0]!r} is missing or of another kind. "
                "Choose another file."
            ) from error
        fill_module(module, prefixed(module, weights), self._dtype, _SDXL_FACTS)
        return module


def _create_part(part: str, shapes: Shapes) -> Any:
    """A part of SDXL without weights (see `without_weights`), its sizes read from those of its weights.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        shapes: of its weights, under diffusers' names or transformers' without `text_model.`.

    Raises:
        KeyError, IndexError, ValueError: a weight that tells a size is missing, or another kind's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with without_weights():
        if part == "unet":
            return UNet2DConditionModel.from_config(unet_config(shapes))
        if part == "vae":
            return AutoencoderKL.from_config(vae_config(shapes))
        encoder_class = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
        return encoder_class(CLIPTextConfig(**text_config(shapes, _ACTIVATIONS[part])))


def read_scheduler_config(folder: Path | None) -> dict[str, Any]:
    """The scheduler's configuration in a folder; SDXL's when there is none."""
    return SCHEDULER_CONFIG if folder is None else _read_config(folder / "scheduler_config.json")


def prefixed(module: nn.Module, weights: Mapping[str, W]) -> dict[str, W]:
    """As the module has it: files and versions of transformers disagree about a `text_model.` in front."""
    own = module.state_dict().keys()
    return {
        next((n for n in (name, f"text_model.{name}") if n in own), name): x for name, x in weights.items()
    }


def _read_config(path: Path) -> dict[str, Any]:
    return read_json(path, "the model folder is incomplete, or the name is wrong.")
