"""Any model of open_clip as a CLIP score: its name and a checkpoint, nothing from the network.

HPSv2 and HPSv2.1 are two of them: a ViT-H-14 fine-tuned on rankings of pictures by people, whose pictures get
black bars where they are not square. Scores of the two versions cannot be compared.
Source: arXiv:2306.09341; `xswu/HPSv2`, each file a `state_dict` in open_clip's names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..formats.checkpoint import read_checkpoint, read_json
from ..formats.safetensors_io import ENDINGS
from ..formats.strict import load_strictly, without_weights
from .clip_score import ClipScore
from .inputs import OPENAI_MEAN, OPENAI_STD, Fit, Preprocessing, Tokenize

_OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's files hold beside the weights."""
_FITS: dict[str, Fit] = {"shortest": "crop", "longest": "pad", "squash": "stretch"}
_WEIGHTS_ENDINGS = (*ENDINGS, ".pt", ".pth", ".bin")
logger = logging.getLogger(__name__)


def load_open_clip_score(
    place: Path, name: str = "clip_score", architecture: str | None = None, fit: Fit | None = None
) -> ClipScore:
    """Load a CLIP score from a checkpoint of an open_clip architecture.

    Args:
        place: safetensors, or a state dict by torch.save; or a folder with one such file.
        name: the name under which the reward is reported.
        architecture: such as "ViT-L-14", see `open_clip.list_models()`; None: an open_clip_config.json beside
            the file says it, or the file's name up to a double underscore.
        fit: how a picture that is not square becomes square; None: as the architecture's configuration says.

    Raises:
        FileNotFoundError, ValueError: a folder with no checkpoint or several, an unknown architecture, one
            whose tokenizer is on the Hub, or the file is not of it.
    """
    path = _find_checkpoint(place)
    config_file = path.with_name("open_clip_config.json")
    stated = read_json(config_file, "") if architecture is None and config_file.is_file() else {}
    named = architecture or path.stem.split("__")[0]
    config = stated.get("model_cfg") or _config_of(named)
    tokenize, tensors = _tokenizer(named, config), read_checkpoint(path)
    values, notices = dict(stated.get("preprocess_cfg") or {}), list[str]()
    if architecture is None and not stated:
        values = _published_values(path, config, tensors, notices)
        config = {**config, "quick_gelu": config.get("quick_gelu", False) or values.get("quick_gelu", False)}
    with without_weights():
        model = _build(named, config)
    weights = {key: x for key, x in tensors.items() if key not in _OPENAI_CONSTANTS}
    load_strictly(model, weights, f"{path} (read as {named})")
    for notice in notices:
        logger.warning("%s", notice)
    return ClipScore(model, tokenize, _preprocessing(config, model, values, fit), name, tuple(notices))


def _config_of(architecture: str) -> dict[str, Any]:
    import open_clip

    # Not get_model_config alone: it asks the Hub about names that begin with "hf-hub:".
    config = open_clip.get_model_config(architecture) if architecture in open_clip.list_models() else None
    if config is None:
        raise ValueError(
            f"open_clip has no architecture {architecture!r}; take a name of open_clip.list_models(), such "
            "as 'ViT-L-14'."
        )
    return dict(config)


def _published_values(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], notices: list[str]
) -> dict[str, Any]:
    """Return what weights do not show and files only hint at: QuickGELU, mean and deviation of the pixels.

    A name such as `ViT-L-14__openai` is that of open_clip's published weights, which has a list of these
    facts; OpenAI's own files hold constants beside the weights. Where neither is there, and open_clip has the
    architecture with GELU and with QuickGELU, GELU is taken with a warning.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, *tag = path.stem.split("__")
    if published := get_pretrained_cfg(architecture, tag[0]) if tag else None:
        return {key: value for key, value in published.items() if value is not None}
    if any(key in tensors for key in _OPENAI_CONSTANTS):
        return {"quick_gelu": True}
    twin = f"{architecture}-quickgelu"
    if not config.get("quick_gelu") and twin in open_clip.list_models():
        notices.append(
            f"{path} does not say whether it was trained with GELU or QuickGELU; GELU is taken, as in "
            f"open_clip's {architecture}. Rename it to {twin}{path.suffix} if the weights are OpenAI's, "
            "DFN's or MetaCLIP's."
        )
    return {}


def _find_checkpoint(place: Path) -> Path:
    if not place.is_dir():
        return place
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in _WEIGHTS_ENDINGS)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "nothing"
        raise ValueError(
            f"{place} must hold one checkpoint, named after its open_clip architecture such as "
            f"ViT-L-14-quickgelu.safetensors; it holds {names}. Name one file in reward.paths."
        )
    return files[0]


def _build(architecture: str, config: dict[str, Any]) -> Any:
    """Create the architecture alone; open_clip's factory moves it to a device, for which it needs weights."""
    from open_clip.model import CLIP, CustomTextCLIP

    values = dict(config)
    if "multimodal_cfg" in values:
        raise ValueError(f"{architecture} is a captioning model, not a CLIP; choose another architecture.")
    is_custom = values.pop("custom_text", False)
    if "timm_model_name" in values["vision_cfg"]:
        values["vision_cfg"] = {**values["vision_cfg"], "timm_model_pretrained": False}
    return (CustomTextCLIP if is_custom else CLIP)(**values)


def _tokenizer(architecture: str, config: dict[str, Any]) -> Tokenize:
    from ..text import clip_tokenizer

    text = config.get("text_cfg", {})
    other_tokenizer = (
        text.get("hf_tokenizer_name") or text.get("hf_model_name") or text.get("tokenizer_kwargs")
    )
    if other_tokenizer:
        raise ValueError(
            f"The tokenizer of {architecture} ({other_tokenizer}) is not CLIP's own and not on this machine; "
            "choose an architecture with CLIP's tokenizer, such as 'ViT-L-14'."
        )
    return clip_tokenizer(int(text.get("vocab_size", 49408)))


def _preprocessing(
    config: dict[str, Any], model: Any, values: Mapping[str, Any], fit: Fit | None
) -> Preprocessing:
    visual, vision = model.visual, config["vision_cfg"]
    image_px = _side(visual.image_size)
    patch_px = _side(vision.get("patch_size", 32))  # convolutional towers: as many tokens at their end
    values = {**(getattr(visual, "preprocess_cfg", None) or {}), **values}
    width = vision.get("width", 768)
    return Preprocessing(
        image_px,
        (image_px // patch_px) ** 2 + 1,
        width if isinstance(width, int) else 768,
        tuple(values.get("mean", OPENAI_MEAN)),
        tuple(values.get("std", OPENAI_STD)),
        fit or _FITS.get(values.get("resize_mode", "shortest"), "crop"),
        values.get("interpolation", "bicubic"),
    )


def _side(size: int | tuple[int, int]) -> int:
    return int(size if isinstance(size, int) else size[0])
