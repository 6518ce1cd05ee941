"""Views painted into textures: a box whose six sides lie apart in the texture."""

import pytest
import torch

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.objects.surface import Surface
from t2mv_core.objects.texturing import cover_texels, paint_texture
from t2mv_core.objects.viewing import Views

RIG = DEFAULT_RIG.subset([0, 2, 3, 4])  # front, right, back, left
PAINT = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.8, 0.1]])
SIDES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # outwards, of the front, the right, the back and the left
HALF = torch.tensor([0.25, 0.3, 0.2])
PX = 96


def unwrapped_box() -> tuple[Surface, torch.Tensor]:
    """Four upright sides as two triangles each, side k in column k of four charts, row 0 on top.

    The picture's right of side k goes to the right of its chart, its top to the top.
    """
    vertices, uvs, faces = [], [], []
    for k, (x, y) in enumerate(SIDES):
        outwards, right = torch.tensor([x, y, 0.0]), torch.tensor([-y, x, 0.0])
        for u, v in ((-1, 1), (-1, -1), (1, -1), (1, 1)):  # anticlockwise from the top left
            vertices.append((outwards + u * right + v * torch.tensor([0.0, 0.0, 1.0])) * HALF)
            uvs.append([(k + 0.5 + 0.4 * u) / 4, 0.5 - 0.4 * v])
        faces += [[4 * k, 4 * k + 1, 4 * k + 2], [4 * k, 4 * k + 2, 4 * k + 3]]
    return Surface(torch.stack(vertices), torch.tensor(faces)), torch.tensor(uvs)


@pytest.fixture(scope="module")
def views(solids) -> Views:
    """Sides of one colour whose right half is darker by half."""
    masks = torch.stack([solids.box(HALF.tolist(), azimuth) for azimuth in RIG.azimuths_deg])
    images = PAINT[:, :, None, None].expand(-1, -1, 64, 64).clone()
    images[..., 32:] *= 0.5
    return Views(masks[:, None] * images + (1 - masks[:, None]) * 0.5, masks, RIG)


def test_every_side_is_drawn_upright_in_its_place(views):
    made = paint_texture(*unwrapped_box(), views, PX)
    assert made.image.shape == (PX, PX, 3)
    assert made.seen == 1
    width = PX // 4
    for k, paint in enumerate(PAINT):
        chart = made.image[PX // 5 : -PX // 5, k * width + 3 : (k + 1) * width - 3]
        assert (chart[:, : width // 2 - 5] - paint).abs().max() < 0.02
        assert (chart[:, width // 2 - 1 :] - paint / 2).abs().max() < 0.02


def test_gaps_between_charts_take_the_nearest_colour(views):
    made = paint_texture(*unwrapped_box(), views, PX)
    assert (made.image[:3, 5] - PAINT[0]).abs().max() < 0.02
    assert (made.image[-1, PX - 1] - PAINT[3] / 2).abs().max() < 0.05  # the rim


def test_a_texel_belongs_to_the_triangle_around_its_centre():
    """The lower left half of the texture: column + row' < P, with row' counted from the bottom."""
    uvs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    face, shares = cover_texels(uvs, torch.tensor([[0, 1, 2]]), 8)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.equal(face.reshape(8, 8) == 0, column <= row)
    inside = face >= 0
    centres = torch.stack([column, row], dim=-1).reshape(-1, 2)[inside].float()
    torch.testing.assert_close(shares[inside] @ uvs * 8 - 0.5, centres)


def test_triangles_smaller_than_texels_and_flat_ones_cover_nothing():
    uvs = torch.tensor([[0.51, 0.51], [0.52, 0.51], [0.52, 0.52], [0.1, 0.1], [0.9, 0.9]])
    face, _ = cover_texels(uvs, torch.tensor([[0, 1, 2], [3, 4, 3]]), 8)
    assert (face == -1).all()


def test_bad_input_gets_a_sentence(views):
    box, uvs = unwrapped_box()
    with pytest.raises(ValueError, match="lie between 0.03 and 1.80"):
        paint_texture(box, uvs * torch.tensor([1.0, 2.0]), views, PX)
    with pytest.raises(ValueError, match="15 texture coordinates of 16 points"):
        paint_texture(box, uvs[:-1], views, PX)
    with pytest.raises(ValueError, match="No texel of 8 x 8"):
        paint_texture(box, uvs * 0.01, views, 8)
    with pytest.raises(ValueError, match="no triangles"):
        paint_texture(Surface(box.vertices, box.faces[:0]), uvs, views, PX)
    with pytest.raises(ValueError, match="seen by any view"):
        paint_texture(Surface(box.vertices + 5, box.faces), uvs, views, PX)
