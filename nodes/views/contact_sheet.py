"""The contact sheet node: all pictures on one sheet; how a batch divides into sets of views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ...t2mv_core.prompts import split_lines
from ..common.checks import Field, check_text, widgets
from ..common.outputs import picture_tensor
from ..common.progress import show_notes
from ..sockets import ESSENTIALS, Rig, make_schema, output
from .caption import with_caption

if TYPE_CHECKING:
    from torch import Tensor

    from ...t2mv_core.cameras import CameraRig

MAX_SHEET_PICTURES = 24 * 16
LAST_SET = 64 * 24  # Empty Multiview Latent makes at most 64 sets of 24 views; a rig of one view counts each
ROW_LABELS = Field(
    "row_labels", "", "A label per row, one per line; may be left empty.", is_optional=True,
    more={"multiline": True},
)  # fmt: skip
CELL_PX = Field(
    "cell_px", 160, "Height of every view on the sheet, in pixels.", 32, 1024, step=16, is_optional=True,
)  # fmt: skip
MAX_CAPTION_CHARACTERS = 20_000
SET = Field(
    "set", 1, "Which set, when several prompts or seeds are in the batch; counted from 1.", 1,
    LAST_SET, is_optional=True,
)  # fmt: skip


class T2MVCreateContactSheet(io.ComfyNode):
    """A batch of views to one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return make_schema(
            node_id="T2MVCreateContactSheet",
            display_name="Create Contact Sheet (T2MV)",
            category="T2MV/view",
            description="Puts views side by side on one picture: a row per set, a column per view.",
            shows_result=True,
            essentials_category=ESSENTIALS,
            search_aliases=["image grid", "side by side", "compare views", "multiview sheet"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *view_inputs("; they give the columns and their angles"),
                *widgets(ROW_LABELS, CELL_PX),
                io.String.Input(
                    "caption",
                    optional=True,
                    force_input=True,
                    tooltip="A text under the sheet, such as a sampler's settings.",
                ),
            ],
            outputs=[output(io.Image, "sheet", "The contact sheet, one picture.")],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        rig: CameraRig | None = None,
        row_labels: str = "",
        cell_px: int = CELL_PX.default,
        caption: str = "",
    ) -> io.NodeOutput:
        """Draw the sheet and show it on the node."""
        from ...t2mv_core.cameras import DEFAULT_RIG
        from ...t2mv_core.images import contact_sheet, from_comfy

        CELL_PX.check(cell_px)
        check_text("caption", caption, MAX_CAPTION_CHARACTERS)
        if len(images) > MAX_SHEET_PICTURES:
            raise ValueError(
                f"{len(images)} pictures are too many for one sheet; at most {MAX_SHEET_PICTURES} fit."
            )
        rig = rig or DEFAULT_RIG
        views = split_sets(from_comfy(images), rig.num_views)
        lines = split_lines(row_labels)
        show_notes(cls, label_notes(len(views), views.shape[1], lines))
        rows = (lines + [""] * len(views))[: len(views)] if any(lines) else []
        sheet = picture_tensor(with_caption(contact_sheet(views, rows, rig.labels(), cell_px), caption or ""))
        return io.NodeOutput(sheet, ui=ui.PreviewImage(sheet, cls=cls))


def view_inputs(use_of_rig: str = "") -> list[io.Input]:
    """Return the inputs of pictures and of the cameras that they were made with."""
    tooltip = f"The cameras the views were made with{use_of_rig}. Without a rig: the six default views."
    return [
        io.Image.Input("images", tooltip="Views of one or more sets, one set after the other."),
        Rig.Input("rig", optional=True, tooltip=tooltip),
    ]


def label_notes(num_rows: int, num_views: int, labels: list[str]) -> list[str]:
    """Say that a sheet has fewer rows than labels: the pictures may be of other cameras than the rig's."""
    num_labels = max((number for number, label in enumerate(labels, start=1) if label), default=0)
    if num_labels <= num_rows:
        return []
    return [
        f"{num_labels} row labels for {num_rows} rows of {num_views} views: the last ones are not drawn. "
        "Connect the sampler's rig, or give a label per row."
    ]


def grouping_notes(images: Tensor, rig: CameraRig | None) -> list[str]:
    """Say how several sets were told apart where no rig says how many views a set has."""
    from ...t2mv_core.cameras import DEFAULT_RIG

    if rig is not None or len(images) == DEFAULT_RIG.num_views:
        return []
    return [
        f"{len(images)} pictures are taken for {len(images) // DEFAULT_RIG.num_views} sets of the six "
        "default views; connect the sampler's rig to be sure."
    ]


def split_sets(images: Tensor, num_views: int) -> Tensor:
    """Group pictures [n, 3, H, W] into sets of views, [n/V, V, 3, H, W].

    Raises:
        ValueError: the number of pictures is not a multiple of V.
    """
    if len(images) % num_views:
        raise ValueError(
            f"{len(images)} pictures do not divide into sets of {num_views} views; connect the sampler's rig."
        )
    return images.unflatten(0, (-1, num_views))


def choose_set(images: Tensor, rig: CameraRig, number: int) -> Tensor:
    """Take one set of views, [V, H, W, 3], out of pictures [B·V, H, W, 3 or 4], both as ComfyUI keeps them.

    Args:
        images: one set after the other.
        rig: the cameras of a set.
        number: of the set, from 1.

    Raises:
        ValueError: the pictures are no sets of V views, or there is no such set.
    """
    from ...t2mv_core.images import from_comfy, to_comfy

    sets = split_sets(from_comfy(images), rig.num_views)
    if not 1 <= number <= len(sets):
        raise ValueError(
            f"set={number} is not in this batch; {len(images)} pictures of {rig.num_views} views are "
            f"{len(sets)} sets, counted from 1."
        )
    return to_comfy(sets[number - 1])
