"""Create Camera Data in front of ComfyUI's own 3D renderers: they show what our pictures show."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import ComfyInstall

AZIMUTHS = (0, 45, 90, 180, 270, 315)

# A solid of the toybox, as a mesh by ComfyUI's own surface nets, and as a splat of small opaque balls under
# that surface; both rendered by ComfyUI's nodes from the cameras that our node gives.
RENDER = """
import numpy as np
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import build_parts, sample_scene
from training.toybox.data.shapes import distance
from comfy_extras.nodes_gaussian_splat import RenderSplat
from comfy_extras.nodes_hunyuan3d import VoxelToMesh
from comfy_extras.nodes_mesh_postprocess import RenderMesh
from comfy_api.latest import Types

from pack.nodes.cameras.create_rig import T2MVCreateCameraData, T2MVCreateCameraRig

PX, CELLS, HALF = 480, 96, 0.55
BALL, DEPTH = 0.0018, 0.008  # standard deviation of a ball, and how deep it lies: it is seen to four of them
scene = sample_scene(3, family="duck")
rig = T2MVCreateCameraRig.execute(more[0], "0").args[0]
_, silhouettes = render_views(scene, rig.azimuths_deg, PX)

# Signed distances on a grid whose index is z, y, x of the mesh; the mesh's x, y, z are our x, z, -y.
steps = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS * 2 * HALF - HALF
z, y, x = np.meshgrid(steps, steps, steps, indexing="ij")
points = np.stack([x, -z, y])
solid = np.full(x.shape, np.inf, dtype=np.float32)
for part in build_parts(scene):
    offset = points - np.asarray(part.at, dtype=np.float32)[:, None, None, None]
    local = [sum(np.float32(axis[k]) * offset[k] for k in range(3)) for axis in part.axes]
    solid = np.minimum(solid, distance(part.shape, part.size, *local))
mesh = VoxelToMesh.execute(Types.VOXEL(-torch.from_numpy(solid)[None]), "surface net", 0.0).args[0]
# Surface nets count from the padded grid's corner, in halves of its side.
vertices = HALF * mesh.vertices[0] - HALF / CELLS
size = float(more[1])
mesh.vertices = (vertices * size)[None]

def overlap(mask, view):
    ours = torch.from_numpy(silhouettes[view])
    theirs = mask[0] > 0.5
    return float((ours & theirs).sum() / (ours | theirs).sum())

# Balls under the surface, four per face, so that they end where it does. In a splat y points down, z forward.
corners = vertices[mesh.faces[0].long()]
normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
normals = torch.nn.functional.normalize(normals, dim=-1)
outwards = normals * torch.sign((normals * (corners.mean(1) - vertices.mean(0))).sum())
weights = torch.tensor([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / torch.tensor([[3.0], [6], [6], [6]])
balls = torch.einsum("wc,fcx->wfx", weights, corners) - DEPTH * outwards
balls = balls.flatten(0, 1) * size * torch.tensor([1.0, -1.0, -1.0])
count = len(balls)
splat = Types.SPLAT(
    balls[None], torch.full((1, count, 3), BALL * size), torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4),
    torch.full((1, count, 1), 0.99), torch.zeros(1, count, 1, 3))
facts["mesh"], facts["splat"] = [], []
for view in range(rig.num_views):
    camera = T2MVCreateCameraData.execute(rig, view + 1, size).args[1]
    mask = RenderMesh.execute(mesh, "solid", PX, PX, "#000000", camera_info=camera).args[1]
    facts["mesh"].append(overlap(mask, view))
    settings = PX, PX, 1, 1.0, 2.0, 0.0, 0.0, "#000000", "color"
    mask = RenderSplat.execute(splat, *settings, camera_info=camera).args[1]
    facts["splat"].append(overlap(mask, view))
"""


@pytest.mark.parametrize("dynamic_vram", [False], indirect=True)  # no model is loaded
def test_comfyuis_renderers_show_what_our_pictures_show(
    comfy_install: ComfyInstall, native_facts: Callable[..., dict[str, Any]]
) -> None:
    """The silhouettes of a duck from all six sides; its beak tells left from right."""
    if not (comfy_install.folder / "comfy_extras" / "nodes_mesh_postprocess.py").is_file():
        pytest.skip("This ComfyUI has no node that renders meshes.")
    facts = native_facts(RENDER, ", ".join(map(str, AZIMUTHS)), "2.0")
    assert min(facts["mesh"]) >= 0.98
    assert min(facts["splat"]) >= 0.98
