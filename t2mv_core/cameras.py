"""Camera rigs: the views of an object, as the numbers that the model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The model's "front" is the user's azimuth 0, which in world coordinates lies at -90 degrees (the -y axis).
WORLD_AZIMUTH_OFFSET_DEG = -90.0
# Sides as the viewer of the front names them, by the user's azimuth.
AZIMUTH_OF_NAME = {
    "front": 0.0, "front-right": 45.0, "right": 90.0, "back-right": 135.0,
    "back": 180.0, "back-left": 225.0, "left": 270.0, "front-left": 315.0,
}  # fmt: skip
# The views that the bundled and the published checkpoints were trained on.
TRAINED_AZIMUTHS_DEG = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
TRAINED_ELEVATION_DEG = 0.0
_SAME_ANGLE_DEG = 1e-3


@dataclass(frozen=True)
class CameraRig:
    """A set of orthographic cameras around the object (docs/method.md, section 2; z is up).

    Attributes:
        azimuths_deg: azimuth of each view, degrees; 0 is the front, 90 is seen from +x.
        elevations_deg: elevation of each view, degrees in [-90, 90]; published checkpoints know 0 only.
        distance: distance of every camera from the origin, world units.
        frustum: half-width of the orthographic picture, world units.
    """

    azimuths_deg: tuple[float, ...] = TRAINED_AZIMUTHS_DEG
    elevations_deg: tuple[float, ...] = (TRAINED_ELEVATION_DEG,) * len(TRAINED_AZIMUTHS_DEG)
    distance: float = 1.8
    frustum: float = 0.55

    def __post_init__(self) -> None:
        """Refuse angles and distances that no camera has."""
        if not self.azimuths_deg:
            raise ValueError("A camera rig needs at least one view; azimuths_deg is empty.")
        if len(self.azimuths_deg) != len(self.elevations_deg):
            raise ValueError(
                f"There are {len(self.azimuths_deg)} azimuths but {len(self.elevations_deg)} elevations; "
                "give one elevation per azimuth."
            )
        for name, angles in (("azimuths_deg", self.azimuths_deg), ("elevations_deg", self.elevations_deg)):
            if not all(math.isfinite(angle) for angle in angles):
                raise ValueError(f"{name}={angles} holds an angle that is not a finite number of degrees.")
        if not all(-90.0 <= angle <= 90.0 for angle in self.elevations_deg):
            raise ValueError(f"elevations_deg={self.elevations_deg} must lie between -90 and 90 degrees.")
        if self.distance <= 0 or self.frustum <= 0:
            raise ValueError(f"distance={self.distance} and frustum={self.frustum} must be greater than 0.")

    @property
    def num_views(self) -> int:
        """Number of cameras V."""
        return len(self.azimuths_deg)

    def subset(self, indices: Sequence[int]) -> CameraRig:
        """Return the rig of some of the views, in the order of `indices`.

        Raises:
            ValueError: an index is not a view of this rig.
        """
        if any(not 0 <= index < self.num_views for index in indices):
            raise ValueError(f"View indices {list(indices)} must lie between 0 and {self.num_views - 1}.")
        return CameraRig(
            tuple(self.azimuths_deg[i] for i in indices),
            tuple(self.elevations_deg[i] for i in indices),
            self.distance,
            self.frustum,
        )

    def positions(self) -> Tensor:
        """Return positions distance·(cos el cos az, cos el sin az, sin el), [V, 3], world units, float32."""
        azimuth = torch.tensor(self.azimuths_deg, dtype=torch.float64).add(WORLD_AZIMUTH_OFFSET_DEG).deg2rad()
        elevation = torch.tensor(self.elevations_deg, dtype=torch.float64).deg2rad()
        unit = torch.stack(
            [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
        )
        return (self.distance * unit).float()

    def embedding(self) -> Tensor:
        """Return 6-vectors [viewing direction, normalised position], mapped to [0, 1], [V, 6], float32."""
        unit_positions = torch.nn.functional.normalize(self.positions(), dim=-1)
        return (torch.cat([-unit_positions, unit_positions], dim=-1) + 1.0) / 2.0

    def camera_to_world(self) -> Tensor:
        """Return camera-to-world matrices, [V, 4, 4], float64; columns: right, up, backwards, position.

        A camera looks along its -z, its x is the picture's right and its y the picture's up (OpenGL). The
        right axis (cos az, sin az, 0), az the user's azimuth, is level and exists straight above, too.
        """
        azimuth = torch.tensor(self.azimuths_deg, dtype=torch.float64).deg2rad()
        elevation = torch.tensor(self.elevations_deg, dtype=torch.float64).deg2rad()
        right = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], dim=-1)
        backward = torch.stack(
            [elevation.cos() * azimuth.sin(), -elevation.cos() * azimuth.cos(), elevation.sin()], dim=-1
        )
        up = torch.linalg.cross(backward, right)
        matrices = torch.eye(4, dtype=torch.float64).repeat(self.num_views, 1, 1)
        matrices[:, :3] = torch.stack([right, up, backward, self.distance * backward], dim=-1)
        return matrices

    def find_views(self, azimuth_deg: float) -> list[int]:
        """Return the views at an azimuth (full turns aside), those closest to elevation 0 first."""
        indices = [i for i, angle in enumerate(self.azimuths_deg) if is_same_azimuth(angle, azimuth_deg)]
        return sorted(indices, key=lambda i: abs(self.elevations_deg[i]))

    def angular_order(self) -> list[int]:
        """Return the views in order around the object: by azimuth from 0 to 360 degrees, then elevation."""
        turns = [0.0 if is_same_azimuth(azimuth, 0.0) else azimuth % 360.0 for azimuth in self.azimuths_deg]
        return sorted(range(self.num_views), key=lambda i: (turns[i], self.elevations_deg[i]))

    def labels(self) -> list[str]:
        """Return the label of each view: "front 0°", "30°", "right 90°/+20°" (azimuth/elevation)."""
        return [label_view(*angles) for angles in zip(self.azimuths_deg, self.elevations_deg, strict=True)]


DEFAULT_RIG = CameraRig()


def is_same_azimuth(a_deg: float, b_deg: float) -> bool:
    """Return whether two azimuths differ by full turns only (to a thousandth of a degree)."""
    return abs((a_deg - b_deg + 180.0) % 360.0 - 180.0) < _SAME_ANGLE_DEG


def label_view(azimuth_deg: float, elevation_deg: float = 0.0) -> str:
    """Return a view's side, if it has a name, and its angles; the elevation only where it is not 0."""
    name = next((n for n, angle in AZIMUTH_OF_NAME.items() if is_same_azimuth(angle, azimuth_deg)), "")
    azimuth = f"{azimuth_deg + 0.0:g}°"  # + 0.0: no "-0°"
    elevation = f"/{elevation_deg:+g}°" if elevation_deg else ""
    return f"{name} {azimuth}{elevation}".strip()
