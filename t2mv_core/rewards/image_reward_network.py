"""ImageReward's network: a BLIP that reads prompt and picture together, and an MLP that rates the pair.

    h = BLIP_text(c | BLIP_image(x)),   score = (MLP(h_first) - 0.16717…)/1.03333…

The image encoder is a ViT-L/16; the text encoder is a BERT whose layers attend to the picture's patches. The
MLP has no activations, as published.
Source: arXiv:2304.05977 and arXiv:2201.12086 (BLIP); docs/method.md, section 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the published validation set."""
MLP_WIDTHS = (1024, 128, 64, 16, 1)
TEXT_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "layer_norm_eps", "hidden_act",
)  # fmt: skip
"""What the network needs of med_config.json."""
UNUSED_WEIGHTS = (
    "blip.text_encoder.embeddings.position_ids",
    "blip.vision_proj.weight",
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
)
"""What the published file has beside the score's weights: a constant, and BLIP's contrastive heads."""

# Names in transformers' image encoder -> names in the published file; the text encoder's are the same.
_IMAGE_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("encoder.layers.", "blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    ("post_layernorm.", "norm."),
)


@dataclass(frozen=True)
class BlipSize:
    """Sizes of the BLIP inside; the defaults are the published ones (BLIP large).

    Attributes:
        text: sizes of the text encoder by BERT's names, TEXT_SIZES of med_config.json.
        image_px: side of the pictures.
        patch_px: side of a patch.
        vision_width: channels of a patch.
        vision_layers: layers of the image encoder.
        vision_heads: attention heads of the image encoder.
    """

    text: Mapping[str, Any]
    image_px: int = 224
    patch_px: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16


class ImageRewardNetwork(nn.Module):
    """BLIP's two encoders on transformers' classes, and the MLP; see the module docstring."""

    def __init__(self, size: BlipSize) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        self.image_encoder = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=size.vision_width,
                intermediate_size=4 * size.vision_width,
                num_hidden_layers=size.vision_layers,
                num_attention_heads=size.vision_heads,
                image_size=size.image_px,
                patch_size=size.patch_px,
                layer_norm_eps=1e-6,
                hidden_act="gelu",
            )
        )
        self.text_encoder = BlipTextModel(
            BlipTextConfig(
                **size.text,
                encoder_hidden_size=size.vision_width,
                is_decoder=True,  # transformers' word for "attends to the picture"; nothing is causal here
                # BERT's marks, which the defaults place beyond a small vocabulary.
                **{f"{mark}_token_id": 0 for mark in ("bos", "eos", "sep", "pad")},
            ),
            add_pooling_layer=False,
        )
        widths = (size.text["hidden_size"], *MLP_WIDTHS)
        linears = [nn.Linear(i, o) for i, o in zip(widths[:-1], widths[1:], strict=True)]
        # The published indices leave places for three dropouts, which do nothing when scoring.
        layers = [layer for linear in linears[:3] for layer in (linear, nn.Identity())]
        self.mlp = nn.Sequential(*layers, *linears[3:])

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Score normalised pictures [n, 3, px, px] against token ids and their mask [n, L]: [n], float32."""
        patches = self.image_encoder(pixel_values=pixels).last_hidden_state
        hidden = self.text_encoder(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=patches
        ).last_hidden_state
        return (self.mlp(hidden[:, 0].to(self.mlp[0].weight.dtype)).float()[:, 0] - MEAN) / STD


def published_name(name: str) -> str:
    """Return the name in ImageReward.pt of a weight of `ImageRewardNetwork`."""
    part, _, tail = name.partition(".")
    if part == "mlp":
        return f"mlp.layers.{tail}"
    if part == "text_encoder":
        return f"blip.text_encoder.{tail}"
    for ours, published in _IMAGE_NAMES:
        tail = tail.replace(ours, published)
    return f"blip.visual_encoder.{tail}"


def read_size(tensors: Mapping[str, Tensor], text: Mapping[str, Any], source: str) -> BlipSize:
    """Read the image encoder's sizes from its weights' shapes; heads have 64 channels, as in every BLIP.

    Raises:
        ValueError: the weights that tell the sizes are missing.
    """
    patches_name, positions_name = (
        f"blip.visual_encoder.{name}" for name in ("patch_embed.proj.weight", "pos_embed")
    )
    for name in (patches_name, positions_name):
        if name not in tensors:
            raise ValueError(f"Weight {name!r} is missing: {source} does not hold ImageReward's weights.")
    width, patch_px = int(tensors[patches_name].shape[0]), int(tensors[patches_name].shape[-1])
    side = round((tensors[positions_name].shape[1] - 1) ** 0.5)
    layers = {name.split(".")[3] for name in tensors if name.startswith("blip.visual_encoder.blocks.")}
    return BlipSize(text, side * patch_px, patch_px, width, len(layers), max(1, width // 64))
