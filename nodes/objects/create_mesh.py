"""The node that makes an object of views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ..common.checks import Field, check_fields, widgets
from ..common.memory import check_cancelled
from ..common.mesh import to_mesh, to_voxel
from ..common.progress import ProgressBar, show_text
from ..sockets import make_schema, output
from ..views.contact_sheet import SET, choose_set, grouping_notes, view_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig
    from ...t2mv_core.objects.reconstruction import Reconstruction
    from ...t2mv_core.objects.viewing import Views

RESOLUTION = Field(
    "resolution", 128, "Voxels along an edge; time and memory grow with its cube (256: eight times as 128).",
    64, 256, step=16,
)  # fmt: skip
SMOOTHING = Field(
    "smoothing", 1.0, "How far to smooth the surface, in voxels. More rounds edges and dissolves thin parts.",
    0.0, 4.0, step=0.25, is_advanced=True,
)  # fmt: skip
OPAQUE = 254 / 255  # a file's last step below 1 counts, too
FIELDS = (RESOLUTION, SMOOTHING, SET)


class T2MVCreateMesh(io.ComfyNode):
    """Views of an object to its mesh."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVCreateMesh",
            display_name="Create Mesh from Views (T2MV)",
            category="T2MV/objects",
            description="Carves the object out of the room by its silhouettes and paints it with the views. "
            "Nothing is downloaded. Hollows that no outline shows stay filled.",
            shows_result=True,
            search_aliases=["views to mesh", "visual hull", "space carving", "image to 3d", "glb", "voxel"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                *view_inputs(),
                mask_input(),
                *widgets(*FIELDS),
            ],
            outputs=[
                output(io.Mesh, "mesh", "The surface with a colour per point, for Save GLB and Preview 3D."),
                output(io.Voxel, "voxel", "The solid, for Voxel to Mesh."),
                output(io.String, "report", "How far the views agree, and which were left out."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        resolution: int,
        smoothing: float,
        rig: CameraRig | None = None,
        masks: Tensor | None = None,
        set: int = 1,
    ) -> io.NodeOutput:
        """Carve, smooth and colour."""
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.objects.agreement import repeat_sentence
        from ...t2mv_core.objects.reconstruction import reconstruct

        check_fields(FIELDS, {"resolution": resolution, "smoothing": smoothing, "set": set})
        notes, rig = grouping_notes(images, rig), rig or DEFAULT_RIG
        views = choose_views(images, rig, masks, set)
        bar = ProgressBar(100)

        def on_step(done: int, total: int) -> None:
            check_cancelled()
            bar.update_absolute(round(100 * done / total))

        made = reconstruct(views, resolution, smoothing, on_step)
        sentences = [describe(made, rig), repeat_sentence(views.images, rig), *notes]
        report = "\n".join(sentence for sentence in sentences if sentence)
        show_text(cls, report)
        return io.NodeOutput(
            to_mesh(made.surface, made.colours), to_voxel(made.volume), report, ui=ui.PreviewText(report)
        )


def mask_input() -> io.Mask.Input:
    """Return the optional input for where the object is."""
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip="Where the object is in each picture, white on black. Without masks: what is transparent, or "
        "else what differs from the colour of each picture's border.",
    )


def choose_views(images: Tensor, rig: CameraRig, masks: Tensor | None, set: int) -> Views:
    """Return one set of a batch with its silhouettes; see `choose_masks` and `choose_set` for what raises."""
    from ...t2mv_core.images import from_comfy
    from ...t2mv_core.objects.silhouettes import object_masks
    from ...t2mv_core.objects.viewing import Views

    alpha = choose_masks(images, masks)
    colours = from_comfy(choose_set(images, rig, set))
    # Masks may lie on the card (--gpu-only); the pictures do not.
    chosen = None if alpha is None else alpha.unflatten(0, (-1, rig.num_views))[set - 1].to(colours.device)
    found = object_masks(colours, chosen)
    if chosen is not None and masks is None:
        # ComfyUI gives pictures without alpha one of 1, beside one that has alpha: nothing is cut out.
        is_opaque = (chosen >= OPAQUE).flatten(1).all(dim=1)
        found[is_opaque] = object_masks(colours)[is_opaque]
    return Views(colours.float(), found, rig)


def choose_masks(images: Tensor, masks: Tensor | None) -> Tensor | None:
    """Return where the objects are, [n, H, W]: the masks, or the pictures' alpha, or None for neither.

    Raises:
        ValueError: there is not one mask of the picture's size per picture.
    """
    if masks is None:
        return images[..., 3] if images.shape[-1] == 4 else None
    if masks.shape != images.shape[:3]:
        raise ValueError(
            f"{len(masks)} masks of {masks.shape[-1]} x {masks.shape[-2]} pixels for {len(images)} pictures "
            f"of {images.shape[2]} x {images.shape[1]}; connect one mask per picture, of its size."
        )
    return masks


def describe(made: Reconstruction, rig: CameraRig) -> str:
    """Say how large the mesh is, how far the views agree, and what is wrong with some."""
    shares = [f"{label} {share:.0%}" for label, share in zip(rig.labels(), made.agreement.iou, strict=True)]
    sentences = list(made.agreement.sentences)
    if made.agreement.disagreeing:
        sentences.append("The mesh was made without them.")
    size = f"{len(made.surface.vertices):,} points, {len(made.surface.faces):,} triangles."
    return "\n".join([size, f"Views agree with the common solid: {', '.join(shares)}.", *sentences])
