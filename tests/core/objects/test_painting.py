"""Views painted onto meshes that are there already: a box and a ball with known colours."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.objects.painting import fit_surface, paint_surface, subdivide
from t2mv_core.objects.projection import project, project_surface
from t2mv_core.objects.surface import Surface, extract_surface
from t2mv_core.objects.viewing import Views
from t2mv_core.objects.volume import Volume, voxel_centres

SIDES = DEFAULT_RIG.subset([0, 2, 3, 4])  # front, right, back, left
PAINT = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.8, 0.1]])
OUTWARDS = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]])
HALF = torch.tensor([0.25, 0.3, 0.2])


def make_box(half=HALF, at=(0.0, 0.0, 0.0)):
    """A box of twelve triangles, anticlockwise from outside."""
    signs = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    faces = [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
        [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
    ]  # fmt: skip
    return Surface(signs * half + torch.tensor(at), torch.tensor(faces))


@pytest.fixture(scope="module")
def painted_box(solids):
    masks = torch.stack([solids.box(HALF.tolist(), azimuth) for azimuth in SIDES.azimuths_deg])
    return Views(masks[:, None] * PAINT[:, :, None, None] + (1 - masks[:, None]) * 0.5, masks, SIDES)


def test_every_side_of_twelve_triangles_gets_its_colour(painted_box):
    box = make_box()
    assert box.enclosed_volume() == pytest.approx(8 * float(HALF.prod()), rel=1e-6)  # as meant: outwards
    made = paint_surface(box, painted_box)
    assert made.surface.enclosed_volume() == pytest.approx(box.enclosed_volume(), rel=1e-5)
    relative = made.surface.vertices / HALF
    for outwards, paint in zip(OUTWARDS, PAINT, strict=True):
        inner = (relative @ outwards > 0.99) & ((relative.abs() > 0.9).sum(dim=1) == 1)
        assert inner.sum() > 100
        assert (made.colours[inner] - paint).abs().max() < 0.02
    assert 0.3 < made.seen < 0.9  # top and bottom are seen by nobody


def test_what_stands_behind_is_hidden(painted_box):
    """A plate behind the box, seen from the front: where the box covers it, it must not turn red."""
    front = painted_box.rig.subset([0])
    box = make_box()
    plate = make_box(torch.tensor([0.24, 0.01, 0.19]), (0.0, 0.45, 0.0))
    both = Surface(torch.cat([box.vertices, plate.vertices]), torch.cat([box.faces, plate.faces + 8]))
    seen = project_surface(subdivide(both, 0.02), front, 64)
    assert float(seen.nearness[0, 32, 32]) == pytest.approx(0.3, abs=1e-4)
    made = paint_surface(plate, Views(painted_box.images[:1], painted_box.masks[:1], front))
    assert made.seen > 0  # alone it is seen
    together = paint_surface(both, Views(painted_box.images[:1], painted_box.masks[:1], front))
    assert together.seen < made.seen


def test_a_surface_is_seen_as_its_volume_is():
    """The depth of a ball's triangles is that of the rays through its volume."""
    centres = voxel_centres(64, 0.55)
    radius = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij")).norm(dim=0)
    volume = Volume((0.5 + (0.3 - radius) / (1.1 / 64)).clamp(0, 1), 0.55)
    rays, points = project(volume, SIDES, 32), project_surface(extract_surface(volume), SIDES, 32)
    both = rays.nearness.isfinite() & points.nearness.isfinite()
    assert both.sum() > 0.9 * rays.nearness.isfinite().sum()
    inner = both & (rays.nearness > 0.1)  # points keep the nearest of a pixel, rays its middle
    assert float((rays.nearness - points.nearness)[inner].abs().median()) < 0.02


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_a_mesh_of_another_size_and_place_is_fitted_to_the_outlines(painted_box, factor):
    elsewhere = make_box(HALF * factor, (0.4, -1.0, 2.0))
    fitted = fit_surface(elsewhere, painted_box.masks, SIDES)
    pixel = 2 * SIDES.frustum / 64
    assert float((fitted.vertices - make_box().vertices).abs().max()) < 2 * pixel


def test_cutting_keeps_the_surface_and_bounds_the_edges():
    box = make_box()
    fine = subdivide(box, 0.05)
    corners = fine.vertices[fine.faces]
    assert float((corners - corners.roll(1, dims=1)).norm(dim=-1).max()) <= 0.05
    assert fine.enclosed_volume() == pytest.approx(box.enclosed_volume(), rel=1e-5)
    assert len(fine.vertices) == len(fine.vertices.unique(dim=0))  # no gaps: neighbours share their points
    assert len(subdivide(box, 0.001, max_vertices=1000).vertices) <= 1000


def test_bad_input_gets_a_sentence(painted_box):
    nothing = Surface(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="no triangles"):
        paint_surface(nothing, painted_box)
    with pytest.raises(ValueError, match="no size"):
        fit_surface(nothing, painted_box.masks, SIDES)
    with pytest.raises(ValueError, match=r"View 1 \(front 0°\) shows no object"):
        fit_surface(make_box(), torch.zeros(4, 64, 64), SIDES)
    with pytest.raises(ValueError, match="seen by any view"):
        paint_surface(make_box(at=(5.0, 5.0, 5.0)), painted_box)
