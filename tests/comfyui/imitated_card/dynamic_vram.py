"""Dynamic VRAM on the imitated card: ComfyUI's own code over an allocator that is imitated.

Real: `ModelPatcherDynamic`, layers without weights until `load_state_dict`, weights that stay in their file,
LoRAs that act when a weight is brought, buffers saved and restored by name, `load_models_gpu`.
Imitated: comfy_aimdo, which needs a driver. A place on the card is ordinary memory within `BUDGET`; a place
that is freed is overwritten with NaN, so that a use after it shows.
Here the imitation ends: layers are told that their input lies on the card, because tensors on "cpu:0" say
"cpu"; so no test shows that a tensor of ours lies on the right device. No pinned memory, streams, prefetch of
blocks or CUDA graphs; no pressure from other programs; speed means nothing.
"""

import itertools
import mmap

import comfy.memory_management
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import numpy as np
import torch

BUDGET = [2**40]
"""Bytes that fit on the card; a test may change it between two evaluations."""
_ALL, _SIGNATURES = [], itertools.count()


class Reservation:
    """In place of `comfy_aimdo.model_vbar.ModelVBAR`: a model's places on the card."""

    def __init__(self, size, device):
        self.device, self._numbers = device, itertools.count()
        self._resident = {}  # number of a place -> its memory and signature
        _ALL.append(self)

    def alloc(self, num_bytes):
        """Reserve a place; it has no memory yet."""
        return (self, next(self._numbers), num_bytes)

    def fault(self, number, num_bytes):
        """Return the signature of a place that has memory, given now if there is room; else None."""
        if number not in self._resident:
            if num_bytes + sum(other.loaded_size() for other in _ALL) > BUDGET[0]:
                return None
            with torch.inference_mode(False):  # a model may be sent away outside of it
                memory = torch.empty(num_bytes, dtype=torch.uint8)
            self._resident[number] = memory, next(_SIGNATURES).to_bytes(8, "big")
        return self._resident[number][1]

    def memory(self, number):
        """Return the bytes of a place."""
        return self._resident[number][0]

    def loaded_size(self):
        """Return the bytes that are in use."""
        return sum(memory.numel() for memory, _ in list(self._resident.values()))  # other threads add

    def free_memory(self, num_bytes):
        """Take memory away, and return how much."""
        freed = 0
        while self._resident and freed < num_bytes:
            memory, _ = self._resident.pop(next(reversed(self._resident)))
            memory.fill_(255)  # NaN in every floating-point type
            freed += memory.numel()
        return freed

    def prioritize(self, *_):
        """Do nothing; the real one moves this model to the front."""

    def unpin(self, *_):
        """Do nothing; the real one allows that a place is taken away."""


class HostBuffer:
    """In place of pinned memory, which is switched off here."""

    def __init__(self, size, prewarm=0, max_grow_size=0):
        self.size = 0


class MappedFile:
    """In place of `comfy_aimdo.model_mmap.ModelMMAP`."""

    def __init__(self, path):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def get(self):
        """Return the address of the first byte."""
        return np.frombuffer(self._map, np.uint8).ctypes.data

    def get_file_handle(self):
        """Return the open file."""
        return self._file

    def bounce(self):
        """Do nothing; the real one gives the pages back."""


def enable():
    """Make ComfyUI load every model dynamically from now on."""
    management.args.disable_pinned_memory = True
    comfy_aimdo.model_vbar.ModelVBAR = Reservation
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer
    comfy_aimdo.model_mmap.ModelMMAP = MappedFile
    comfy_aimdo.torch.aimdo_to_tensor = lambda place, device: place[0].memory(place[1])
    original = comfy.ops.cast_bias_weight

    def cast_bias_weight(s, input=None, dtype=None, device=None, *others, **named):
        if hasattr(s, "_v"):
            device = torch.device("cpu", s._v[0].device)
        return original(s, input, dtype, device, *others, **named)

    comfy.ops.cast_bias_weight = cast_bias_weight
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
