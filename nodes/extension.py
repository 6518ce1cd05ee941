"""The list of nodes this pack gives to ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .best_of import T2MVSampleBest
from .cameras import T2MVCreateCameraData, T2MVCreateCameraRig
from .folders import register_folders
from .loaders import T2MVLoadModel
from .lora_loader import T2MVLoadLoRA
from .native_adapter import T2MVApplyAdapter
from .native_guidance import T2MVEmbedGuidance
from .native_latent import T2MVEmptyLatent
from .native_lora_loader import T2MVLoadLoRANative
from .native_schedule import T2MVShiftSNR
from .reward_loader import T2MVLoadReward
from .sampling import T2MVSampleStandard, T2MVSampleZMV
from .scoring import T2MVScoreViews
from .split import T2MVSplitViews
from .train import T2MVTrainLoRA
from .turntable import T2MVCreateTurntable
from .view import T2MVCreateContactSheet
from .zigzag import T2MVCreateZigzagSampler

NODE_CLASSES: tuple[type[io.ComfyNode], ...] = (
    T2MVLoadModel,
    T2MVLoadLoRA,
    T2MVTrainLoRA,
    T2MVCreateCameraRig,
    T2MVSampleStandard,
    T2MVSampleZMV,
    T2MVSampleBest,
    T2MVCreateZigzagSampler,
    T2MVLoadReward,
    T2MVScoreViews,
    T2MVCreateContactSheet,
    T2MVSplitViews,
    T2MVCreateTurntable,
    T2MVCreateCameraData,
    T2MVApplyAdapter,
    T2MVLoadLoRANative,
    T2MVShiftSNR,
    T2MVEmbedGuidance,
    T2MVEmptyLatent,
)


class T2MVExtension(ComfyExtension):
    """What ComfyUI asks for its nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node class, in menu order; the folders that their inputs list are registered first."""
        register_folders()
        return list(NODE_CLASSES)
