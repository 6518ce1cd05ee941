"""A custom node of the tests: SDXL's real classes, tiny, with random weights, and two conditions for it."""

import comfy.model_patcher
import comfy.supported_models
import torch

TEXT_WIDTH, POOLED_WIDTH = 32, 16
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1, "context_dim": TEXT_WIDTH, "num_head_channels": 16, "dtype": torch.float32,
    "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
    "num_classes": "sequential", "adm_in_channels": POOLED_WIDTH + 6 * 256, "use_temporal_attention": False,
}  # fmt: skip


class TestTinySDXL:
    """MODEL, positive and negative CONDITIONING."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")
    FUNCTION, CATEGORY = "create", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"seed": ("INT", {"default": 0})}}

    def create(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator)

        model = comfy.supported_models.SDXL(dict(UNET)).get_model({}, "", torch.device("cpu"))
        for parameter in model.diffusion_model.parameters():
            # Any scale will do that lets latents, time and text be seen in the output.
            scale = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.data = scale * draw(*parameter.shape)
        patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
        conditions = [[[draw(1, 4, TEXT_WIDTH), {"pooled_output": draw(1, POOLED_WIDTH)}]] for _ in range(2)]
        return (patcher, *conditions)


NODE_CLASS_MAPPINGS = {"TestTinySDXL": TestTinySDXL}
