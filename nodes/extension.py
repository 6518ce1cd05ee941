"""The list of nodes this pack gives to ComfyUI.

A node is a thin skin over t2mv_core: a schema, conversion of units, one call into the core. The folders
follow ComfyUI's menu; `sockets.py` has what travels between nodes, `common` what they share.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .cameras.create_rig import T2MVCreateCameraData, T2MVCreateCameraRig
from .common.folders import register_folders
from .loaders.load_lora import T2MVLoadLoRA
from .loaders.load_model import T2MVLoadModel
from .loaders.load_reward import T2MVLoadReward
from .native.adapter import T2MVApplyAdapter
from .native.guidance import T2MVEmbedGuidance
from .native.latent import T2MVEmptyLatent
from .native.load_lora import T2MVLoadLoRANative
from .native.schedule import T2MVShiftSNR
from .native.zigzag.node import T2MVCreateZigzagSampler
from .objects.create_mesh import T2MVCreateMesh
from .objects.project_views import T2MVProjectViews
from .sampling.best_of import T2MVSampleBest
from .sampling.read_image import T2MVReadImage
from .sampling.sample import T2MVSampleStandard, T2MVSampleZMV
from .scoring.score import T2MVScoreViews
from .train.node import T2MVTrainLoRA
from .views.contact_sheet import T2MVCreateContactSheet
from .views.split import T2MVSplitViews
from .views.turntable import T2MVCreateTurntable

NODE_CLASSES: tuple[type[io.ComfyNode], ...] = (
    T2MVLoadModel,
    T2MVLoadLoRA,
    T2MVTrainLoRA,
    T2MVCreateCameraRig,
    T2MVReadImage,
    T2MVSampleStandard,
    T2MVSampleZMV,
    T2MVSampleBest,
    T2MVCreateZigzagSampler,
    T2MVLoadReward,
    T2MVScoreViews,
    T2MVCreateContactSheet,
    T2MVSplitViews,
    T2MVCreateTurntable,
    T2MVCreateMesh,
    T2MVProjectViews,
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
        """Return every node class, in menu order; the folders that their inputs list are registered first."""
        register_folders()
        return list(NODE_CLASSES)
