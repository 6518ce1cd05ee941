"""One random small SDXL twice, for processes like ComfyUI's: as MODEL, CLIP, VAE, and in files.

Imported by code that runs in ComfyUI's Python (`ComfyInstall.run_code`), never by pytest itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from native_pair import RIG, Size, relative_error, sample
from pack.nodes.bridge import bridge
from pack.nodes.memory import Residency
from pack.nodes.sampling import sample_views
from pack.nodes.sockets import ModelHandle
from pack.t2mv_core.adapter import create_camera_encoder, save_adapter
from pack.t2mv_core.attention import install_multiview_attention
from pack.t2mv_core.bundle import ModelSources, load_bundle
from pack.t2mv_core.lora import add_lora, load_lora, save_lora, trainable_parameters
from safetensors.torch import load_file, save_file
from small_checkpoint_node import lend

from benchmarks.sdxl_files import create_modules, original_checkpoint

SIZE = Size(
    widths=(64, 128, 128), depths=(0, 1, 2), text=((64, 3, 96, 49408), (128, 3, 160, 49408)), pooled=128,
    vae_widths=(32, 64), vae_layers=1,
)  # fmt: skip
LATENT_PX = 8
SETTINGS = {"rig": RIG, "negative_prompt": "blurry", "steps": 2, "guidance": 4.0, "view_scale": 1.0}


@dataclass
class BridgePair:
    """The files, and what is made of them.

    Attributes:
        checkpoint: single file in the original layout.
        adapter: MV-Adapter of that UNet.
        lora: a LoRA of ordinary and multiview parts.
    """

    checkpoint: Path
    adapter: Path
    lora: Path

    def lend(self, dtype: torch.dtype = torch.float32, **types: torch.dtype) -> tuple[Any, Any, Any]:
        """MODEL, CLIP and VAE, loaded anew."""
        return lend(load_file(self.checkpoint), dtype, **types)

    def bridged(self, model: Any, clip: Any, vae: Any) -> ModelHandle:
        """What Model from ComfyUI (T2MV) gives, for small pictures."""
        residency = bridge(model, clip, vae, self.adapter)
        residency.owner.unet.register_to_config(sample_size=LATENT_PX)
        return ModelHandle(residency.owner, residency)

    def loaded(self, dtype: torch.dtype = torch.float32) -> ModelHandle:
        """What Load Model gives for the files, likewise."""
        with torch.inference_mode(False), torch.no_grad():
            bundle = load_bundle(ModelSources(str(self.checkpoint), str(self.adapter)), dtype=dtype)
        bundle.unet.register_to_config(sample_size=LATENT_PX)
        return ModelHandle(bundle, Residency(bundle, bundle.modules()))


def create_bridge_pair(folder: Path) -> BridgePair:
    """Write the files."""
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        modules = create_modules(SIZE)
        states = {part: dict(module.state_dict()) for part, module in modules.items()}
        pair = BridgePair(*(folder / f"{name}.safetensors" for name in ("small", "adapter", "lora")))
        tensors = original_checkpoint(states, SIZE)
        save_file({key: x.contiguous() for key, x in tensors.items()}, pair.checkpoint)
        unet = modules["unet"]
        install_multiview_attention(unet)
        save_adapter(unet, create_camera_encoder(unet, vae_scale_factor=2), pair.adapter)
        add_lora(unet, rank=2, alpha=3)
        for parameter in trainable_parameters(unet):
            parameter.normal_(std=0.15)
        save_lora(unet, pair.lora, {})
    return pair


def draw(handle: ModelHandle, sampler: str = "standard", **settings: Any) -> torch.Tensor:
    """The pictures of a sampler node."""
    return sample_views(sampler, handle, "a red mug", 3, **{**SETTINGS, **settings})[0]


def sample_natively(model: Any) -> torch.Tensor:
    """Latents of ComfyUI's own sampling, always from the same noise."""
    noise, words, pooled = (torch.linspace(-2, 2, n).sin() for n in (4 * 64, 5 * 192, 128))
    condition = [[words.reshape(1, 5, 192), {"pooled_output": pooled[None]}]]
    sigmas = torch.tensor([10.0, 1.0, 0.0])
    return sample(model, noise.reshape(1, 4, 8, 8), sigmas, (condition, condition), 1.0)


__all__ = [
    "RIG", "SETTINGS", "BridgePair", "ModelHandle", "bridge", "create_bridge_pair", "draw", "load_lora",
    "relative_error", "replace", "sample_natively",
]  # fmt: skip
