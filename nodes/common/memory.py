"""Weights under ComfyUI's memory management: loaded before use, offloaded when others need the room."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management as model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Resident(nn.Module):
    """Carries one module: ComfyUI sets `device` on what it manages, which diffusers does not allow."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _WholePatcher(ModelPatcher):
    """Moves a module as a whole: layers of diffusers and transformers cannot run half offloaded."""

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: int = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
        **newer: Any,
    ) -> Any:
        """Load all of it, whatever part ComfyUI had in mind."""
        with usable_for_training():
            return super().load(device_to, lowvram_model_memory, force_patch_weights, full_load=True, **newer)

    def unpatch_model(self, *args: Any, **newer: Any) -> Any:
        """Move all of it back."""
        with usable_for_training():
            return super().unpatch_model(*args, **newer)

    def partially_unload(self, *args: Any, **newer: Any) -> int:
        """Free nothing in part: ComfyUI then unloads the whole module."""
        return 0


class Residency:
    """The modules of one model, each known to ComfyUI's memory manager by a patcher of its own.

    Attributes:
        owner: what the modules belong to, as it was loaded (a ModelBundle without LoRAs, or a reward).
    """

    def __init__(self, owner: Any, modules: Mapping[str, nn.Module]) -> None:
        """Register modules by name; they stay where they are until `load`."""
        self.owner = owner
        self._patchers = {
            name: _WholePatcher(_Resident(module), *_devices(name)) for name, module in modules.items()
        }

    def load(self, *names: str, work_bytes: float = 0) -> torch.device:
        """Bring modules to the device that computes them, and return that of the first; others may leave.

        Args:
            names: of the modules; all of them when no name is given.
            work_bytes: room to make for their work, besides their weights.
        """
        patchers = [self._patchers[name] for name in names or self._patchers]
        _load(patchers, work_bytes)
        return patchers[0].load_device

    def run(self, work: Callable[[torch.device], T], *names: str, work_bytes: float = 0) -> T:
        """Load modules and work with them; out of memory, once more with nothing else on the device.

        Args:
            work: called with the first module's device, possibly twice.
            names: as in `load`.
            work_bytes: as in `load`.
        """
        try:
            return work(self.load(*names, work_bytes=work_bytes))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("%s Unloading all other models and trying once more.", str(error).split("\n")[0])
        # Outside the `except`: there the failed try's tensors would still be held by its traceback.
        unload_everything()
        return work(self.load(*names, work_bytes=work_bytes))

    @property
    def patcher(self) -> ModelPatcher:
        """Return the patcher of the first module, by which ComfyUI knows that models hang on a result."""
        return next(iter(self._patchers.values()))

    def size_bytes(self, name: str) -> int:
        """Return the bytes of a module's weights."""
        return int(self._patchers[name].model_size())


def _devices(name: str) -> tuple[torch.device, torch.device]:
    """Return where ComfyUI computes a module, and where it waits; --cpu-vae keeps VAEs on the processor."""
    if name == "vae":
        return model_management.vae_device(), model_management.vae_offload_device()
    return compute_device(), model_management.unet_offload_device()


def load_together(residencies: Iterable[Residency]) -> None:
    """Bring several models to their devices at once, so that none of them sends another one away."""
    _load([patcher for each in residencies for patcher in each._patchers.values()])


def _load(patchers: list[_WholePatcher], work_bytes: float = 0) -> None:
    model_management.load_models_gpu(patchers, memory_required=work_bytes, force_full_load=True)
    with usable_for_training():
        for patcher in patchers:
            # A LoRA that was added after the first load lies where it was read: bring it along.
            patcher.model.to(patcher.load_device)


@contextmanager
def usable_for_training() -> Iterator[None]:
    """Leave ComfyUI's inference mode, in which no weight may be made or moved that training will use."""
    with torch.inference_mode(False), torch.no_grad():
        yield


# What is in use in some workflow; an entry goes with its last user, so the cache itself holds no memory.
_IN_USE: weakref.WeakValueDictionary[Hashable, Residency] = weakref.WeakValueDictionary()


def load_once(identity: Hashable, load: Callable[[], tuple[Any, Mapping[str, nn.Module]]]) -> Residency:
    """Load something, or give what is in use already under the same identity.

    Args:
        identity: equal exactly when the same files would be loaded in the same way.
        load: gives the owner and its modules by name; called within `usable_for_training`.
    """
    residency = _IN_USE.get(identity)
    if residency is None:
        with usable_for_training():
            residency = Residency(*load())
        _IN_USE[identity] = residency
    return residency


def denoising_bytes(num_pixels: int, dtype: torch.dtype) -> float:
    """Estimate what one call of SDXL's UNet takes besides its weights.

    Source: ComfyUI's comfy/model_base.py, `memory_required`, with SDXL's `memory_usage_factor` of 0.8.

    Args:
        num_pixels: of all latents in the call.
        dtype: the UNet's.
    """
    return num_pixels * dtype.itemsize * 0.01 * 0.8 * 2**20


def decoding_bytes(latents: torch.Tensor, dtype: torch.dtype) -> float:
    """Estimate what a VAE takes besides its weights to decode one of these latents, [n, C, h, w].

    Source: ComfyUI's comfy/sd.py, `memory_used_decode`.
    """
    height, width = latents.shape[-2:]
    return 2178 * height * width * 64 * dtype.itemsize


def encoding_bytes(pictures: torch.Tensor, dtype: torch.dtype) -> float:
    """Estimate what a VAE takes besides its weights to encode one of these pictures, [n, 3, H, W].

    Source: ComfyUI's comfy/sd.py, `memory_used_encode`.
    """
    height, width = pictures.shape[-2:]
    return 1767 * height * width * dtype.itemsize


def preferred_dtype() -> torch.dtype:
    """Return the floating-point type that ComfyUI's settings and this device compute in."""
    dtype = model_management.unet_dtype(compute_device())
    if dtype.itemsize > 1:
        return dtype
    # ComfyUI stores its own layers in fp8, and computes in another type.
    return model_management.unet_manual_cast(dtype, compute_device())


def preferred_vae_dtype() -> torch.dtype:
    """Return the type that ComfyUI's settings and the VAE's device ask for; float16 only if they say so."""
    return model_management.vae_dtype(model_management.vae_device(), [torch.bfloat16, torch.float32])


def is_vae_apart() -> bool:
    """Return whether VAEs compute on the processor and all else on a card: --cpu-vae."""
    return bool(model_management.vae_device() != compute_device())


def compute_device() -> torch.device:
    """Return the device that ComfyUI computes on."""
    return model_management.get_torch_device()


def intermediate_device() -> torch.device:
    """Return the device that ComfyUI keeps pictures and latents on between nodes."""
    return model_management.intermediate_device()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a device has run out of memory, on any of ComfyUI's backends."""
    kind = getattr(model_management, "OOM_EXCEPTION", Exception)
    # Newer than 0.3.64. It also discards the second report of the error, which waits for the next CUDA call.
    is_oom = getattr(model_management, "is_oom", lambda error: isinstance(error, kind))
    if kind is not Exception and is_oom(error):  # Exception stands for a torch without such a class
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()  # Apple's, for one


def unload_everything() -> None:
    """Send all models away, those of other nodes too, and give the cached memory back to the device."""
    model_management.unload_all_models()
    model_management.soft_empty_cache()


def check_cancelled() -> None:
    """Raise ComfyUI's interrupt when the user pressed cancel; never caught in this pack."""
    model_management.throw_exception_if_processing_interrupted()
