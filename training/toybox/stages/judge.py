"""Stage `judge`: train the independent judge on single views, export it, measure it on held-out scenes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t2mv_core.toybox.judge import Judge, load_judge, save_judge
from t2mv_core.toybox.prompt_lists import PromptSpec

from ..data.augmentation import augment
from ..data.dataset import Dataset, load_dataset
from ..data.scenes import COLOURS, FAMILIES
from .networks import fast_autocast
from .reconstructions import load_reconstructions
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, update_rng

logger = logging.getLogger(__name__)

NUM_UPDATES = 1500
BATCH_VIEWS = 160
PEAK_LR = 3e-3
RECONSTRUCTED = 0.3
# The judge shares no seed with the rewards, which use the run's own.
SEED_OFFSET = 70_001


def run(config: StageConfig) -> None:
    """Train (resumes after a kill), write fp16 weights to `export/judge` with the figures beside them."""
    dataset = load_dataset(config.data_dir, limit=40 if config.quick else None)
    reconstructed = load_reconstructions(config, dataset)
    judge = train(config, [dataset] if reconstructed is None else [dataset, reconstructed])
    path = config.export_dir / "judge" / "judge.safetensors"
    save_judge(judge, path)
    test = load_dataset(config.test_data_dir, limit=3 if config.quick else None)
    figures = measure(load_judge(path).to(config.device), test)
    logger.info("held-out figures: %s", figures)
    (path.parent / "metrics.json").write_text(json.dumps(figures, indent=1))


def train(config: StageConfig, datasets: Sequence[Dataset]) -> Judge:
    """Cross-entropy of the three heads on augmented renders and, where there are any, reconstructions."""
    torch.manual_seed(config.seed + SEED_OFFSET)
    num_azimuths = datasets[0].images.shape[1]
    judge = Judge(list(FAMILIES), list(COLOURS), num_azimuths)
    judge = judge.to(memory_format=torch.channels_last).to(config.device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=PEAK_LR, weight_decay=0.05)
    parts: dict[str, Stateful] = {"model": judge, "optimizer": optimizer}
    total = 6 if config.quick else NUM_UPDATES
    labels = [scene_labels(dataset) for dataset in datasets]
    for update in Checkpointer(config.out_dir / "judge" / "state.pt", parts).updates(total, "judge"):
        rng = update_rng(config.seed + SEED_OFFSET, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR)
        which = len(datasets) - 1 if rng.random() < RECONSTRUCTED else 0
        pixels, answers = _draw(datasets[which], labels[which], 16 if config.quick else BATCH_VIEWS, rng)
        judge.train()
        with fast_autocast(config.device):
            logits = judge(pixels.to(config.device, memory_format=torch.channels_last))
        loss = torch.stack(
            [F.cross_entropy(x.float(), y.to(config.device)) for x, y in zip(logits, answers.T, strict=True)]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 2.0)
        optimizer.step()
    return judge.eval()


def scene_labels(dataset: Dataset) -> NDArray[np.int64]:
    """Numbers of family and colour of every scene, [N, 2]."""
    families, colours = list(FAMILIES), list(COLOURS)
    return np.array([[families.index(scene.family), colours.index(scene.colour)] for scene in dataset.scenes])


def _draw(
    dataset: Dataset, labels: NDArray[np.int64], count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented views [n, 3, H, W] and their family, colour and azimuth, [n, 3]."""
    scenes = rng.integers(len(labels), size=count)
    views = rng.integers(dataset.images.shape[1], size=count)
    pixels = torch.from_numpy(dataset.images[scenes, views]).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    answers = np.concatenate([labels[scenes], views[:, None]], axis=1)
    return augment(pixels, generator), torch.from_numpy(answers)


def measure(judge: Judge, dataset: Dataset, chunk_scenes: int = 16) -> dict[str, object]:
    """Accuracy on a dataset: sets for family and colour, views for the azimuth, and the weakest families."""
    verdicts = []
    for start in range(0, len(dataset.scenes), chunk_scenes):
        scenes = dataset.scenes[start : start + chunk_scenes]
        images = (
            torch.from_numpy(dataset.images[start : start + chunk_scenes]).permute(0, 1, 4, 2, 3).float()
            / 255
        )
        verdicts.append(
            judge.judge_views(images, [PromptSpec(s.caption, s.family, s.colour) for s in scenes])
        )
    family = torch.cat([verdict.family for verdict in verdicts]).float()
    colour = torch.cat([verdict.colour for verdict in verdicts]).float()
    azimuth = torch.cat([verdict.azimuth for verdict in verdicts]).float().mean(dim=1)
    names = np.array([scene.family for scene in dataset.scenes])
    asymmetric = torch.tensor([FAMILIES[name].is_asymmetric for name in names])
    per_family = {
        name: {
            "family": float(family[names == name].mean()),
            "colour": float(colour[names == name].mean()),
            "azimuth": float(azimuth[names == name].mean()),
            "is_asymmetric": FAMILIES[name].is_asymmetric,
        }
        for name in sorted(set(names))
    }
    return {
        "num_scenes": len(names),
        "family": float(family.mean()),
        "colour": float(colour.mean()),
        "azimuth_asymmetric": float(azimuth[asymmetric].mean()),
        "family_asymmetric": float(family[asymmetric].mean()),
        "colour_asymmetric": float(colour[asymmetric].mean()),
        "per_family": per_family,
    }
