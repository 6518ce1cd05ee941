"""The node that makes a model take less memory for the same pictures."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from .checks import check_boolean, check_integer, first_problem
from .sockets import Model, ModelHandle, make_schema

MAX_VIEWS = 64


class T2MVSetMemory(io.ComfyNode):
    """A model to the same model, asked in smaller pieces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        return make_schema(
            node_id="T2MVSetMemory",
            display_name="Set Memory Use (T2MV)",
            category="T2MV/loaders",
            description="Less memory while sampling, a little slower, the same pictures. For weights in half "
            "the memory choose 'float8' as Load Model's precision.",
            search_aliases=["low vram", "out of memory", "memory options", "sequential cfg", "chunked"],
            inputs=[
                Model.Input("model", tooltip="The model, with or without LoRAs."),
                io.Boolean.Input(
                    "sequential_guidance",
                    default=True,
                    tooltip="Models with two-pass guidance (SDXL, the toybox teacher): one pass after the "
                    "other, half the memory. Without effect on few-step models, which have one pass.",
                ),
                io.Int.Input(
                    "feed_forward_views",
                    default=1,
                    min=0,
                    max=MAX_VIEWS,
                    tooltip="How many views go through a feed-forward layer at once: 1 takes least memory, 0 "
                    "is all at once.",
                ),
            ],
            outputs=[
                Model.Output("t2mv_model", display_name="model", tooltip="The model that takes less memory.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, sequential_guidance: bool | None = None, feed_forward_views: int | None = None
    ) -> bool | str:
        """Refuse numbers of views that are none."""
        return first_problem(
            lambda: check_boolean("sequential_guidance", sequential_guidance),
            lambda: check_integer("feed_forward_views", feed_forward_views, 0, MAX_VIEWS),
        )

    @classmethod
    def execute(cls, model: ModelHandle, sequential_guidance: bool, feed_forward_views: int) -> io.NodeOutput:
        """Set the options; the handle that came in stays as it is."""
        from ..t2mv_core.memory import MemorySettings

        check_boolean("sequential_guidance", sequential_guidance)
        check_integer("feed_forward_views", feed_forward_views, 0, MAX_VIEWS)
        memory = MemorySettings(sequential_guidance, feed_forward_views)
        return io.NodeOutput(ModelHandle(replace(model.bundle, memory=memory), model.residency))
