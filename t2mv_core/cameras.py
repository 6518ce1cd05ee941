"""Camera rigs: which views of the object are asked for, as numbers the model was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The model's "front" is the user's azimuth 0, which in world coordinates lies at -90 degrees (the -y axis).
WORLD_AZIMUTH_OFFSET_DEG = -90.0


@dataclass(frozen=True)
class CameraRig:
    """A set of orthographic cameras around the object (METHOD.md section 2; z is up).

    Attributes:
        azimuths_deg: azimuth of each view as users say it, degrees; 0 is the front, 90 is seen from +x.
        elevations_deg: elevation of each view, degrees in [-90, 90]; published checkpoints know 0 only.
        distance: distance of every camera from the origin, world units.
        frustum: half-width of the orthographic picture, world units.
    """

    azimuths_deg: tuple[float, ...] = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
    elevations_deg: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    distance: float = 1.8
    frustum: float = 0.55

    def __post_init__(self) -> None:
        """Refuse rigs that no camera could have."""
        if not self.azimuths_deg:
            raise ValueError("A camera rig needs at least one view; azimuths_deg is empty.")
        if len(self.azimuths_deg) != len(self.elevations_deg):
            raise ValueError(
                f"{len(self.azimuths_deg)} azimuths but {len(self.elevations_deg)} elevations were given; "
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
        """Return the rig of the chosen views, in the chosen order.

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
        """Camera positions distance·(cos el cos az, cos el sin az, sin el), [V, 3], world units, float32."""
        azimuth = torch.tensor(self.azimuths_deg, dtype=torch.float64).add(WORLD_AZIMUTH_OFFSET_DEG).deg2rad()
        elevation = torch.tensor(self.elevations_deg, dtype=torch.float64).deg2rad()
        unit = torch.stack(
            [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
        )
        return (self.distance * unit).float()

    def embedding(self) -> Tensor:
        """Camera 6-vectors [viewing direction, normalised position], mapped to [0, 1], [V, 6], float32."""
        unit_positions = torch.nn.functional.normalize(self.positions(), dim=-1)
        return (torch.cat([-unit_positions, unit_positions], dim=-1) + 1.0) / 2.0


DEFAULT_RIG = CameraRig()
