"""A node that ComfyUI's core has since 0.35, for older ones: its names and sockets, and no work.

With it, an older page can open workflow 11 and an older server can check its links and values. ComfyUI skips
custom nodes of a name that its core has, so a newer one is asked itself.

Names, types, order, defaults and ranges are those of comfy_extras/nodes_trellis2.py in Comfy-Org/ComfyUI at
015e604679bbf0f0dc44a34d91f5cedb52535b4b. The first releases with the node have no `crop`.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

VIEWS = ("front", "left", "back", "right")


class Pixal3DMultiViewConditioning(io.ComfyNode):
    """Sockets of core's node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """See the module's source."""
        return io.Schema(
            node_id="Pixal3DMultiViewConditioning",
            display_name="Pixal3D Multi-View Conditioning",
            category="model/conditioning/trellis2",
            inputs=[
                io.ClipVision.Input("clip_vision_model"),
                io.Boolean.Input("crop", default=False),
                io.Float.Input("fov", default=20.0, min=1.0, max=170.0, step=0.01, round=False),
                *(io.Image.Input(name, optional=True) for name in VIEWS),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, **_: object) -> io.NodeOutput:
        """Refuse."""
        raise NotImplementedError("This ComfyUI has no Pixal3DMultiViewConditioning; it needs 0.35 or newer.")


class LaterCore(ComfyExtension):
    """What ComfyUI asks for."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node."""
        return [Pixal3DMultiViewConditioning]


async def comfy_entrypoint() -> LaterCore:
    """Return the extension."""
    return LaterCore()
