"""SDXL's architecture as facts: what a file's weights say of their sizes, and what no weight says.

A diffusers folder brings its configurations; a single file does not. Widths, depths and counts are read from
shapes; the width of an attention head, the groups of a normalisation, the activation and the VAE's scale are
SDXL's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .tokens import CLIP_VOCABULARY

HEAD_WIDTH = 64
LATENT_PX = 128
"""Height and width of the latents SDXL's UNet was trained at."""
ADAPTER_LATENT_PX = 96
"""Height and width of the latents SDXL's MV-Adapter was trained at (768 px)."""
TIME_ID_WIDTH = 256
SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
Shapes = Mapping[str, tuple[int, ...]]


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return diffusers' configuration of an SDXL-like UNet whose weights have these shapes.

    Raises:
        KeyError: a weight that tells a size is missing.
    """
    num_levels = _count(shapes, "down_blocks.")
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(num_levels)]
    depths = [_count(shapes, f"down_blocks.{i}.attentions.0.transformer_blocks.") for i in range(num_levels)]
    first = next(i for i in (*range(num_levels), 0) if depths[i] or i == num_levels - 1)
    attention = f"down_blocks.{first}.attentions.0."
    guidance = shapes.get("time_embedding.cond_proj.weight")
    return {
        "sample_size": LATENT_PX,
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets."),
        "transformer_layers_per_block": [max(depth, 1) for depth in depths],
        # diffusers' word for the number of heads.
        "attention_head_dim": [max(width // HEAD_WIDTH, 1) for width in widths],
        "cross_attention_dim": shapes[attention + "transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[attention + "proj_in.weight"]) == 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID_WIDTH,
        "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
        "time_cond_proj_dim": guidance[1] if guidance else None,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return diffusers' configuration of SDXL's VAE, or one like it; see `unet_config`."""
    num_levels = _count(shapes, "encoder.down_blocks.")
    return {
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(num_levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 8 * LATENT_PX,
        "scaling_factor": 0.13025,
        "force_upcast": True,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
    }


def text_config(shapes: Shapes, activation: str) -> dict[str, Any]:
    """Return transformers' configuration of a text encoder of SDXL; see `unet_config`.

    Args:
        shapes: of its weights, without `text_model.` before the names.
        activation: "quick_gelu" for the first (OpenAI's), "gelu" for the second (open_clip's).
    """
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "num_hidden_layers": _count(shapes, "encoder.layers."),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": activation,
        "bos_token_id": min(vocabulary, CLIP_VOCABULARY) - 2,
        "eos_token_id": min(vocabulary, CLIP_VOCABULARY) - 1,
        "pad_token_id": 0,
    }


def _count(shapes: Shapes, prefix: str) -> int:
    """Count the different numbers behind a prefix."""
    matches = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in shapes)
    return len({match[1] for match in matches if match})
