"""Weights that ComfyUI's own models lend: loaded by their own patchers, then bound to our modules.

Only what is ours (the adapter, LoRAs) has patchers of ours. The lenders keep their weights: ComfyUI loads,
patches (LoRAs of its loaders), offloads and replaces them as ever, and what we work with is what they hold
when a part is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.model_management as model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .memory import WholePatcher, whole_patcher

if TYPE_CHECKING:
    from ..t2mv_core.borrowed import BorrowedPart
    from ..t2mv_core.bundle import ModelBundle


class _LendingPatcher(WholePatcher):
    """A clone of a lender's patcher, loaded as a whole; when weights leave, our modules let go of them."""

    parts: tuple[BorrowedPart, ...]

    def detach(self, unpatch_all: bool = True) -> Any:
        for part in self.parts:
            part.release()
        return super().detach(unpatch_all)


@dataclass(frozen=True)
class Lender:
    """One of ComfyUI's models, and what it lends.

    Attributes:
        patcher: as it came on the socket, LoRAs included.
        tensors: by the name of our part: what the weights are at the moment, by ComfyUI's names.
    """

    patcher: ModelPatcher
    tensors: Mapping[str, Callable[[], dict[str, Tensor]]]


class BridgeResidency:
    """What `memory.Residency` is for models of our own, for a model over ComfyUI's weights.

    Attributes:
        owner: the ModelBundle, without LoRAs.
    """

    def __init__(self, owner: ModelBundle, parts: Mapping[str, BorrowedPart], lenders: list[Lender]) -> None:
        """Take clones of the lenders' patchers: theirs stay as they are."""
        self.owner = owner
        self._parts = parts
        self._tensors = {name: read for lender in lenders for name, read in lender.tensors.items()}
        self._lending: dict[str, _LendingPatcher] = {}
        for lender in lenders:
            patcher = _lending_clone(lender.patcher, tuple(parts[name] for name in lender.tensors))
            self._lending |= dict.fromkeys(lender.tensors, patcher)
        self._own_layers = nn.ModuleList(parts["unet"].own_layers())
        self._own = {
            "unet": whole_patcher(self._own_layers),
            "camera_encoder": whole_patcher(owner.camera_encoder),
        }

    def load(self, *names: str) -> torch.device:
        """Bring parts to their device and bind them (all of them when no name is given).

        Returns:
            The device of the first part.

        Raises:
            ValueError: ComfyUI did not load one of them as a whole.
        """
        names = names or ("text_encoder", "text_encoder_2", "camera_encoder", "unet", "vae")
        # LoRAs may have come since the last time; they leave with the adapter.
        del self._own_layers[:]
        self._own_layers.extend(self._parts["unet"].own_layers())
        patchers = [table[name] for name in names for table in (self._lending, self._own) if name in table]
        model_management.load_models_gpu(list(dict.fromkeys(patchers)), force_full_load=True)
        for name in names:
            if name in self._parts:
                self._parts[name].bind(self._tensors[name](), self._lending[name].load_device)
            else:
                self._own[name].model.to(self._own[name].load_device)
        return patchers[0].load_device

    def size_bytes(self, name: str) -> int:
        """Bytes of a part's weights; of the text encoders, of both together."""
        return sum(int(table[name].model_size()) for table in (self._lending, self._own) if name in table)


def _lending_clone(patcher: ModelPatcher, parts: tuple[BorrowedPart, ...]) -> _LendingPatcher:
    """A clone that shares weights, backups and patches with all others, as only `clone` makes it."""
    clone: Any = patcher.clone()
    # `clone` makes what the original is, and that is a plain ModelPatcher: `bridge_checks` has seen to it.
    clone.__class__ = _LendingPatcher
    clone.parts = parts
    return clone
