"""Meshes of ComfyUI's core as surfaces of ours."""

from types import SimpleNamespace

import pytest
import torch
from t2mv_pack.nodes.common import mesh


def test_y_up_becomes_z_up_and_the_front_stays_the_front() -> None:
    """Core: y up, front towards +z; ours: z up, front towards -y. It undoes what is done to our meshes."""
    front_top_right = torch.tensor([[[1.0, 2.0, 3.0]] * 3])
    surface = mesh.from_mesh(SimpleNamespace(vertices=front_top_right, faces=torch.tensor([[[0, 1, 2]]])))
    assert surface.vertices[0].tolist() == [1.0, -3.0, 2.0]
    assert torch.equal(mesh._y_up(surface.vertices), front_top_right[0])


def test_padding_of_a_batch_is_left_away() -> None:
    batch = SimpleNamespace(
        vertices=torch.zeros(2, 5, 3), faces=torch.zeros(2, 4, 3, dtype=torch.int32),
        vertex_counts=torch.tensor([3, 5]), face_counts=torch.tensor([1, 4]),
    )  # fmt: skip
    surface = mesh.from_mesh(batch)
    assert (surface.vertices.shape, surface.faces.shape) == ((3, 3), (1, 3))
    assert surface.faces.dtype == torch.int64


def test_a_mesh_without_triangles_gets_a_sentence() -> None:
    points = SimpleNamespace(vertices=torch.zeros(1, 7, 3), faces=torch.zeros(1, 0, 3))
    with pytest.raises(ValueError, match="7 points and 0 triangles"):
        mesh.from_mesh(points)
