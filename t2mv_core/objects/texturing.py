"""Views painted into the texture of a mesh that has texture coordinates.

texels that triangles cover -> their places on the mesh -> colours, as of points -> gaps between charts filled
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .agreement import view_agreement
from .carving import OnStep
from .painting import check_triangles, look_from
from .projection import project_surface
from .surface import Surface
from .viewing import Views

_TEXELS_AT_ONCE = 2**18
_CANDIDATES_AT_ONCE = 2**20
_EDGE = 1e-6  # texels on the edge of two triangles belong to either


@dataclass(frozen=True)
class Texture:
    """A picture for a mesh.

    Attributes:
        image: [P, P, 3] in [0, 1]; row 0 is where the second texture coordinate is 0, as in glTF.
        seen: share of the covered texels that at least one view sees, in (0, 1].
        outlines: agreement of each view's outline with the mesh's, V numbers in [0, 1].
    """

    image: Tensor
    seen: float
    outlines: tuple[float, ...]


@torch.no_grad()
def paint_texture(
    surface: Surface, uvs: Tensor, views: Views, texture_px: int = 1024, on_step: OnStep | None = None
) -> Texture:
    """Give a mesh a texture of the colours of views; each texel takes those of the views that see it best.

    Triangles have their own normals, so that hard edges stay hard.

    Args:
        surface: triangles, in the world of the views' cameras; see `fit_surface`.
        uvs: texture coordinates of the vertices, [N, 2] in [0, 1].
        views: V pictures of the same object.
        texture_px: P.
        on_step: called with (steps done, all steps); may raise to cancel.

    Raises:
        ValueError: the mesh has no triangle, its coordinates leave the texture, or no view sees any texel.
    """
    check_triangles(surface)
    if len(uvs) != len(surface.vertices) or float(uvs.min()) < -1e-4 or float(uvs.max()) > 1 + 1e-4:
        raise ValueError(
            f"The {len(uvs)} texture coordinates of {len(surface.vertices)} points lie between "
            f"{float(uvs.min()):.2f} and {float(uvs.max()):.2f}; a texture needs one per point, from 0 to 1. "
            "Unwrap the mesh anew."
        )
    face, shares = cover_texels(uvs, surface.faces, texture_px)
    covered = (face >= 0).nonzero()[:, 0]
    if not len(covered):
        raise ValueError(
            f"No texel of {texture_px} x {texture_px} lies in a triangle; take a larger texture, or unwrap "
            "the mesh anew."
        )
    projection = project_surface(surface, views.rig, views.masks.shape[-1], on_step)
    corners = surface.vertices[surface.faces]
    normals = torch.nn.functional.normalize(surface.face_normals(), dim=-1)
    points = (corners[face[covered]] * shares[covered, :, None]).sum(dim=1)
    colours, seen = look_from(
        points, normals[face[covered]], views, projection, points_at_once=_TEXELS_AT_ONCE, on_step=on_step
    )
    image = torch.zeros(texture_px**2, 3)
    image[covered] = colours.cpu()
    outlines = view_agreement(projection, views.masks).tolist()
    return Texture(_fill_gaps(image, face >= 0, texture_px), float(seen.float().mean()), tuple(outlines))


def cover_texels(uvs: Tensor, faces: Tensor, texture_px: int) -> tuple[Tensor, Tensor]:
    """Return which triangle covers each texel's centre and where in it the centre lies.

    Args:
        uvs: [N, 2] in [0, 1]; texel (row i, column j) has its centre at ((j + 1/2) / P, (i + 1/2) / P).
        faces: [M, 3].
        texture_px: P.

    Returns:
        Triangle numbers [P²], -1 where there is none, and barycentric coordinates [P², 3].
    """
    places = uvs[faces].double() * texture_px - 0.5  # [M, 3, 2]; texels' centres are whole numbers
    first = places.amin(dim=1).ceil().long().clamp(min=0)
    counts = (places.amax(dim=1).floor().long().clamp(max=texture_px - 1) - first + 1).clamp(min=0)
    widest = counts.amax(dim=1)
    face = torch.full((texture_px**2,), -1)
    shares = torch.zeros(texture_px**2, 3)
    for count in widest.unique().tolist():
        offsets = torch.cartesian_prod(torch.arange(count), torch.arange(count))  # none if count is 0
        chosen = (widest == count).nonzero()[:, 0]
        for numbers in chosen.split(max(1, _CANDIDATES_AT_ONCE // max(1, count * count))):
            texels = first[numbers, None] + offsets
            weights = _barycentric(places[numbers], texels.double())
            inside = (weights >= -_EDGE).all(dim=-1) & (texels < texture_px).all(dim=-1)
            texel = (texels[..., 1] * texture_px + texels[..., 0])[inside]
            number = numbers[:, None].expand_as(inside)[inside]
            face.scatter_reduce_(0, texel, number, "amax")  # of two triangles on an edge, the later one
            is_shown = face[texel] == number
            shares[texel[is_shown]] = weights[inside][is_shown].float()
    return face, shares


def _barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Return coordinates of points in triangles, [m, 3, 2], [m, K, 2] -> [m, K, 3]; NaN in flat ones."""
    a, b, c = corners[:, None].unbind(dim=2)
    area = _cross(b - a, c - a)
    second, third = _cross(points - a, c - a) / area, _cross(b - a, points - a) / area
    return torch.stack([1 - second - third, second, third], dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _fill_gaps(image: Tensor, is_covered: Tensor, texture_px: int) -> Tensor:
    """Return the texture [P, P, 3], texels of no triangle in the colour of the nearest one that has some."""
    from scipy.ndimage import distance_transform_edt

    shape = (texture_px, texture_px)
    row, column = distance_transform_edt(
        ~is_covered.reshape(shape).numpy(), return_distances=False, return_indices=True
    )
    return image[torch.from_numpy(row).long() * texture_px + torch.from_numpy(column).long()]
