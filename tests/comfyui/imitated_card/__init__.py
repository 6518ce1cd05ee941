"""A custom node of the tests: "cpu:0" computes as "cpu" does, and is a card to ComfyUI's memory management.

So ComfyUI's state for its options holds (`--novram`: no weight stays on the card), as if there were one.
With T2MV_DYNAMIC_VRAM in the environment the card has dynamic VRAM; `dynamic_vram.py` says where that ends.
"""

import os

import comfy.model_management as management
import torch

CARD = torch.device("cpu", 0)
management.get_torch_device = lambda: CARD
management.is_device_cpu = lambda device: device == torch.device("cpu")
management.get_free_memory = lambda device=None, torch_free_too=False: (2**33, 0) if torch_free_too else 2**33
management.soft_empty_cache = lambda force=False: None
management.vram_state = management.set_vram_to

NODE_CLASS_MAPPINGS: dict[str, type] = {}

if os.environ.get("T2MV_DYNAMIC_VRAM"):
    from . import dynamic_vram

    dynamic_vram.enable()
