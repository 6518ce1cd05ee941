"""Stage `rewards`: train the single-view and the joint-view scorer, export and measure them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.rewards import clip_score, hyperscore
from t2mv_core.rewards.hyperscore_network import weights_to_save

from ..data.dataset import load_dataset
from ..rewards.clip_training import TOYBOX_CLIP, train_clip
from ..rewards.hyperscore_training import TOYBOX_HYPERSCORE, train_hyperscore
from ..rewards.reward_report import clip_figures, hyperscore_figures
from .export import half
from .reconstructions import load_reconstructions
from .stage import StageConfig

logger = logging.getLogger(__name__)

NUM_TEST_SCENES = 300


def run(config: StageConfig) -> None:
    """Train both scorers (each resumes by itself); write fp16 weights and figures to `export/rewards`."""
    rewards_dir = config.export_dir / "rewards"
    clip_path, hyperscore_path = rewards_dir / "clip.safetensors", rewards_dir / "hyperscore.safetensors"
    dataset = load_dataset(config.data_dir, limit=40 if config.quick else None)
    reconstructed = load_reconstructions(config, dataset)
    datasets = [dataset] if reconstructed is None else [dataset, reconstructed]
    clip, view_embedding = train_clip(config, datasets)
    export(clip.state_dict(), clip_path, clip_score.ARCHITECTURE, json.dumps(asdict(TOYBOX_CLIP)))
    tensors, _ = read_safetensors(clip_path)
    model = train_hyperscore(config, datasets, tensors, view_embedding)
    export(weights_to_save(model), hyperscore_path, hyperscore.ARCHITECTURE, TOYBOX_HYPERSCORE.to_json())
    report(config, clip_path, hyperscore_path)


def export(tensors: Mapping[str, Tensor], path: Path, architecture: str, config: str) -> None:
    """Save weights in half precision with their sizes in the metadata, atomically."""
    write_safetensors(half(tensors), path, {"architecture": architecture, "config": config})


def report(config: StageConfig, clip_path: Path, hyperscore_path: Path) -> None:
    """Measure the exported files as they will be used; the figures go beside them."""
    num_scenes = 3 if config.quick else NUM_TEST_SCENES
    test = load_dataset(config.test_data_dir, limit=num_scenes if config.quick else None)
    figures = {
        "clip": clip_figures(clip_score.load_clip_score(clip_path).to(config.device), test, num_scenes),
        "hyperscore": hyperscore_figures(
            hyperscore.load_hyperscore(hyperscore_path).to(config.device), test, num_scenes
        ),
    }
    logger.info("held-out figures: %s", figures)
    (clip_path.parent / "metrics.json").write_text(json.dumps(figures, indent=1))
