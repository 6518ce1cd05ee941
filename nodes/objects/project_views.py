"""The node that paints views onto a mesh from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..common.checks import Field, check_fields, widgets
from ..common.memory import check_cancelled
from ..common.mesh import from_mesh, read_uvs, to_mesh, to_textured_mesh
from ..common.progress import ProgressBar, show_text
from ..sockets import make_schema, output
from ..views.contact_sheet import SET, grouping_notes, view_inputs
from .create_mesh import choose_views, mask_input

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

TEXTURE_PX = Field(
    "texture_px", 1024, "Width of the texture, for a mesh with texture coordinates, as core's Unwrap Mesh "
    "UVs gives them. Other meshes get a colour per point.",
    256, 4096, step=256, is_optional=True, is_advanced=True,
)  # fmt: skip
FIELDS = (SET, TEXTURE_PX)


class T2MVProjectViews(io.ComfyNode):
    """Views of an object onto its mesh."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVProjectViews",
            display_name="Project Views onto Mesh (T2MV)",
            category="T2MV/objects",
            description="Paints a mesh with views of the same object: each point takes the colours of the "
            "views that see it best, and points that none sees those beside them. An unwrapped mesh gets a "
            "texture, others a colour per point.",
            shows_result=True,
            search_aliases=[
                "texture projection",
                "bake views",
                "vertex colors",
                "paint mesh",
                "project texture",
            ],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Mesh.Input(
                    "mesh", tooltip="Upright, y up, its front towards +z, as core's nodes have it."
                ),
                *view_inputs(),
                mask_input(),
                io.Boolean.Input(
                    "fit",
                    default=True,
                    tooltip="Scale and move the mesh until it fills the views' outlines. Off for a mesh of "
                    "Create Mesh from Views, which lies there already.",
                ),
                *widgets(*FIELDS),
            ],
            outputs=[
                output(
                    io.Mesh,
                    "painted",
                    "The mesh with a colour per point, its triangles made finer; or with "
                    "a texture, its triangles as they are.",
                ),
                output(io.String, "report", "How much of it the views see."),
            ],
        )

    @classmethod
    def execute(
        cls,
        mesh: Any,
        images: Tensor,
        fit: bool,
        rig: CameraRig | None = None,
        masks: Tensor | None = None,
        set: int = 1,
        texture_px: int = 1024,
    ) -> io.NodeOutput:
        """Fit, look and paint."""
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.objects.agreement import outline_sentence, repeat_sentence
        from ...t2mv_core.objects.painting import fit_surface, paint_surface
        from ...t2mv_core.objects.texturing import paint_texture

        check_fields(FIELDS, {"set": set, "texture_px": texture_px})
        notes, rig = grouping_notes(images, rig), rig or DEFAULT_RIG
        views, surface = choose_views(images, rig, masks, set), from_mesh(mesh)
        bar = ProgressBar(100)

        def on_step(done: int, total: int) -> None:
            check_cancelled()
            bar.update_absolute(round(100 * done / total))

        surface = fit_surface(surface, views.masks, rig) if fit else surface
        uvs = read_uvs(mesh)
        if uvs is None:
            made = paint_surface(surface, views, on_step)
            painted = to_mesh(made.surface, made.colours)
            size = f"{len(made.surface.vertices):,} points, {len(made.surface.faces):,} triangles"
            seen, outlines = f"{size}; the views see {made.seen:.0%} of the points.", made.outlines
        else:
            texture = paint_texture(surface, uvs, views, texture_px, on_step)
            painted = to_textured_mesh(surface, uvs, texture.image)
            size = f"A texture of {texture_px} x {texture_px} pixels"
            seen, outlines = f"{size}; the views see {texture.seen:.0%} of what it covers.", texture.outlines
        sentences = [seen, outline_sentence(outlines, rig), repeat_sentence(views.images, rig), *notes]
        report = "\n".join(sentence for sentence in sentences if sentence)
        show_text(cls, report)
        return io.NodeOutput(painted, report, ui=ui.PreviewText(report))
