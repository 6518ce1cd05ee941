"""Any model of open_clip as a CLIP score: its name and a checkpoint, nothing from the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ..formats.checkpoint import read_checkpoint
from ..formats.strict import load_strictly, without_weights
from .clip_score import ClipScore, Preprocessing
from .preprocess import OPENAI_MEAN, OPENAI_STD, Fit
from .prompts import Tokenize

_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold beside the weights."""
_FITS: dict[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "stretch"}
_WEIGHTS_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")


def load_open_clip_score(
    model_name: str,
    path: Path,
    name: str = "clip_score",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    fit: Fit | None = None,
) -> ClipScore:
    """Load a CLIP score by the name of an open_clip architecture and a checkpoint of it.

    Args:
        model_name: such as "ViT-L-14" or "ViT-B-32-quickgelu", see `open_clip.list_models()`.
        path: safetensors, or a state dict by torch.save.
        name: the name under which the reward is reported.
        device: where to.
        dtype: precision of the network; None: as in the file.
        fit: how a picture that is not square becomes square; None: as the architecture's configuration says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown architecture or one whose tokenizer is on the Hub, or the file is not of it;
            the first wrong key or shape is named.
    """
    import open_clip

    # Not get_model_config alone: it asks the Hub about names that begin with "hf-hub:".
    config = open_clip.get_model_config(model_name) if model_name in open_clip.list_models() else None
    if config is None:
        raise ValueError(
            f"open_clip has no architecture {model_name!r}; take a name of open_clip.list_models(), such as "
            "'ViT-L-14'."
        )
    tokenize = _tokenizer(model_name, config)
    tensors = {key: x for key, x in read_checkpoint(path).items() if key not in _OPENAI_CONSTANTS}
    with without_weights():
        model = _build(model_name, config)
    load_strictly(model, tensors, f"{path} (read as {model_name})")
    return ClipScore(model, tokenize, _preprocessing(config, model, fit), name).to(device, dtype)


def find_open_clip_checkpoint(place: Path) -> tuple[str, Path]:
    """The architecture and the file behind a path: the file's name says which architecture it is.

    Args:
        place: a file `<architecture>.<ending>` or `<architecture>__<anything>.<ending>`, or a folder with one
            such file.

    Raises:
        ValueError: a folder with none or several.
    """
    files = [place]
    if place.is_dir():
        files = sorted(path for path in place.iterdir() if path.suffix in _WEIGHTS_ENDINGS)
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "nothing"
        raise ValueError(
            f"{place} must hold one checkpoint, named after its open_clip architecture such as "
            f"ViT-L-14.safetensors; it holds {found}. Name one file in reward.paths."
        )
    return re.split(r"__", files[0].stem)[0], files[0]


def _build(model_name: str, config: dict[str, Any]) -> Any:
    """The architecture alone; open_clip's own factory moves it to a device, for which it needs weights."""
    from open_clip.model import CLIP, CustomTextCLIP

    values = dict(config)
    if "multimodal_cfg" in values:
        raise ValueError(f"{model_name} is a captioning model, not a CLIP; choose another architecture.")
    is_custom = values.pop("custom_text", False)
    if "timm_model_name" in values["vision_cfg"]:
        values["vision_cfg"] = {**values["vision_cfg"], "timm_model_pretrained": False}
    return (CustomTextCLIP if is_custom else CLIP)(**values)


def _tokenizer(model_name: str, config: dict[str, Any]) -> Tokenize:
    from ..text import clip_tokenizer

    text = config.get("text_cfg", {})
    foreign = text.get("hf_tokenizer_name") or text.get("hf_model_name") or text.get("tokenizer_kwargs")
    if foreign:
        raise ValueError(
            f"The tokenizer of {model_name} ({foreign}) is not CLIP's own and not on this machine; choose an "
            "architecture with CLIP's tokenizer, such as 'ViT-L-14'."
        )
    return clip_tokenizer(int(text.get("vocab_size", 49408)))


def _preprocessing(config: dict[str, Any], model: Any, fit: Fit | None) -> Preprocessing:
    visual, vision = model.visual, config["vision_cfg"]
    image_px = _side(visual.image_size)
    patch_px = _side(vision.get("patch_size", 32))  # convolutional towers: as many tokens at their end
    given: dict[str, Any] = getattr(visual, "preprocess_cfg", None) or {}
    width = vision.get("width", 768)
    return Preprocessing(
        image_px,
        (image_px // patch_px) ** 2 + 1,
        width if isinstance(width, int) else 768,
        tuple(given.get("mean", OPENAI_MEAN)),
        tuple(given.get("std", OPENAI_STD)),
        fit or _FITS.get(given.get("resize_mode", "shortest"), "crop"),
        given.get("interpolation", "bicubic"),
    )


def _side(size: int | tuple[int, int]) -> int:
    return int(size if isinstance(size, int) else size[0])
