"""Decoding a big picture piece by piece: overlapping tiles of the latent, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP_LATENT_PX = 16


def decode_tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, tile_latent_px: int) -> Tensor:
    """Decode latents in square tiles, so that memory grows with the tile and not with the picture.

    Neighbours overlap by at least 16 latent pixels (half a tile, if tiles are smaller than 32) and are
    blended linearly there. A decoder that normalises over the picture sees a tile only: colours can differ a
    little from those of the picture decoded at once.

    Args:
        decode: latents [n, C, h, w] -> pictures [n, 3, f·h, f·w], for any h and w up to a tile.
        latents: [n, C, H, W].
        tile_latent_px: side of a tile, at least 2; latents that fit into one are decoded at once.

    Returns:
        Pictures [n, 3, f·H, f·W] in the decoder's dtype.
    """
    if tile_latent_px < 2:
        raise ValueError(f"tile_latent_px={tile_latent_px} must be at least 2; 64 suits most machines.")
    height, width = latents.shape[-2:]
    if max(height, width) <= tile_latent_px:
        return decode(latents)
    total: Tensor | None = None
    for top in _starts(height, tile_latent_px):
        for left in _starts(width, tile_latent_px):
            tile = latents[..., top : top + tile_latent_px, left : left + tile_latent_px]
            piece = decode(tile)
            factor = piece.shape[-1] // tile.shape[-1]
            if total is None:
                total = piece.new_zeros((*piece.shape[:2], height * factor, width * factor))
                weight = piece.new_zeros((height * factor, width * factor))
            ramp = _ramp(piece.shape[-2:], min(OVERLAP_LATENT_PX, tile_latent_px // 2) * factor, piece)
            rows = slice(top * factor, top * factor + piece.shape[-2])
            columns = slice(left * factor, left * factor + piece.shape[-1])
            total[..., rows, columns] += piece * ramp
            weight[rows, columns] += ramp
    assert total is not None  # every axis has at least one tile
    return total / weight


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along one axis; the last one ends with the picture."""
    if length <= tile:
        return [0]
    stride = tile - min(OVERLAP_LATENT_PX, tile // 2)
    return [*range(0, length - tile, stride), length - tile]


def _ramp(size: torch.Size, overlap_px: int, like: Tensor) -> Tensor:
    """Weights [h, w] of a tile: 1 inside, falling linearly over the overlap, never 0."""
    edges = []
    for length in size:
        distance = torch.arange(length, device=like.device)
        distance = torch.minimum(distance, distance.flip(0)) + 1
        edges.append((distance / overlap_px).clamp(max=1.0).to(like.dtype))
    return edges[0][:, None] * edges[1][None, :]
