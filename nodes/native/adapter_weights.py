"""The MV-Adapter's weights in a module of ComfyUI's layers, loaded once per file and shared.

ComfyUI's `manual_cast` layers compute in the type and on the device of their input, wherever and in whatever
type their weights lie. So the adapter follows the UNet's settings (fp16, bf16, fp8 weights, offloaded parts),
and ComfyUI's patches (LoRA) work on it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...t2mv_core.formats.strict import WeightsFile, fill_module
from ...t2mv_core.unet.adapter import CAMERA_CHANNELS, has_reference_weights, refuse_other_adapters
from ..common.folders import fingerprint
from ..common.memory import usable_for_training
from .comfyui import (
    AttentionPlace,
    BlockKey,
    Conv2d,
    Linear,
    ModelPatcher,
    block_key,
    check_unet,
    compute_dtype,
    create_patcher,
    find_attentions,
    level_widths,
    optimized_attention,
)

_ENCODER_DOWNSCALE = 16  # picture pixels per pixel of the first residual: twice the VAE's factor

# One patcher per file, type and UNet, whose clones all users hold: only clones know what the others patched.
_IN_USE: weakref.WeakValueDictionary[Hashable, ModelPatcher] = weakref.WeakValueDictionary()


def load_native_adapter(model: ModelPatcher, path: Path) -> ModelPatcher:
    """Load an MV-Adapter; return a patcher that the caller may patch and whose weights all users share.

    Args:
        model: the MODEL it is for; decides sizes, number type and devices.
        path: the MV-Adapter file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the model's UNet is no SDXL UNet, or the file is damaged or made for another one.
    """
    unet = check_unet(model)
    places, widths = tuple(find_attentions(unet)), tuple(level_widths(unet))
    settings = (compute_dtype(model), model.load_device, model.offload_device)
    identity = (fingerprint(path), places, widths, *settings)
    root = _IN_USE.get(identity)
    if root is None:
        root = _IN_USE[identity] = _read_adapter(path, places, widths, *settings)
        # ComfyUI loads a copy by this for each further GPU.
        root.cached_patcher_init = (_read_adapter, (path, places, widths, *settings))
    return root.clone()


def _read_adapter(
    path: Path,
    places: Sequence[AttentionPlace],
    widths: Sequence[int],
    dtype: torch.dtype,
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    file = WeightsFile(path)
    refuse_other_adapters(file)
    with usable_for_training():
        module = NativeAdapter(places, widths, has_reference_weights(path))
        fill_module(module, file.weights(), dtype, "this model's UNet (SDXL's)")
        module.eval().requires_grad_(False)
    return create_patcher(module, load_device, offload_device, disable_dynamic=disable_dynamic)


class MultiviewAttention(nn.Module):
    """Multiview attention, and reference attention, of one `attn1`; parameters carry the published names."""

    def __init__(self, query_dim: int, inner_dim: int, has_reference: bool = False) -> None:
        """Create the projections without memory; `fill_module` sets their weights."""
        super().__init__()

        def linear(width_in: int, width_out: int, has_bias: bool) -> nn.Module:
            return Linear(width_in, width_out, bias=has_bias, device="meta")

        self.to_q_mv = linear(query_dim, inner_dim, False)
        self.to_k_mv = linear(query_dim, inner_dim, False)
        self.to_v_mv = linear(query_dim, inner_dim, False)
        self.to_out_mv = nn.ModuleList([linear(inner_dim, query_dim, True)])
        if has_reference:
            self.to_q_ref = linear(query_dim, inner_dim, False)
            self.to_k_ref = linear(query_dim, inner_dim, False)
            self.to_v_ref = linear(query_dim, inner_dim, False)
            self.to_out_ref = nn.ModuleList([linear(inner_dim, query_dim, True)])

    def forward(self, hidden_states: Tensor, num_views: int, rows: int, options: dict[str, Any]) -> Tensor:
        """Attend from every token to the same image row of all views, [n*V, rows*W, C].

        Args:
            hidden_states: normalised tokens, [n*V, rows*W, C], row-major; views of a set contiguous.
            num_views: V.
            rows: height of this UNet level.
            options: ComfyUI's `extra_options` of the transformer block.
        """
        query, key, value = (
            rearrange(projection(hidden_states), "(n v) (h w) c -> (n h) (v w) c", v=num_views, h=rows)
            for projection in (self.to_q_mv, self.to_k_mv, self.to_v_mv)
        )
        out = _attend(query, key, value, options)
        out = rearrange(out, "(n h) (v w) c -> (n v) (h w) c", v=num_views, h=rows)
        return self.to_out_mv[0](out)

    def refer(
        self, hidden_states: Tensor, states: Sequence[Tensor | None], num_views: int, options: dict[str, Any]
    ) -> Tensor:
        """Attend from every token to all tokens of its set's picture, [c*n*V, L, C].

        Args:
            hidden_states: normalised tokens of c conditions, one after the other, each with n sets.
            states: what the picture's self-attention was given, [n or 1, M, C], per condition; None for a
                condition without a picture.
            num_views: V.
            options: ComfyUI's `extra_options` of the transformer block.
        """
        parts = []
        for views, kept in zip(hidden_states.chunk(len(states)), states, strict=True):
            query = rearrange(self.to_q_ref(views), "(n v) l c -> n (v l) c", v=num_views)
            if kept is None:  # keys and values of zeros: their softmax averages zeros
                out = torch.zeros_like(query)
            else:
                kept = kept.to(views)
                key, value = (x(kept).expand(len(query), -1, -1) for x in (self.to_k_ref, self.to_v_ref))
                out = _attend(query, key, value, options)
            parts.append(rearrange(out, "n (v l) c -> (n v) l c", v=num_views))
        return self.to_out_ref[0](torch.cat(parts))


def _attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """Use ComfyUI's choice of attention (--use-split-cross-attention, sage, ...); it splits the heads."""
    return optimized_attention(
        query, key, value, options["n_heads"],
        attn_precision=options.get("attn_precision"), transformer_options=options,
    )  # fmt: skip


class _ResnetBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = Conv2d(channels, channels, 3, padding=1, device="meta")
        self.block2 = Conv2d(channels, channels, 1, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class _EncoderBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, is_down: bool) -> None:
        super().__init__()
        self.is_down = is_down
        if channels_in != channels:
            self.in_conv = Conv2d(channels_in, channels, 1, device="meta")
        self.resnets = nn.Sequential(*(_ResnetBlock(channels) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_down:
            x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.resnets(self.in_conv(x) if hasattr(self, "in_conv") else x)


class CameraEncoder(nn.Module):
    """The T2I-Adapter (`full_adapter_xl`) that turns cameras into one residual per level and one more."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Create the layers without memory; `widths` are the UNet's."""
        super().__init__()
        channels = [*widths, widths[-1]]
        inputs = CAMERA_CHANNELS * _ENCODER_DOWNSCALE**2
        self.conv_in = Conv2d(inputs, channels[0], 3, padding=1, device="meta")
        # As published: the second and the third block widen, and the third halves the picture.
        self.body = nn.ModuleList(
            _EncoderBlock(channels[i - 1] if i in (1, 2) else channels[i], channels[i], is_down=i == 2)
            for i in range(len(channels))
        )

    def forward(self, embedding: Tensor, height: int, width: int) -> list[Tensor]:
        """Return the residuals of latents of an even height and width, each [V, c, h, w].

        Args:
            embedding: camera 6-vectors, [V, 6].
            height: of the latents.
            width: of the latents.
        """
        # Broadcasting a 6-vector over a picture and unshuffling it repeats each number 16x16 times.
        x = embedding.repeat_interleave(_ENCODER_DOWNSCALE**2, dim=1)[:, :, None, None]
        x = self.conv_in(x.expand(-1, -1, height // 2, width // 2).contiguous())
        residuals = []
        for block in self.body:
            x = block(x)
            residuals.append(x)
        return residuals


class NativeAdapter(nn.Module):
    """All weights of an MV-Adapter file; its `state_dict` has exactly the file's names."""

    def __init__(
        self, places: Sequence[AttentionPlace], widths: Sequence[int], has_reference: bool = False
    ) -> None:
        """Create the layers without memory for a UNet with these self-attentions and widths."""
        super().__init__()
        self._by_block: dict[BlockKey, MultiviewAttention] = {}
        for place in places:
            attention = MultiviewAttention(place.query_dim, place.inner_dim, has_reference)
            self._by_block[place.key] = attention
            _add_module(self, f"{place.name}.processor", attention)
        self.adapter = CameraEncoder(widths)

    def attention_at(self, options: dict[str, Any]) -> MultiviewAttention | None:
        """Return the multiview attention of the transformer block that ComfyUI's `extra_options` name."""
        key = block_key(options)
        return None if key is None else self._by_block.get(key)


def _add_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module to a tree of modules under a dotted name."""
    *parents, leaf = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(leaf, module)
