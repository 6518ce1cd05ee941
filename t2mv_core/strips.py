"""Decoding a big picture strip by strip, with the same result as at once.

A VAE's decoder is convolutions, which see one neighbouring row, and group norms, which see the whole picture.
Tiles that are decoded on their own give every norm other statistics, and so other colours. Here the picture
goes through the decoder layer by layer: a norm's statistics are gathered over all of it, and what is big, the
normalised, activated and convolved copies, exists for one strip of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Prepare = Callable[[Tensor], Tensor]


@torch.no_grad()
def decode_in_strips(vae: AutoencoderKL, latents: Tensor, strip_latent_rows: int) -> Tensor:
    """`vae.decode` with less memory: two activations of the largest layer and a strip, instead of four.

    Args:
        vae: is not changed.
        latents: [n, C, h, w], not scaled, in the VAE's dtype.
        strip_latent_rows: height of a strip in rows of latents, at least 1.

    Returns:
        Pictures [n, 3, f·h, f·w] in the VAE's dtype, equal to `vae.decode`'s up to rounding.

    Raises:
        ValueError: a strip without rows.
    """
    if strip_latent_rows < 1:
        raise ValueError(f"strip_latent_rows={strip_latent_rows} must be at least 1; 8 suits most machines.")
    decoder: Any = vae.decoder
    rows = strip_latent_rows
    x = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
    x = decoder.conv_in(x)
    middle = decoder.mid_block
    x = _residual(middle.resnets[0], x, rows)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = _residual(resnet, x if attention is None else attention(x), rows)
    for block in decoder.up_blocks:
        for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", ())):
            x = _residual(resnet, x, rows)
            x = x if attention is None else attention(x)
        for upsampler in block.upsamplers or ():
            x = _convolve(upsampler.conv, x, rows, factor=2)
            rows *= 2
    return _convolve(decoder.conv_out, x, rows, _normalise(decoder.conv_norm_out, x, rows, decoder.conv_act))


def _residual(block: Any, x: Tensor, rows: int) -> Tensor:
    """diffusers' ResnetBlock2D without time embedding; x is overwritten: its memory becomes the result's."""
    hidden = _convolve(block.conv1, x, rows, _normalise(block.norm1, x, rows, block.nonlinearity))
    prepare = _normalise(block.norm2, hidden, rows, block.nonlinearity)
    out_channels = block.conv2.out_channels
    out = x[:, :out_channels] if out_channels <= x.shape[1] else x.new_empty(*hidden.shape)
    for top, strip in _convolved_strips(block.conv2, hidden, rows, prepare):
        here = slice(top, top + strip.shape[2])
        # Only this strip's rows of x are read, so they may be overwritten: neighbours are read in `hidden`.
        kept = x[:, :, here] if block.conv_shortcut is None else block.conv_shortcut(x[:, :, here])
        out[:, :, here] = (kept + strip) / block.output_scale_factor
    return out


def _convolve(
    conv: nn.Conv2d, x: Tensor, rows: int, prepare: Prepare | None = None, factor: int = 1
) -> Tensor:
    """The whole convolution of `prepare`d x, enlarged by `factor` before, made strip by strip."""
    out = x.new_empty(x.shape[0], conv.out_channels, x.shape[2] * factor, x.shape[3] * factor)
    for top, strip in _convolved_strips(conv, x, rows, prepare, factor):
        out[:, :, top : top + strip.shape[2]] = strip
    return out


def _convolved_strips(
    conv: nn.Conv2d, x: Tensor, rows: int, prepare: Prepare | None = None, factor: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """Strips of a 3x3 convolution with padding 1: the first row each begins at, and its values."""
    height = x.shape[2]
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above, below = min(top, 1), min(height - bottom, 1)  # neighbouring rows; outside there are zeros
        strip = x[:, :, top - above : bottom + below]
        if prepare is not None:
            strip = prepare(strip)
        if factor > 1:
            strip = F.interpolate(strip, scale_factor=float(factor), mode="nearest")
            # A neighbour became `factor` rows, of which the convolution sees the nearest.
            strip = strip[:, :, above * (factor - 1) : strip.shape[2] - below * (factor - 1)]
        strip = F.pad(strip, (0, 0, 1 - above, 1 - below))
        yield top * factor, F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1))


def _normalise(norm: nn.GroupNorm, x: Tensor, rows: int, activation: nn.Module) -> Prepare:
    """A group norm with the statistics of all of x, followed by the activation, as a function of a strip.

    Means and variances are gathered strip by strip in float32, after Chan et al. (1979), Updating formulae
    for computing sample variances: the difference of large sums would cost digits.
    """
    num, channels = x.shape[:2]
    mean = square = torch.zeros(num, norm.num_groups, device=x.device)
    count = 0
    for strip in x.split(rows, dim=2):
        values = strip.reshape(num, norm.num_groups, -1).float()
        variance, here = torch.var_mean(values, dim=2, correction=0)
        total = count + values.shape[2]
        step = here - mean
        mean = mean + step * (values.shape[2] / total)
        square = square + variance * values.shape[2] + step.square() * (count * values.shape[2] / total)
        count = total
    inverse = (square / count + norm.eps).rsqrt().repeat_interleave(channels // norm.num_groups, dim=1)
    scale = inverse * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(channels // norm.num_groups, dim=1) * scale

    def prepare(strip: Tensor) -> Tensor:
        normalised = torch.addcmul(shift[:, :, None, None], strip, scale[:, :, None, None])
        normalised = normalised.to(strip.dtype)
        # SDXL's: in place it takes no memory of its own.
        return F.silu(normalised, inplace=True) if isinstance(activation, nn.SiLU) else activation(normalised)

    return prepare
