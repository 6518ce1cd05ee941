"""What a model is, by names, shapes and types of its weights: one recogniser for files and folders.

Other models are refused by the name people know them by, and so are models of SDXL's shape that this project
has no equations for: other prediction types, quantised layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Protocol

UNET_PREFIX = "model.diffusion_model."
TEXT_PREFIXES = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")

_EDM = "an EDM model (Playground 2.5)"
_LORA = "a LoRA (it goes into models/loras and the Load LoRA node)"
# Beginning of a name that a model of SDXL's shape has only if it was trained in another way.
_TRAINED_OTHERWISE = {
    "v_pred": "a v-prediction model",
    "edm_vpred.": "a v-prediction (EDM) model",
    "edm_mean": _EDM,
    "edm_std": _EDM,
    "ztsnr": "a model of zero terminal SNR",
    "encoder_hid_proj.": "a UNet with an input of its own (Kolors, IP-Adapter)",
}
# Beginning of a name that tells another kind; beside a whole SDXL it is a stray that nobody reads.
_FOREIGN = {
    "conditioner.embedders.0.model.": "an SDXL refiner",
    "cond_stage_model.model.": "a Stable Diffusion 2.x model",
    "cond_stage_model.": "a Stable Diffusion 1.x model",
    "double_blocks.": "a Flux model",
    "single_transformer_blocks.": "a Flux model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "pos_embed.proj.": "a transformer such as Stable Diffusion 3 or PixArt",
    "adaln_single.": "a PixArt model",
    "control_model.": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "transformer_blocks.": "a transformer such as Stable Diffusion 3 or Qwen-Image",
    "emb_params": "a textual inversion (it goes into models/embeddings)",
}
# Part of a name that tells the same.
_FOREIGN_INSIDE = {
    re.compile(r"(^|[._])(lora(_\w+)?|hada_w[12]_\w+|lokr_w[12](_\w+)?|oft_blocks)([._]|$)"): _LORA,
    re.compile(r"\.to_q_mv\."): "an MV-Adapter (it goes into models/mvadapter)",
}
_CONTEXT_WIDTHS = {768: "a Stable Diffusion 1.x model", 1024: "a Stable Diffusion 2.x model"}
_REFINER_WIDTH = 1280
_INPUTS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)"}
# End of a name -> who wrote the quantised layer it belongs to.
_QUANTISED = {
    ".comfy_quant": "by ComfyUI",
    "quant_state.bitsandbytes__nf4": "by bitsandbytes, nf4",
    "quant_state.bitsandbytes__fp4": "by bitsandbytes, fp4",
    ".quant_map": "by bitsandbytes",
    ".absmax": "by bitsandbytes",
    ".SCB": "by bitsandbytes, int8",
    ".qweight": "GPTQ, AWQ or SVDQuant",
    ".wscales": "SVDQuant",
    ".weight._data": "by quanto",
    "_qdata": "by torchao",
    ":qdata": "by torchao",
    "scaled_fp8": "scaled fp8",
    ".weight_scale": "scaled fp8 or fp4",
    ".scale_weight": "scaled fp8",
    ".scale_input": "scaled fp8",
    ".input_scale": "scaled fp8 or fp4",
}
_QUANTISED_HEADERS = ("_quantization_metadata", "quantization_config")
_WHOLE_NUMBERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "F4", "F8_E8M0")
_PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")
_PIPELINES = {  # beginning of model_index.json's class -> what it draws with
    "Flux": "a Flux model",
    "StableDiffusion3": "a Stable Diffusion 3 model",
    "StableDiffusion": "a Stable Diffusion 1.x or 2.x model",
    "LatentConsistencyModel": "a Stable Diffusion 1.x model",
    "PixArt": "a PixArt model",
    "Kolors": "a Kolors model",
}


class Facts(Protocol):
    """What is known of weights before one is read."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def refuse_other_models(file: Facts) -> None:
    """Raise ValueError for weights of a kind that is known not to be SDXL's, and say which."""
    refuse_quantised(file)
    kind = _kind_by_name(file.shapes) or _kind_by_shape(file.shapes) or _kind_by_header(file.metadata)
    if kind is not None:
        raise ValueError(not_sdxl(file.path, kind))


def refuse_quantised(file: Facts) -> None:
    """Raise ValueError for weights packed in fewer bits, whose scales this project does not read."""
    by_name = (how for end, how in _QUANTISED.items() if any(key.endswith(end) for key in file.shapes))
    by_header = (f"{key} in its header" for key in _QUANTISED_HEADERS if key in file.metadata)
    by_type = (
        f"{key!r} has the type {dtype}"
        for key, dtype in file.dtypes.items()
        if dtype in _WHOLE_NUMBERS and key.endswith(".weight")
    )
    if how := next(chain(by_name, by_header, by_type), None):
        raise ValueError(quantised(file.path, how))


def quantised(path: Path, how: str) -> str:
    """Return the sentence that refuses quantised weights."""
    return (
        f"{path} is quantised ({how}); T2MV reads weights in float32, float16, bfloat16, or float8 without "
        "scales. Choose a file that is not quantised."
    )


def not_sdxl(path: Path, kind: str) -> str:
    """Return the sentence that refuses another kind of model."""
    return f"{path} is {kind}; T2MV needs an SDXL model (epsilon prediction). Choose another one."


def kind_of_pipeline(class_name: str, text_width: int | None) -> str:
    """Return what a folder is whose model_index.json names this class, as part of a sentence.

    Args:
        class_name: of the pipeline.
        text_width: cross_attention_dim of its UNet, if it has one.
    """
    known = (kind for start, kind in _PIPELINES.items() if class_name.startswith(start))
    kind = next(known, f"a model of another kind ({class_name})")
    return _CONTEXT_WIDTHS.get(text_width or 0, kind) if kind == _PIPELINES["StableDiffusion"] else kind


def is_whole_sdxl(names: Iterable[str]) -> bool:
    """Return whether a single file has SDXL's UNet and both its text encoders, whatever else is in it."""
    wanted = {*TEXT_PREFIXES, f"{UNET_PREFIX}label_emb."}
    for name in names:
        wanted -= {prefix for prefix in wanted if name.startswith(prefix)}
    return not wanted


def _kind_by_name(names: Collection[str]) -> str | None:
    is_whole, bare = is_whole_sdxl(names), [name.removeprefix(UNET_PREFIX) for name in names]
    marks = _TRAINED_OTHERWISE if is_whole else {**_TRAINED_OTHERWISE, **_FOREIGN}
    by_start = (kind for mark, kind in marks.items() if any(name.startswith(mark) for name in bare))
    inside = {} if is_whole else _FOREIGN_INSIDE
    by_part = (kind for mark, kind in inside.items() if any(map(mark.search, names)))
    return next(chain(by_start, by_part), None)


def _kind_by_shape(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Tell the kind by the UNet's inputs, channels of the latent and width of the text: no name says it."""
    for prefix in ("", UNET_PREFIX):
        for conv_in in ("input_blocks.0.0.weight", "conv_in.weight"):
            shape = shapes.get(prefix + conv_in, ())
            if len(shape) == 4 and shape[1] in _INPUTS:
                return _INPUTS[shape[1]]
    has_size_input = any(".label_emb." in f".{key}" or "add_embedding." in key for key in shapes)
    widths = (s[1] for key, s in shapes.items() if key.endswith("attn2.to_k.weight") and len(s) == 2)
    for width in widths:
        if width == _REFINER_WIDTH:
            return "an SDXL refiner"
        if width in _CONTEXT_WIDTHS and not has_size_input:
            return _CONTEXT_WIDTHS[width]
    return None


def _kind_by_header(metadata: Mapping[str, str]) -> str | None:
    """Tell v-prediction by the header that ComfyUI and kohya's trainer write."""
    predictions = [metadata[key] for key in _PREDICTION_KEYS if metadata.get(key)]
    other = next((value for value in predictions if not re.match(r"eps", value, re.IGNORECASE)), None)
    return None if other is None else f"a model of another prediction type ({other}, says its header)"
