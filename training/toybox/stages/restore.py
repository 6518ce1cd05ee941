"""Stage `restore`: the bundled weights in the place of finished stages.

With it the stages behind `lcm` (a new adapter task, `lcm_lora`, `aware`, `evaluate`) run from a clone,
without the hours before them. It needs `render`. What it writes can be used, not trained further: a run that
is to be continued starts from nothing.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from t2mv_core.bundle import ModelBundle
from t2mv_core.formats.atomic import replaced
from t2mv_core.toybox import TOYBOX_DIR

from ..data.dataset import load_dataset
from . import vae as vae_stage
from .evaluate import load_models
from .lcm import EMA_DECAY, create_student
from .networks import MultiviewNetworks, SingleViewNetworks, create_average
from .stage import StageConfig

logger = logging.getLogger(__name__)

PARTS = ("unet", "text_encoder", "text_encoder_2", "camera_encoder")


def run(config: StageConfig) -> None:
    """Write what the stages vae, base, adapter, lcm, rewards, judge and export leave; keeps what is there."""
    student, teacher = load_models(TOYBOX_DIR, "cpu")
    networks = take(MultiviewNetworks(), teacher)
    base = SingleViewNetworks()
    base.load_state_dict({name: networks.state_dict()[name] for name in base.state_dict()})
    distilled = create_student(base)
    own = student.unet.state_dict()
    distilled.unet.load_state_dict({name: own[name].float() for name in distilled.unet.state_dict()})
    averages = {
        "base": create_average(base),
        "adapter": create_average(nn.ParameterList(networks.adapter_parameters())),
        "lcm": create_average(distilled, EMA_DECAY),
    }
    for stage, average in averages.items():
        save_average(average, config.out_dir / stage / "state.pt")
    restore_vae(config, teacher)
    for part in ("model", "teacher", "rewards", "judge"):
        shutil.copytree(TOYBOX_DIR / part, config.export_dir / part, dirs_exist_ok=True)
    for path in TOYBOX_DIR.glob("*.*"):
        if path.suffix in (".safetensors", ".json"):
            shutil.copy2(path, config.export_dir / path.name)


def take(networks: MultiviewNetworks, bundle: ModelBundle) -> MultiviewNetworks:
    """Give networks a bundle's weights, in float32."""
    for part in PARTS:
        weights = getattr(bundle, part).state_dict()
        getattr(networks, part).load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return networks


def save_average(average: nn.Module, path: Path) -> None:
    """Write a running average as a finished stage's checkpoint, unless there is one."""
    if path.exists():
        logger.info("%s is there already.", path)
        return
    with replaced(path) as temporary:
        torch.save({"parts": {"average": average.state_dict()}}, temporary)


def restore_vae(config: StageConfig, bundle: ModelBundle) -> None:
    """Save the VAE, encode the training renders with it, and measure it; skips latents that are there."""
    vae = bundle.vae.float().eval()
    vae.save_pretrained(config.out_dir / "vae")
    if not (config.out_dir / "latents.npy").exists():
        images: np.ndarray = load_dataset(config.data_dir).images
        vae_stage.encode_dataset(vae, images, config.out_dir / "latents.npy")
    vae_stage.report(vae, config)
