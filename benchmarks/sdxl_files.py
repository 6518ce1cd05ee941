"""SDXL's weights files with random values, in every published layout: for benchmarks and tests of loading.

The names of the original layout are enumerated here block by block, from diffusers' side; the core renames
in the other direction, by rules. So a mistake in one of the two shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """What differs between SDXL and a small model of its kind.

    Attributes:
        widths: of the UNet's levels.
        depths: transformer blocks per attention and level; 0 is a level without attention.
        text: (width, layers, inner width, vocabulary) of both text encoders.
        pooled: width of the pooled text feature.
        vae_widths: of the VAE's levels.
        vae_layers: resnets per level of its encoder.
        tokens: longest text.
        guidance: width of the guidance embedding (LCM), None without.
    """

    widths: tuple[int, ...] = (320, 640, 1280)
    depths: tuple[int, ...] = (0, 2, 10)
    text: tuple[tuple[int, int, int, int], ...] = ((768, 12, 3072, 49408), (1280, 32, 5120, 49408))
    pooled: int = 1280
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    tokens: int = 77
    guidance: int | None = None


FULL = Size()
TINY = Size(
    widths=(32, 64, 64), depths=(0, 1, 2), text=((64, 2, 96, 600), (128, 3, 160, 600)), pooled=64,
    vae_widths=(32, 64), vae_layers=1, tokens=12,
)  # fmt: skip


def unet_settings(size: Size) -> dict[str, Any]:
    """SDXL's published unet/config.json, with the widths and depths of a size."""
    return {
        "sample_size": 128,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in size.depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in size.depths[::-1]],
        "block_out_channels": list(size.widths),
        "transformer_layers_per_block": [d or 1 for d in size.depths],
        "attention_head_dim": [max(w // 64, 1) for w in size.widths],
        "cross_attention_dim": sum(encoder[0] for encoder in size.text),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": size.pooled + 6 * 256,
        "time_cond_proj_dim": size.guidance,
    }


def vae_settings(size: Size) -> dict[str, Any]:
    """SDXL's published vae/config.json, likewise."""
    return {
        "block_out_channels": list(size.vae_widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(size.vae_widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(size.vae_widths),
        "layers_per_block": size.vae_layers,
        "latent_channels": 4,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


def text_settings(size: Size, index: int) -> dict[str, Any]:
    """SDXL's published text_encoder/config.json (0) and text_encoder_2/config.json (1), likewise."""
    width, layers, inner, vocabulary = size.text[index]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "projection_dim": size.pooled if index else width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "max_position_embeddings": size.tokens,
        "hidden_act": "gelu" if index else "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def create_modules(size: Size, is_empty: bool = False) -> dict[str, Any]:
    """The four parts as modules, newly initialised or without memory."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def create() -> dict[str, Any]:
        return {
            "unet": UNet2DConditionModel(**unet_settings(size)),
            "vae": AutoencoderKL(**vae_settings(size)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_settings(size, 0))),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(size, 1))),
        }

    if not is_empty:
        return create()
    with init_empty_weights(include_buffers=False):
        return create()


def original_unet(state: Mapping[str, Tensor], size: Size) -> State:
    """A UNet's weights under their original names, without prefix."""
    return {_renamed(name, list(_unet_places(size))): tensor for name, tensor in state.items()}


def original_vae(state: Mapping[str, Tensor], size: Size) -> State:
    """A VAE's weights under their original names, without prefix; its attention as 1x1 convolutions."""
    places = list(_vae_places(size))
    renamed = {_renamed(name, places): tensor for name, tensor in state.items()}
    return {
        name: tensor[:, :, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in renamed.items()
    }


def original_text(state: Mapping[str, Tensor], index: int) -> State:
    """A text encoder's weights as in a checkpoint: transformers' names (0), open_clip's (1)."""
    bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    if index == 0:
        return {f"text_model.{name}": tensor for name, tensor in bare.items()}
    out = {
        "token_embedding.weight": bare["embeddings.token_embedding.weight"],
        "positional_embedding": bare["embeddings.position_embedding.weight"],
        "ln_final.weight": bare["final_layer_norm.weight"],
        "ln_final.bias": bare["final_layer_norm.bias"],
        "text_projection": bare["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6052),
    }
    for layer in range(1 + max(int(name.split(".")[2]) for name in bare if name.startswith("encoder."))):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            joint = [bare[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            out[f"{new}attn.in_proj_{kind}"] = torch.cat(joint)
            for theirs, ours in (
                ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                out[f"{new}{ours}.{kind}"] = bare[f"{old}{theirs}.{kind}"]
    return out


def original_checkpoint(states: Mapping[str, Mapping[str, Tensor]], size: Size) -> State:
    """All parts as one single-file checkpoint."""
    parts = {
        "model.diffusion_model.": original_unet(states["unet"], size),
        "first_stage_model.": original_vae(states["vae"], size),
        "conditioner.embedders.0.transformer.": original_text(states["text_encoder"], 0),
        "conditioner.embedders.1.model.": original_text(states["text_encoder_2"], 1),
    }
    joined = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    return {**joined, positions: torch.arange(size.tokens)[None], "denoiser.sigmas": torch.ones(10)}


def save_folder(states: Mapping[str, Mapping[str, Tensor]], size: Size, folder: Path) -> None:
    """All parts as a folder in diffusers' layout."""
    from safetensors.torch import save_file

    settings = {
        "unet": unet_settings(size),
        "vae": vae_settings(size),
        "text_encoder": text_settings(size, 0),
        "text_encoder_2": text_settings(size, 1),
    }
    for part, state in states.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(settings[part]))
        name = "model" if part.startswith("text") else "diffusion_pytorch_model"
        save_file(dict(state), folder / part / f"{name}.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "EulerDiscreteScheduler"}')
    (folder / "model_index.json").write_text("{}")


def _renamed(name: str, places: list[tuple[str, str]]) -> str:
    old, new = next((old, new) for old, new in places if name.startswith(old + "."))
    return new + name[len(old) :]


def _resnet(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for old, new in (
        ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
    ):  # fmt: skip
        yield f"{theirs}.{old}", f"{ours}.{new}"


def _unet_places(size: Size) -> Iterator[tuple[str, str]]:
    yield from (
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("time_embedding.cond_proj", "time_embed.cond_proj"),
        ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    )  # fmt: skip
    last, block = len(size.widths) - 1, 1
    for level in range(last + 1):
        for layer in range(2):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1"
            block += 1
        yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
        block += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level in range(last + 1):
        for layer in range(3):
            yield from _resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1"
            if layer == 2:
                has_attention = size.depths[last - level] > 0
                yield (
                    f"up_blocks.{level}.upsamplers.0.conv",
                    f"output_blocks.{block}.{1 + has_attention}.conv",
                )
            block += 1


def _vae_places(size: Size) -> Iterator[tuple[str, str]]:
    last = len(size.vae_widths) - 1
    for part, here, up in (("encoder", "down", False), ("decoder", "up", True)):
        for level in range(last + 1):
            theirs = f"{part}.{here}_blocks.{level}"
            ours = f"{part}.{here}.{last - level if up else level}"
            for layer in range(size.vae_layers + up):
                yield f"{theirs}.resnets.{layer}.conv_shortcut", f"{ours}.block.{layer}.nin_shortcut"
                yield f"{theirs}.resnets.{layer}", f"{ours}.block.{layer}"
            yield f"{theirs}.{here}samplers.0.conv", f"{ours}.{here}sample.conv"
        for theirs, ours in (
            ("resnets.0", "block_1"), ("resnets.1", "block_2"), ("attentions.0.group_norm", "attn_1.norm"),
            ("attentions.0.to_q", "attn_1.q"), ("attentions.0.to_k", "attn_1.k"),
            ("attentions.0.to_v", "attn_1.v"), ("attentions.0.to_out.0", "attn_1.proj_out"),
        ):  # fmt: skip
            yield f"{part}.mid_block.{theirs}", f"{part}.mid.{ours}"
        yield f"{part}.conv_norm_out", f"{part}.norm_out"
        yield f"{part}.conv_in", f"{part}.conv_in"
        yield f"{part}.conv_out", f"{part}.conv_out"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
