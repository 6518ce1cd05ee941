"""What kind of model a file holds, when it is none that this project can use: refused by its name."""

from __future__ import annotations

from .strict import WeightsFile

UNET_PREFIX = "model.diffusion_model."
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
