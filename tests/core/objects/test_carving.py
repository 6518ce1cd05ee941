"""Hulls of solids in closed form, and of rendered scenes against their signed distances."""

import math
import time

import numpy as np
import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.objects.carving import carve_hull
from t2mv_core.objects.volume import voxel_centres
from training.toybox.data.scenes import build_parts
from training.toybox.data.shapes import distance

AZIMUTHS = DEFAULT_RIG.azimuths_deg
# The silhouettes of a disc from 0, 45, 90 and 315 degrees leave the regular octagon around it: 8 tan(π/8) r².
OCTAGON = 8 * math.tan(math.pi / 8)


def filled(volume):
    """Volume with partly filled voxels, cubic world units."""
    return volume.occupancy.sum().item() * volume.voxel_size**3


def test_the_hull_of_a_box_is_the_box(solids):
    half, at = (0.2, 0.3, 0.15), (0.1, -0.05, 0.2)
    masks = torch.stack([solids.box(half, azimuth, at=at) for azimuth in AZIMUTHS])
    hull = carve_hull(masks, DEFAULT_RIG, 64)
    assert filled(hull) == pytest.approx(8 * math.prod(half), rel=0.02)
    x, y, z = torch.nonzero(hull.occupancy > 0.5).unbind(dim=1)
    centres = voxel_centres(64, 0.55)
    for axis, (place, size) in zip((x, y, z), zip(at, half, strict=True), strict=True):
        low, high = centres[axis.min()].item(), centres[axis.max()].item()
        assert [low, high] == pytest.approx([place - size, place + size], abs=1.5 * hull.voxel_size)


def test_the_hull_of_a_sphere_is_a_pile_of_octagons(solids):
    hull = carve_hull(solids.disc(0.4).expand(6, -1, -1), DEFAULT_RIG, 96)
    # Slices at height h have circles of r² - h²; their integral over h is 4/3 r³.
    assert filled(hull) == pytest.approx(OCTAGON * 4 / 3 * 0.4**3, rel=0.02)


def test_a_camera_above_rounds_a_cylinder(solids):
    azimuths = (*AZIMUTHS, 0.0)
    side = solids.box((0.3, 0.3, 0.2), 0)  # a cylinder of radius 0.3 from any side
    masks = torch.stack([*[side] * 6, solids.disc(0.3)])
    rig = CameraRig(azimuths, (*[0.0] * 6, 90.0))
    assert filled(carve_hull(masks, rig, 96)) == pytest.approx(math.pi * 0.3**2 * 0.4, rel=0.02)
    without = filled(carve_hull(masks[:6], DEFAULT_RIG, 96))
    assert without == pytest.approx(OCTAGON * 0.3**2 * 0.4, rel=0.02)


def test_pictures_finer_than_the_grid_give_the_same_hull(solids):
    coarse, fine = (carve_hull(solids.disc(0.35, px).expand(6, -1, -1), DEFAULT_RIG, 32) for px in (32, 256))
    assert (coarse.occupancy - fine.occupancy).abs().mean() < 0.01


def distance_of_scene(scene, resolution):
    """Signed distance of the scene's union of parts at the voxels' centres."""
    axis = voxel_centres(resolution, 0.55).numpy()
    world = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    nearest = np.full(world.shape[1:], np.inf, dtype=np.float32)
    for part in build_parts(scene):
        moved = world - np.array(part.at, dtype=np.float32)[:, None, None, None]
        local = [np.tensordot(np.array(axis, dtype=np.float32), moved, axes=1) for axis in part.axes]
        nearest = np.minimum(nearest, distance(part.shape, part.size, *local))
    return torch.from_numpy(nearest)


def test_hulls_of_rendered_scenes_hold_the_true_solid(rendered):
    silhouettes, shares = torch.from_numpy(rendered.silhouettes).float(), []
    for index in range(6):
        hull = carve_hull(silhouettes[index], DEFAULT_RIG, 48).occupancy > 0.5
        true = distance_of_scene(rendered.scenes[index], 48)
        # What lies deeper in the solid than two pixels is seen by all views.
        assert hull[true < -2 * 1.1 / 64].all()
        shares.append(((hull & (true < 0)).sum() / (hull | (true < 0)).sum()).item())
    assert sum(shares) / len(shares) > 0.7  # level cameras never see that a wing is thin


def test_one_hundred_twenty_eight_cubed_voxels_take_less_than_five_seconds(solids):
    masks = solids.disc(0.4).expand(6, -1, -1)
    start = time.thread_time()
    carve_hull(masks, DEFAULT_RIG, 128)
    assert time.thread_time() - start < 5


def test_progress_ends_at_the_end_and_can_cancel(solids):
    masks, seen = solids.disc(0.4).expand(6, -1, -1), []
    carve_hull(masks, DEFAULT_RIG, 80, on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (80, 80)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    class CancelledError(Exception):
        pass

    def cancel(done, total):
        raise CancelledError

    with pytest.raises(CancelledError):
        carve_hull(masks, DEFAULT_RIG, 80, on_step=cancel)


def test_an_empty_silhouette_leaves_nothing(solids):
    masks = solids.disc(0.4).repeat(6, 1, 1)
    masks[3] = 0
    assert carve_hull(masks, DEFAULT_RIG, 32).is_empty()


@pytest.mark.parametrize("resolution", [8, 1000])
def test_grids_out_of_range_are_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}"):
        carve_hull(torch.zeros(6, 8, 8), DEFAULT_RIG, resolution)
