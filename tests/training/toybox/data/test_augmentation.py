"""Harmless changes stay small, and the same generator makes the same ones."""

from __future__ import annotations

import torch

from training.toybox.data.augmentation import augment, blur, move


def rng_of(seed):
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def test_strength_zero_changes_nothing():
    images = torch.rand(4, 3, 16, 16)
    assert torch.allclose(augment(images, rng_of(0), strength=0.0), images, atol=1e-5)


def test_augmented_pictures_are_close_reproducible_and_in_range():
    images = torch.rand(32, 3, 16, 16)
    changed = augment(images, rng_of(1))
    assert torch.equal(changed, augment(images, rng_of(1)))
    assert not torch.equal(changed, augment(images, rng_of(2)))
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_blur_of_a_plain_picture_is_plain_and_amount_is_linear():
    plain = torch.full((1, 3, 16, 16), 0.3)
    assert torch.allclose(blur(plain, torch.ones(1, 1, 1, 1)), plain)
    images = torch.rand(2, 3, 16, 16)
    half, full = (blur(images, torch.full((2, 1, 1, 1), amount)) for amount in (0.5, 1.0))
    assert torch.allclose(half, (images + full) / 2, atol=1e-6)
    assert full.diff(dim=-1).abs().mean() < images.diff(dim=-1).abs().mean() / 2


def test_moving_keeps_a_plain_border():
    images = torch.full((3, 3, 16, 16), 0.5)
    images[:, :, 6:10, 6:10] = 1.0
    moved = move(images, 1.0, rng_of(0))
    assert torch.allclose(moved[:, :, 0], torch.tensor(0.5))
    assert not torch.equal(moved, images)
