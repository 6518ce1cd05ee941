"""Meshes and voxels as ComfyUI's core has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ...t2mv_core.objects.surface import Surface
    from ...t2mv_core.objects.volume import Volume


def to_mesh(surface: Surface, colours: Tensor) -> Any:
    """Return ComfyUI's MESH of one coloured surface, y up, its front towards +z, as glTF asks.

    Core keeps colours of points linear, as its files do; `colours` are those of pictures, [N, 3].
    """
    from ...t2mv_core.objects.colours import to_linear

    mesh = _core_type("MESH")(_y_up(surface.vertices)[None].cpu(), surface.faces[None].cpu())
    mesh.vertex_colors = to_linear(colours)[
        None
    ].cpu()  # 0.3.64 does not know them, and saves the shape alone
    return mesh


def from_mesh(mesh: Any) -> Surface:
    """Return the first surface of a core MESH, in our coordinates.

    Raises:
        ValueError: it has no points or no triangles.
    """
    from ...t2mv_core.objects.surface import Surface

    vertices, faces = mesh.vertices[0], mesh.faces[0]
    if getattr(mesh, "vertex_counts", None) is not None:  # padded to the batch's largest
        vertices, faces = vertices[: int(mesh.vertex_counts[0])], faces[: int(mesh.face_counts[0])]
    if not len(vertices) or not len(faces):
        raise ValueError(
            f"The mesh has {len(vertices)} points and {len(faces)} triangles, so there is nothing to paint; "
            "connect a mesh with a surface."
        )
    x, y, z = vertices.detach().float().cpu().unbind(dim=-1)
    return Surface(torch.stack([x, -z, y], dim=-1), faces.detach().long().cpu())


def read_uvs(mesh: Any) -> Tensor | None:
    """Return the texture coordinates of the first surface of a core MESH, [N, 2]; None if it has none."""
    uvs = getattr(mesh, "uvs", None)
    if uvs is None:
        return None
    counts = getattr(mesh, "vertex_counts", None)
    return uvs[0][: None if counts is None else int(counts[0])].detach().float().cpu()


def to_textured_mesh(surface: Surface, uvs: Tensor, texture: Tensor) -> Any:
    """Return ComfyUI's MESH of one surface with texture coordinates [N, 2] and a texture [P, P, 3]."""
    mesh = _core_type("MESH")(_y_up(surface.vertices)[None].cpu(), surface.faces[None].cpu())
    mesh.uvs, mesh.texture = uvs[None], texture[None]
    return mesh


def to_voxel(volume: Volume) -> Any:
    """Return ComfyUI's VOXEL of one solid, [1, N (z), N (y), N (x)] in [0, 1], in the mesh's coordinates."""
    return _core_type("VOXEL")(volume.occupancy.permute(1, 2, 0).flip(0)[None].cpu().contiguous())


def _y_up(points: Tensor) -> Tensor:
    """Turn our x, y, z (z up, front towards -y) into glTF's x, -z, y."""
    x, y, z = points.unbind(dim=-1)
    return torch.stack([x, z, -y], dim=-1)


def _core_type(name: str) -> Any:
    """Find a class that moved: `comfy_api` has it today, its 3D nodes had it in 0.3.64."""
    import comfy_api.latest as latest

    types = getattr(latest, "Types", None)
    if hasattr(types, name):
        return getattr(types, name)
    import comfy_extras.nodes_hunyuan3d as hunyuan

    return getattr(hunyuan, name)
