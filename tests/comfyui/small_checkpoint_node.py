"""A custom node of the tests: MODEL, CLIP and VAE of ComfyUI's SDXL classes from a file of small widths.

ComfyUI knows SDXL by its real widths only, so its own loader does not take such a file.
"""

import comfy.model_detection
import comfy.model_management
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

TEXT = {  # width, layers, inner width
    "clip_l": (64, 3, 96),
    "clip_g": (128, 3, 160),
}
VAE_WIDTH, VAE_FACTORS = 32, [1, 2]


def lend(checkpoint, dtype=torch.float32, text_dtype=None, vae_dtype=None):
    """MODEL, CLIP and VAE of a checkpoint in the original layout."""
    config, weights = comfy.supported_models.SDXL, dict(checkpoint)
    cut = lambda prefix: {k[len(prefix) :]: x for k, x in weights.items() if k.startswith(prefix)}  # noqa: E731
    unet = cut("model.diffusion_model.")
    model_config = config(comfy.model_detection.detect_unet_config(unet, ""))
    model_config.set_inference_dtype(dtype, None)
    model = model_config.get_model(unet, "", device="cpu")
    model.load_model_weights(dict(unet), "")
    patcher = ModelPatcher(model, comfy.model_management.get_torch_device(), torch.device("cpu"))

    options = {"dtype": text_dtype or dtype, **{f"{name}_model_config": {
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner,
        "num_attention_heads": width // 64,
    } for name, (width, layers, inner) in TEXT.items()}}  # fmt: skip
    target = comfy.supported_models_base.ClipTarget(
        comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
    )
    clip = comfy.sd.CLIP(target, model_options=options)
    clip.load_sd(model_config.process_clip_state_dict(dict(weights)), full_model=True)

    blocks = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3,
              "ch": VAE_WIDTH, "ch_mult": VAE_FACTORS, "num_res_blocks": 1, "attn_resolutions": [],
              "dropout": 0.0}  # fmt: skip
    vae = comfy.sd.VAE(
        cut("first_stage_model."),
        dtype=vae_dtype or dtype,
        config={"params": {"ddconfig": blocks, "embed_dim": 4}},
    )
    return patcher, clip, vae


class SmallCheckpoint:
    """The checkpoint small.safetensors."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "make", "tests"

    def make(self):
        return lend(
            comfy.utils.load_torch_file(folder_paths.get_full_path("checkpoints", "small.safetensors"))
        )


NODE_CLASS_MAPPINGS = {"SmallCheckpoint": SmallCheckpoint}
