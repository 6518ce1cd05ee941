"""Shared by the tests of the rewards' training: their CLIP before it has learned anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from open_clip.model import CLIP


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """The toybox's CLIP with random weights; tests leave them as they are."""
    from training.toybox.rewards.clip_training import TOYBOX_CLIP

    torch.manual_seed(0)
    return TOYBOX_CLIP.build().eval()
