"""The socket types of this pack, what travels on them, and schema extras of newer ComfyUI versions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from ..t2mv_core.bundle import ModelBundle
    from ..t2mv_core.rewards.base import Reward
    from .common.memory import Residency

Model = io.Custom("T2MV_MODEL")
Rig = io.Custom("T2MV_RIG")
Rewards = io.Custom("T2MV_REWARD")
ESSENTIALS = "Multiview"
"""Folder of the nodes that every multiview graph has."""


class _Handle:
    """Something with weights on a socket, known as such to the cache that ComfyUI empties when RAM is short.

    That cache (0.33's default) drops results of earlier workflows first if their `patcher` is a patcher; it
    takes other objects for light, and would drop the pictures before a model.
    """

    residency: Residency

    @property
    def patcher(self) -> object:
        """Say as ComfyUI's own CLIP and VAE do that weights hang on this result."""
        return self.residency.patcher


@dataclass(frozen=True)
class ModelHandle(_Handle):
    """A model on a T2MV_MODEL socket: light, never changed; a LoRA gives a new handle over the same weights.

    Attributes:
        bundle: the model and its active LoRAs.
        residency: ComfyUI's memory management of the (shared) weights.
    """

    bundle: ModelBundle
    residency: Residency


@dataclass(frozen=True)
class RewardHandle(_Handle):
    """One reward; a T2MV_REWARD socket carries a tuple of them.

    Attributes:
        reward: the scorer.
        residency: ComfyUI's memory management of its weights.
    """

    reward: Reward
    residency: Residency


def make_schema(
    *,
    search_aliases: list[str],
    shows_result: bool = False,
    essentials_category: str | None = None,
    **fields: Any,
) -> io.Schema:
    """Return a node schema, with those extras that the running ComfyUI knows.

    Args:
        search_aliases: other words that people search for.
        shows_result: the node shows a picture or a text on itself, which the page then keeps when it reloads.
        essentials_category: folder among the page's essentials.
        fields: of io.Schema, in every version.
    """
    extras = {
        "search_aliases": search_aliases,
        "has_intermediate_output": shows_result,
        "essentials_category": essentials_category,
    }
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**fields, **{name: extra for name, extra in extras.items() if name in known})


def output(
    kind: Any, name: str, tooltip: str, shown: str | None = None, is_output_list: bool = False
) -> io.Output:
    """Return an output of a type, shown under its name unless it has another one."""
    return kind.Output(name, display_name=shown or name, tooltip=tooltip, is_output_list=is_output_list)


def advanced(widget: io.WidgetInput) -> io.WidgetInput:
    """Hide an input behind the node's "Show advanced"; older frontends show it as usual."""
    widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget
