"""The model section of a training configuration."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .sections import require, require_choice, require_positive


@dataclass(frozen=True)
class BaseLoraConfig:
    """A LoRA that belongs to the base: it acts in training as without, and is not changed."""

    path: str = ""
    """Its file (.safetensors), in any layout that Load LoRA takes, from where the trainer is started."""
    strength: float = 1.0
    """Factor on its effect."""

    def __post_init__(self) -> None:
        """Check name and range."""
        require(
            self.path.endswith(".safetensors"),
            f"model.base_loras: path={self.path!r} must be a LoRA file (.safetensors).",
        )
        require(
            math.isfinite(self.strength),
            f"model.base_loras: strength={self.strength} of {self.path} must be a finite number.",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The base model and the LoRA that is trained on it."""

    name: str = "toybox"
    """"toybox", "toybox-teacher", "lcm-sdxl", "sdxl", a local diffusers folder or a Hub id."""
    unet: str | None = None
    """UNet of another folder or Hub id in place of the model's own, such as LCM-SDXL's; none: its own."""
    scheduler: str | None = None
    """Scheduler configuration of another folder or Hub id, likewise."""
    solver: str | None = None
    """How the model is sampled: "lcm" (LCM-LoRA), "ddim-trailing" (Turbo, Lightning, Hyper-SD) or "ddim";
    none: as its files say. A few-step LoRA needs one: its file says nothing of it."""
    base_loras: tuple[BaseLoraConfig, ...] = ()
    """LoRAs under the trained one, frozen: a few-step LoRA makes SDXL the student that is trained."""
    adapter: str | None = None
    """MV-Adapter file or Hub id; none when the model brings its own (the toybox does)."""
    allow_download: bool = False
    """Whether a Hub id may be fetched over the network."""
    dtype: str = "fp32"
    """Precision of the frozen base weights: fp32, bf16 or fp16. The LoRA is always fp32."""
    device: str = "auto"
    """"auto" takes a GPU when there is one; otherwise "cpu", "cuda", "cuda:1", ..."""
    lora_rank: int = 16
    """Rank of every LoRA pair."""
    lora_alpha: float = 16.0
    """The LoRA is scaled by alpha / rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time per update."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.solver is not None:
            require_choice("model.solver", self.solver, ("lcm", "ddim", "ddim-trailing"))
        require_choice("model.dtype", self.dtype, ("fp32", "bf16", "fp16"))
        require(
            re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None,
            f"model.device={self.device!r} is not known; use auto, cpu, mps, cuda or cuda:1.",
        )
        require_positive("model", lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
