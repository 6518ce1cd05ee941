"""What our cameras see where: points of the world in pictures, and pictures at those places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import CameraRig


@dataclass(frozen=True)
class Views:
    """Pictures of one object, where the object is in them, and who took them.

    Attributes:
        images: [V, 3, H, H] in [0, 1], float32.
        masks: covered share of each pixel, [V, H, H] in [0, 1], float32.
        rig: the V cameras.
    """

    images: Tensor
    masks: Tensor
    rig: CameraRig

    def __post_init__(self) -> None:
        """Refuse pictures that do not belong together."""
        check_masks(self.masks, self.rig)
        if self.images.shape != (self.rig.num_views, 3, *self.masks.shape[1:]):
            raise ValueError(
                f"images have shape {list(self.images.shape)} for masks of shape {list(self.masks.shape)}; "
                "pass [V, 3, H, W] and [V, H, W] of the same views."
            )


def check_masks(masks: Tensor, rig: CameraRig) -> None:
    """Raise ValueError unless masks are floats [V, H, H], one square picture per camera."""
    if masks.ndim != 3 or not masks.is_floating_point() or masks.shape[1] != masks.shape[2]:
        raise ValueError(
            f"masks have shape {list(masks.shape)} and type {masks.dtype}; pass floats in [0, 1] of shape "
            "[V, H, H]. Our cameras take square pictures: pad or crop others before."
        )
    if len(masks) != rig.num_views:
        raise ValueError(
            f"There are {len(masks)} masks for {rig.num_views} cameras; pass one view per camera, in the "
            "rig's order."
        )


def camera_axes(rig: CameraRig, like: Tensor) -> Tensor:
    """Return each camera's right, up and backward axis, [V, 3 (axis), 3 (x, y, z)], as `like` (a tensor)."""
    return rig.camera_to_world()[:, :3, :3].transpose(1, 2).to(like)


def picture_places(points: Tensor, rig: CameraRig) -> Tensor:
    """Return where each camera sees points: [..., 3] world units -> [V, ..., 2].

    Places are (right, down) in half pictures: (-1, -1) is the picture's top left corner. The cameras are
    orthographic, so distance changes nothing.
    """
    right_and_up = camera_axes(rig, points)[:, :2]
    seen = torch.einsum("vak,...k->v...a", right_and_up, points) / rig.frustum
    return seen * seen.new_tensor([1.0, -1.0])


def sample_pictures(pictures: Tensor, places: Tensor) -> Tensor:
    """Return pictures at places by bilinear interpolation: [V, C, H, W], [V, M, 2] -> [V, C, M].

    Beyond a picture everything is 0.
    """
    return F.grid_sample(pictures, places[:, None], mode="bilinear", align_corners=False)[:, :, 0]


def resize_masks(masks: Tensor, picture_px: int) -> Tensor:
    """Return masks [V, H, H] as [V, P, P]; antialiased where they become smaller, never enlarged."""
    if masks.shape[-1] <= picture_px:
        return masks
    size = (picture_px, picture_px)
    return F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
