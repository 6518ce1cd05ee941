"""A custom node of the tests: ComfyUI learns of a small SDXL, and gets text features from a file.

With the small size in its list of models, ComfyUI's own loaders read small files as they read SDXL's.
"""

import comfy.supported_models
import comfy.utils
import folder_paths
import torch


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL's class for the widths of small_sdxl.py."""

    unet_config = {
        **comfy.supported_models.SDXL.unet_config,
        "model_channels": 64, "transformer_depth": [0, 0, 1, 1, 2, 2], "context_dim": 192,
        "adm_in_channels": 64 + 6 * 256,
    }  # fmt: skip


comfy.supported_models.models.append(SmallSDXL)


class TestConditions:
    """Positive and negative CONDITIONING from input/conditions.safetensors."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    FUNCTION, CATEGORY = "read", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def read(self):
        found = comfy.utils.load_torch_file(folder_paths.get_annotated_filepath("conditions.safetensors"))
        return tuple(
            [[found[f"{side}_embeds"], {"pooled_output": found[f"{side}_pooled"]}]]
            for side in ("prompt", "negative")
        )


class TestEncode:
    """Pictures to LATENT in place of a VAE: the mean colours of 8 x 8 pixels, and a channel of zeros."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION, CATEGORY = "encode", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"pixels": ("IMAGE",)}}

    def encode(self, pixels):
        colours = torch.nn.functional.avg_pool2d(10 * (pixels.movedim(-1, 1) - 0.5), 8)
        return ({"samples": torch.nn.functional.pad(colours, (0, 0, 0, 0, 0, 1))},)


NODE_CLASS_MAPPINGS = {"TestConditions": TestConditions, "TestEncode": TestEncode}
