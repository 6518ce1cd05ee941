"""Views to a mesh in a real ComfyUI: the file that Save GLB writes, and what the node refuses."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.spatial import cKDTree

from tests.comfyui.workflows import node

if TYPE_CHECKING:
    from conftest import ComfyServer

PROMPT = "a red mug with a blue handle"


def sampled(**mesh: Any) -> dict[str, Any]:
    """Six views of the toybox and their mesh."""
    return {
        "model": node(
            "T2MVLoadModel", model="toybox", adapter="the model's own", precision="auto",
            unet="the model's own", vae="the model's own", download=False, sampler="auto",
            sequential_guidance=False,
        ),
        "views": node(
            "T2MVSampleStandard", model=["model", 0], prompt=PROMPT, seed=1, steps=0, guidance=0.0,
            view_scale=1.0, negative_prompt="",
        ),
        "mesh": node("T2MVCreateMesh", **{"images": ["views", 0], "resolution": 64, "smoothing": 1.0} | mesh),
    }  # fmt: skip


def read_glb(content: bytes) -> dict[str, np.ndarray]:
    """Attribute -> values of a GLB's only mesh, read as the format's specification says."""
    length = struct.unpack_from("<I", content, 12)[0]
    gltf = json.loads(content[20 : 20 + length])
    binary = content[20 + length + 8 :]
    found = {}
    primitive = gltf["meshes"][0]["primitives"][0]
    for name, index in (*primitive["attributes"].items(), ("faces", primitive["indices"])):
        accessor = gltf["accessors"][index]
        view = gltf["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5125: "<u4", 5121: "u1", 5123: "<u2"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
        values = np.frombuffer(binary, dtype, accessor["count"] * width, start)
        found[name] = values.reshape(-1, width)
    return found


def test_a_sentence_becomes_a_mesh_file(server: ComfyServer) -> None:
    run = server.succeed(
        sampled()
        | {
            "save": node("SaveGLB", mesh=["mesh", 0], filename_prefix="mesh/t2mv"),
            "basic": node("VoxelToMesh", voxel=["mesh", 1], algorithm="surface net", threshold=0.5),
            "saved too": node("SaveGLB", mesh=["basic", 0], filename_prefix="mesh/voxel"),
        },
    )
    assert "Views agree with the common solid: front" in run.outputs["mesh"]["text"][0]
    made, other = (read_glb(server.picture(run.outputs[name]["3d"][0])) for name in ("save", "saved too"))
    points = made["POSITION"]
    assert len(points) > 1000
    assert made["faces"].max() < len(points)
    assert np.abs(points).max() <= 0.56  # in the pictures
    # Core's own mesh of the solid lies in the same place; its room is ±1, ours ±0.55.
    for edge in (np.min, np.max):
        np.testing.assert_allclose(edge(points, 0), 0.55 * edge(other["POSITION"], 0), atol=0.03)
    if "COLOR_0" in made:  # 0.3.64 saves none
        red, green, blue = made["COLOR_0"][:, :3].astype(np.float64).mean(axis=0)
        assert red > 1.5 * green
        assert red > 1.5 * blue


def test_a_mesh_from_elsewhere_is_fitted_and_painted(server: ComfyServer) -> None:
    """Core's own mesh of the solid has no colours and another size."""
    workflow = sampled() | {
        "elsewhere": node("VoxelToMesh", voxel=["mesh", 1], algorithm="surface net", threshold=0.5),
        "painted": node("T2MVProjectViews", mesh=["elsewhere", 0], images=["views", 0], fit=True),
        "save": node("SaveGLB", mesh=["painted", 0], filename_prefix="mesh/painted"),
        "ours": node("SaveGLB", mesh=["mesh", 0], filename_prefix="mesh/ours"),
    }
    run = server.succeed(workflow)
    assert "the views see" in run.outputs["painted"]["text"][0]
    painted, ours = (read_glb(server.picture(run.outputs[name]["3d"][0])) for name in ("save", "ours"))
    for edge in (np.min, np.max):
        np.testing.assert_allclose(edge(painted["POSITION"], 0), edge(ours["POSITION"], 0), atol=0.05)
    if "COLOR_0" in painted:
        ours_mean, mean = (found["COLOR_0"][:, :3].astype(float).mean(axis=0) for found in (ours, painted))
        np.testing.assert_allclose(mean / mean.max(), ours_mean / ours_mean.max(), atol=0.15)


def test_one_view_gets_a_sentence(server: ComfyServer) -> None:
    workflow = sampled() | {"show": node("PreviewAny", source=["mesh", 2])}
    workflow["rig"] = node("T2MVCreateCameraRig", azimuths="0", elevations="0")
    workflow["mesh"]["inputs"]["rig"] = ["rig", 0]
    run = server.run(workflow)
    assert run.status != "success"
    assert "The views (front 0°) all look along one line" in str(run.error)


def test_an_empty_picture_and_foreign_masks_get_a_sentence(server: ComfyServer) -> None:
    workflow = {
        "grey": node("EmptyImage", width=64, height=64, batch_size=6, color=0x808080),
        "mesh": node("T2MVCreateMesh", images=["grey", 0], resolution=64, smoothing=1.0),
        "show": node("PreviewAny", source=["mesh", 2]),
    }
    run = server.run(workflow)
    assert run.status != "success"
    assert "No view shows an object" in str(run.error)
    workflow["mask"] = node("SolidMask", value=1.0, width=32, height=32)
    workflow["mesh"]["inputs"]["masks"] = ["mask", 0]
    run = server.run(workflow)
    assert "1 masks of 32 x 32 pixels for 6 pictures of 64 x 64" in str(run.error)


def test_an_alpha_that_cuts_nothing_out_is_none(server: ComfyServer) -> None:
    """As Image Batch gives it to pictures without alpha: the whole picture would be a solid cube."""
    run = server.succeed(
        sampled()
        | {
            "black": node("EmptyImage", width=64, height=64, batch_size=6, color=0),
            "nothing": node("ImageToMask", image=["black", 0], channel="red"),
            "opaque": node("JoinImageWithAlpha", image=["views", 0], alpha=["nothing", 0]),
            "again": node("T2MVCreateMesh", images=["opaque", 0], resolution=64, smoothing=1.0),
            "show": node("PreviewAny", source=["again", 2]),
            "show too": node("PreviewAny", source=["mesh", 2]),
        },
    )
    assert run.outputs["again"]["text"] == run.outputs["mesh"]["text"]


def projected(**inputs: Any) -> dict[str, Any]:
    """Six views of the toybox on core's mesh of them, and the report."""
    return sampled() | {
        "elsewhere": node("VoxelToMesh", voxel=["mesh", 1], algorithm="surface net", threshold=0.5),
        "painted": node(
            "T2MVProjectViews", **{"mesh": ["elsewhere", 0], "images": ["views", 0], "fit": True} | inputs
        ),
        "show": node("PreviewAny", source=["painted", 1]),
    }


FRONT = {"image": ["views", 0], "batch_index": 0, "length": 1}
RIG_OF_ONE = {"azimuths": "0", "elevations": "0"}
OTHER_RIG = {"azimuths": "90, 180, 0, 270, 0, 180", "elevations": "0"}


def test_a_projection_of_views_without_an_object_gets_a_sentence(server: ComfyServer) -> None:
    grey = node("EmptyImage", width=64, height=64, batch_size=6, color=0x808080)
    run = server.run(projected(images=["grey", 0]) | {"grey": grey})
    assert run.status != "success"
    assert "View 1 (front 0°) shows no object, so the mesh cannot be fitted" in str(run.error)


@pytest.mark.parametrize(
    ("inputs", "more", "words"),
    [
        (
            {"images": ["front", 0], "rig": ["rig", 0]},
            {"front": node("ImageFromBatch", **FRONT), "rig": node("T2MVCreateCameraRig", **RIG_OF_ONE)},
            "the views see",  # one view is enough for a projection
        ),
        (
            {"images": ["front", 0]},
            {
                "one": node("ImageFromBatch", **FRONT),
                "front": node("RepeatImageBatch", image=["one", 0], amount=6),
            },
            "(left 270°) and 6 (front-left 315°) are the same picture",
        ),
        (
            {"rig": ["rig", 0]},
            {"rig": node("T2MVCreateCameraRig", **OTHER_RIG)},
            "than the mesh has from there; check that the rig is the one",
        ),
    ],
)
def test_what_may_be_wrong_stands_in_the_projections_report(
    server: ComfyServer, inputs: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    run = server.succeed(projected(**inputs) | more)
    assert words in run.outputs["painted"]["text"][0]
    assert ("check" in run.outputs["painted"]["text"][0]) == ("the views see" not in words)


def test_an_unwrapped_mesh_gets_a_texture(server: ComfyServer) -> None:
    """At every point the texture has about the colour that the point has without one."""
    workflow = projected()
    if "UnwrapMesh" not in json.loads(server.get("/object_info")):
        pytest.skip("This ComfyUI's core does not have UnwrapMesh.")
    workflow |= {
        "unwrapped": node(
            "UnwrapMesh", mesh=["elsewhere", 0], segmenter="pec", resolution=512, padding=2, weld_distance=0.0
        ),
        "textured": node(
            "T2MVProjectViews",
            **workflow["painted"]["inputs"] | {"mesh": ["unwrapped", 0], "texture_px": 512},
        ),
        "picture": node("MeshTextureToImage", mesh=["textured", 0]),
        "applied": node("ApplyTextureToMesh", mesh=["unwrapped", 0], base_color=["picture", 0]),
        "save": node("SaveGLB", mesh=["textured", 0], filename_prefix="mesh/textured"),
        "save applied": node("SaveGLB", mesh=["applied", 0], filename_prefix="mesh/applied"),
        "save painted": node("SaveGLB", mesh=["painted", 0], filename_prefix="mesh/painted"),
        "look": node("PreviewImage", images=["picture", 0]),
    }
    run = server.succeed(workflow)
    assert "A texture of 512 x 512 pixels; the views see" in run.outputs["textured"]["text"][0]
    files = {
        name: read_glb(server.picture(run.outputs[name]["3d"][0]))
        for name in ("save", "save applied", "save painted")
    }
    textured, painted = files["save"], files["save painted"]
    assert "COLOR_0" not in textured
    np.testing.assert_array_equal(files["save applied"]["TEXCOORD_0"], textured["TEXCOORD_0"])
    picture = server.pictures(run, "look")[0].convert("RGB")
    column, row = (textured["TEXCOORD_0"] * 512).astype(int).clip(0, 511).T
    colours = np.asarray(picture, dtype=float)[row, column] / 255
    _, nearest = cKDTree(painted["POSITION"]).query(textured["POSITION"])
    others = painted["COLOR_0"][nearest, :3].astype(float)
    # In glTF colours of points are linear, those of pictures are not.
    others = np.where(others > 0.0031308, 1.055 * others ** (1 / 2.4) - 0.055, 12.92 * others)
    assert np.median(np.abs(colours - others).max(axis=1)) < 0.06


def test_views_are_scored_by_their_common_solid(server: ComfyServer) -> None:
    """The reward has no weights for ComfyUI's memory management, and reads the rig."""
    workflow = sampled() | {
        "rig": node("T2MVCreateCameraRig", azimuths="0, 90, 180, 270", elevations="0"),
        "reward": node("T2MVLoadReward", reward="geometry", download=False),
        "part": node("T2MVLoadReward", reward="geometry.silhouettes", rewards=["reward", 0], download=False),
        "score": node("T2MVScoreViews", rewards=["part", 0], images=["views", 0], prompts=PROMPT),
        "json": node("PreviewAny", source=["score", 3]),
        "views' scores": node("PreviewAny", source=["score", 2]),
    }
    del workflow["mesh"]
    workflow["views"]["inputs"]["rig"] = workflow["score"]["inputs"]["rig"] = ["rig", 0]
    run = server.succeed(workflow)
    joint = json.loads(run.outputs["json"]["text"][0])[0]["joint_scores"]
    assert 0 < joint["geometry"] < joint["geometry.silhouettes"] <= 1
    assert run.outputs["views' scores"]["text"] == ["nan"]  # an empty list would stop the next node
    del workflow["score"]["inputs"]["rig"]
    run = server.run(workflow)
    assert "got 4 views for the 6 cameras" in str(run.error)
