"""What the configuration files of a diffusers folder say: followed, without effect, or refused by name.

Each part's class knows its keys. Three kinds are left: keys whose value needs more than that class, another
input of the UNet say; keys that change nothing here; and keys that are not known, which the caller hears of.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import read_json
from .kinds import kind_of_pipeline, not_sdxl, quantised

INCOMPLETE = "the model folder is incomplete, or the name is wrong."
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_SDXL_VAE_WIDTHS, _SD1_SCALING = [128, 256, 512, 512], 0.18215
# Part -> key -> values that are followed; a missing key and null are always.
_FOLLOWED: dict[str, dict[str, tuple[Any, ...]]] = {
    "unet": {
        "_class_name": ("UNet2DConditionModel",),
        "addition_embed_type": ("text_time",),
        "attention_type": ("default",),
        "class_embed_type": (),
        "num_class_embeds": (),
        "encoder_hid_dim": (),
        "encoder_hid_dim_type": (),
        "dual_cross_attention": (False,),
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (False,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "cross_attention_norm": (),
    },
    "vae": {
        "_class_name": ("AutoencoderKL",),
        "latents_mean": (),
        "latents_std": (),
        "shift_factor": (0.0,),
    },
    "text_encoder": {"model_type": ("clip_text_model",)},
    "text_encoder_2": {"model_type": ("clip_text_model",)},
}
_REMARKS = {
    "latents_mean": "it is an EDM model's (Playground 2.5)",
    "latents_std": "it is an EDM model's (Playground 2.5)",
    "encoder_hid_dim_type": "it belongs to an IP-Adapter or Kolors",
}
# Keys that say nothing of the pictures: written by training's averaging, or by transformers of all models.
_HARMLESS = {
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
    "architectures", "torch_dtype", "dtype", "transformers_version", "model_type", "dropout", "name_or_path",
    "gradient_checkpointing", "is_decoder", "use_cache", "tie_word_embeddings", "return_dict",
    "output_attentions", "output_hidden_states", "id2label", "label2id", "num_labels", "problem_type",
    "chunk_size_feed_forward",
}  # fmt: skip
_INDEX_PARTS = {
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
    "feature_extractor", "image_encoder", "safety_checker", "requires_safety_checker", "add_watermarker",
    "force_zeros_for_empty_prompt", "requires_aesthetics_score",
}  # fmt: skip


def read_config(part: str, path: Path, notices: list[str]) -> dict[str, Any]:
    """Read the configuration of a part.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        path: the file.
        notices: takes a sentence about keys that are not known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or asks for what this project does not do.
    """
    config = read_json(path, INCOMPLETE)
    if method := config.get("quantization_config"):
        how = method.get("quant_method", "another way") if isinstance(method, Mapping) else str(method)
        raise ValueError(quantised(path.parent, how))
    for key, followed in _FOLLOWED[part].items():
        if not _is_followed(config.get(key), followed):
            raise ValueError(_refusal(part, path, key, config[key], followed))
    if part == "unet":
        blocks = {*(config.get("down_block_types") or ()), *(config.get("up_block_types") or ())}
        if other := sorted(map(str, blocks - _BLOCKS)):
            raise ValueError(not_sdxl(path.parent, f"a UNet of other blocks ({other[0]})"))
    has_sdxl_widths = part == "vae" and config.get("block_out_channels") == _SDXL_VAE_WIDTHS
    # The VAE of SD 1.x has the same widths; no scaling factor means 0.18215 in diffusers.
    if has_sdxl_widths and config.get("scaling_factor", _SD1_SCALING) == _SD1_SCALING:
        raise ValueError(not_sdxl(path.parent, "the VAE of Stable Diffusion 1.x or 2.x"))
    known = _HARMLESS | _keys_of(part)
    strange = [key for key, value in config.items() if key not in known and key[:1] != "_" and value]
    if strange:
        notices.append(f"{path}: T2MV does not know {', '.join(strange)}, and ignores it.")
    return config


def read_index(folder: Path, notices: list[str]) -> bool:
    """Check the model_index.json of a folder; one without is judged by its parts alone.

    Returns:
        Whether an empty negative prompt is the zero condition, as in SDXL.

    Raises:
        ValueError: it is damaged, or another kind of model.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        return True
    index = read_json(path, INCOMPLETE)
    class_name = str(index.get("_class_name", ""))
    has_parts = all((folder / part).is_dir() for part in ("unet", "text_encoder", "text_encoder_2", "vae"))
    if class_name and not class_name.startswith("StableDiffusionXL") and not has_parts:
        unet = folder / "unet" / "config.json"
        width = read_json(unet, INCOMPLETE).get("cross_attention_dim") if unet.is_file() else None
        raise ValueError(not_sdxl(folder, kind_of_pipeline(class_name, width)))
    if index.get("requires_aesthetics_score"):
        raise ValueError(not_sdxl(folder, "an SDXL refiner"))
    parts = {key: value for key, value in index.items() if key[:1] != "_" and key not in _INDEX_PARTS}
    if strange := [key for key, value in parts.items() if value not in (None, False, [None, None])]:
        notices.append(f"{path} names {', '.join(strange)}; T2MV ignores it.")
    return index.get("force_zeros_for_empty_prompt") is not False


def _is_followed(value: Any, followed: tuple[Any, ...]) -> bool:
    values = value if isinstance(value, list) and value else [value]  # a list has a value for each level
    return all(each is None or each in followed for each in values)


def _refusal(part: str, path: Path, key: str, value: Any, followed: tuple[Any, ...]) -> str:
    if key in ("_class_name", "model_type"):
        return not_sdxl(path.parent, f"no {part} of SDXL ({key} {value!r})")
    remark = f"; {_REMARKS[key]}" if key in _REMARKS else ""
    shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
    return f"{path}: {key}={shown} is not supported{remark}. T2MV needs an SDXL model" + (
        f" with {key}={followed[0]!r}." if followed else f" without {key}."
    )


def _keys_of(part: str) -> set[str]:
    """Return the keys that the class of a part takes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    if part in ("unet", "vae"):
        module = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return {*inspect.signature(module.__init__).parameters}
    return {*CLIPTextConfig().to_dict()}
