"""A custom node of the tests: ComfyUI learns of a small SDXL, and gets text features from a file.

With the small size in its list of models, ComfyUI's own loaders read small files as they read SDXL's.
"""

import comfy.supported_models
import comfy.utils
import folder_paths


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


NODE_CLASS_MAPPINGS = {"TestConditions": TestConditions}
