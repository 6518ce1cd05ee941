"""Pictures of solids in closed form, seen by our cameras: no code of the package under test takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

FRUSTUM = 0.55


def pixel_grid(picture_px, fine=4):
    """Right and up of fine pixels' centres, world units; `fine` times as many as pixels."""
    steps = (np.arange(picture_px * fine) + 0.5) / (picture_px * fine) * 2 - 1
    return steps[None, :] * FRUSTUM, -steps[:, None] * FRUSTUM


def average(covered, fine=4):
    height, width = covered.shape
    blocks = covered.reshape(height // fine, fine, width // fine, fine)
    return torch.from_numpy(blocks.mean(axis=(1, 3)).astype(np.float32))


def disc_mask(radius, picture_px=64, at=(0.0, 0.0)):
    u, v = pixel_grid(picture_px)
    return average((u - at[0]) ** 2 + (v - at[1]) ** 2 < radius**2)


def box_mask(half, azimuth_deg, picture_px=64, at=(0.0, 0.0, 0.0)):
    """Silhouette of an upright box of half sizes (x, y, z) from elevation 0."""
    c, s = np.cos(np.radians(azimuth_deg)), np.sin(np.radians(azimuth_deg))
    reach = abs(c) * half[0] + abs(s) * half[1]
    u, v = pixel_grid(picture_px)
    return average((abs(u - (at[0] * c + at[1] * s)) < reach) & (abs(v - at[2]) < half[2]))


@pytest.fixture(scope="session")
def solids():
    """The functions above, for tests."""

    class Solids:
        disc = staticmethod(disc_mask)
        box = staticmethod(box_mask)

    return Solids


@pytest.fixture(scope="session")
def scene_views(rendered):
    """Pictures of twelve scenes, [12, V, 3, 64, 64] in [0, 1]."""
    return torch.from_numpy(rendered.images).movedim(-1, 2).float() / 255
