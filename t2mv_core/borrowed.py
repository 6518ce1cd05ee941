"""A model over weights that somebody else owns and keeps: ComfyUI's, under their original names.

The modules are made without memory. Before a part works, each of its weights is bound to the tensor that
the owner has for it at that moment, as it is or as a view of another shape; afterwards it is let go of. So
nothing is copied, the owner may move and replace its tensors in between, and what it frees is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import create_camera_encoder, load_adapter
from .architecture import ADAPTER_LATENT_PX, LATENT_PX
from .attention import install_multiview_attention
from .bundle import ModelBundle
from .original_layout import Change
from .parts import create_part, prefixed, read_scheduler_config
from .schedule import schedule_from_config
from .single_file import renamer
from .sources import ModelSources
from .weights import without_weights

PART_NAMES = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class _Place:
    """Where a weight belongs: the layer itself, which stays the same when a LoRA wraps it."""

    layer: nn.Module
    name: str
    key: str
    change: Change | None
    empty: nn.Parameter


class BorrowedPart:
    """A module and whose weights it works with.

    Attributes:
        module: usable while it is bound.
    """

    def __init__(
        self, module: Any, sources: Mapping[str, tuple[str, Change | None]], dtype: torch.dtype
    ) -> None:
        """Leave the module without weights, of the owner's number type.

        Args:
            module: made under `without_weights`.
            sources: own name -> the owner's name, and the change that makes its tensor a view of our shape.
            dtype: of the owner's tensors.
        """
        self.module = module
        self._places = []
        for own, (key, change) in sources.items():
            owner, _, name = own.rpartition(".")
            layer = module.get_submodule(owner)
            empty = torch.empty(getattr(layer, name).shape, dtype=dtype, device="meta")
            parameter = nn.Parameter(empty, requires_grad=False)
            self._places.append(_Place(layer, name, key, change, parameter))
        self.release()

    def bind(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> None:
        """Work with the owner's tensors from now on; bring what else the module has to their device.

        Args:
            tensors: the owner's, all on one device, by its names.
            device: where they are.

        Raises:
            ValueError: one of them is elsewhere: the owner has not brought all of them.
        """
        device = torch.empty(0, device=device).device  # "cuda" as "cuda:0"
        for place in self._places:
            tensor = tensors[place.key]
            if tensor.device != device:
                self.release()
                raise ValueError(
                    f"Weight {place.key!r} is on {tensor.device}, not on {device}: only a part of this model "
                    "was loaded. Free memory (fewer models, --normalvram), or use Load Model (T2MV)."
                )
            view = tensor if place.change is None else place.change(tensor)
            setattr(place.layer, place.name, nn.Parameter(view.detach(), requires_grad=False))
        nn.Module.to(self.module, device=device)  # constants, the adapter's weights, LoRAs

    def release(self) -> None:
        """Let go of the owner's tensors."""
        for place in self._places:
            setattr(place.layer, place.name, place.empty)

    def own_layers(self) -> list[nn.Module]:
        """The layers whose weights are nobody else's: of the adapter, and of LoRAs attached by now."""
        borrowed = {id(place.layer) for place in self._places}
        return [x for x in self.module.modules() if x._parameters and id(x) not in borrowed]


def borrow_part(part: str, tensors: Mapping[str, Tensor]) -> BorrowedPart:
    """A part of SDXL over tensors in the original layout, or transformers' for the text encoders.

    Args:
        part: one of `PART_NAMES`.
        tensors: all of the part's weights, of one number type, without a checkpoint's prefix.

    Raises:
        ValueError: a weight is missing, unknown, or of another shape than SDXL's would have.
    """
    rename = renamer(part, tensors)
    sources = {new: (key, change) for key in tensors for new, change in rename(key)}
    shapes = {new: _changed_shape(tensors[key], change) for new, (key, change) in sources.items()}
    try:
        module = create_part(part, shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"This is not a {part} of SDXL: {error.args[0]!r} is missing or of another kind. Connect SDXL's."
        ) from error
    own, sources = module.state_dict(), prefixed(module, sources)
    given = prefixed(module, shapes)
    wrong = sorted(name for name in own.keys() & given.keys() if given[name] != tuple(own[name].shape))
    odd = [*wrong, *sorted(own.keys() ^ given.keys())]
    if odd:
        kind = "has another shape" if wrong else "is missing" if odd[0] in own else "is not known to SDXL"
        raise ValueError(f"This is not a {part} of SDXL: {odd[0]!r} {kind}. Connect SDXL's.")
    return BorrowedPart(module, sources, next(iter(tensors.values())).dtype)


def borrow_bundle(
    tensors: Mapping[str, Mapping[str, Tensor]],
    adapter: Path,
    sampler: str | None = None,
    name: str = "borrowed",
) -> tuple[ModelBundle, dict[str, BorrowedPart]]:
    """A bundle over an owner's weights, with an MV-Adapter of its own.

    Args:
        tensors: by part (`PART_NAMES`), see `borrow_part`.
        adapter: the MV-Adapter's file; read in the UNet's number type.
        sampler: "lcm" or "ddim", how the model is sampled; None as SDXL is.
        name: what the model is called in reports.

    Returns:
        The bundle, and its parts by name: bind a part before it works.

    Raises:
        FileNotFoundError: no adapter file.
        ValueError: see `borrow_part` and `load_adapter`; parts that do not belong together.
    """
    parts = {part: borrow_part(part, tensors[part]) for part in PART_NAMES}
    unet, vae, first, second = (parts[part].module for part in PART_NAMES)
    _check_widths(unet, vae, [first, second])
    with without_weights():
        install_multiview_attention(unet)
        camera_encoder = create_camera_encoder(unet, 2 ** (len(vae.config["block_out_channels"]) - 1))
    load_adapter(unet, camera_encoder, adapter, next(unet.parameters()).dtype)
    if unet.config["sample_size"] == LATENT_PX:
        unet.register_to_config(sample_size=ADAPTER_LATENT_PX)  # as `load_bundle` does
    schedule = schedule_from_config(read_scheduler_config(None))
    schedule = replace(schedule, sampler=sampler or schedule.sampler)
    sources = ModelSources(name, adapter=str(adapter))
    bundle = ModelBundle(unet, vae, first, second, camera_encoder, schedule, sources)
    for module in bundle.modules().values():
        module.eval().requires_grad_(False)
    return bundle, parts


def _changed_shape(tensor: Tensor, change: Change | None) -> tuple[int, ...]:
    empty = torch.empty(tensor.shape, device="meta")
    return tuple((empty if change is None else change(empty)).shape)


def _check_widths(unet: Any, vae: Any, text_encoders: list[Any]) -> None:
    latent, text = unet.config["in_channels"], unet.config["cross_attention_dim"]
    if vae.config["latent_channels"] != latent:
        raise ValueError(
            f"The VAE makes latents of {vae.config['latent_channels']} channels, the UNet takes {latent}: it "
            "is the VAE of another kind of model. Connect SDXL's."
        )
    given = sum(encoder.config.hidden_size for encoder in text_encoders)
    if given != text:
        raise ValueError(
            f"The UNet takes text features of width {text}, the text encoders give {given}: MODEL and CLIP "
            "do not belong together. Connect those of one SDXL checkpoint."
        )
