"""The toybox's model at its shipped sizes: SDXL's own classes, only small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

IMAGE_PX = 64
VAE_SCALE_FACTOR = 4
VOCAB_SIZE = 4096
MAX_TOKENS = 24
TEXT_WIDTH = 96
GUIDANCE_EMBEDDING_DIM = 128


def create_vae() -> AutoencoderKL:
    """AutoencoderKL, factor 4, 4 latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_PX,
        mid_block_add_attention=False,
    )


def create_text_encoders() -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's pair of text encoders: the second one also gives the pooled, projected feature."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,  # the penultimate state is used, so two layers work for the tokens
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=VOCAB_SIZE - 2,
        eos_token_id=VOCAB_SIZE - 1,
        pad_token_id=0,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def create_unet(has_guidance_embedding: bool = False) -> UNet2DConditionModel:
    """SDXL's UNet, small, without multiview attention; with (LCM) or without (teacher) guidance embedding."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=IMAGE_PX // VAE_SCALE_FACTOR,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 3, 4),  # diffusers' name for the number of heads: 32 channels a head
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        # 8 to 16 channels a group, as SDXL has: a camera's residual is constant, and small groups remove it.
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 32,
        time_cond_proj_dim=GUIDANCE_EMBEDDING_DIM if has_guidance_embedding else None,
    )


def create_camera_encoder(unet: UNet2DConditionModel) -> T2IAdapter:
    """The T2I-Adapter that fits the small UNet."""
    from t2mv_core.unet.adapter import create_camera_encoder as create

    return create(unet, VAE_SCALE_FACTOR)
