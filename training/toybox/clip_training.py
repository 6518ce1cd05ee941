"""Training of the bundled single-view scorer: contrastive, with nearly true captions in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from t2mv_core.rewards.base import prepare_images
from t2mv_core.rewards.clip_score import OPENAI_MEAN, OPENAI_STD, ClipSize
from t2mv_core.text import clip_tokenizer

from .augmentation import augment
from .captions import PromptSpec
from .dataset import Dataset
from .model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE
from .reward_data import describe, falsify, truth_table
from .scenes import Scene
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, update_rng

if TYPE_CHECKING:
    from open_clip.model import CLIP

NUM_UPDATES = 520
BATCH_VIEWS = 128
PEAK_LR = 1.5e-3
RECONSTRUCTED = 0.3
LIES = ("family", "colour", "colour", "part", "swap")
MAX_LOGIT_SCALE = 100.0

TOYBOX_CLIP = ClipSize(
    embed_dim=128,
    image_px=IMAGE_PX,
    patch_px=8,
    vision_width=96,
    vision_layers=4,
    vision_heads=4,
    vocab_size=VOCAB_SIZE,
    context_length=MAX_TOKENS,
    text_width=64,
    text_layers=3,
    text_heads=4,
    quick_gelu=False,
)


def train_clip(config: StageConfig, datasets: Sequence[Dataset]) -> CLIP:
    """Train on renders (first dataset) and reconstructions (second, if any); resumes after a kill."""
    torch.manual_seed(config.seed)
    model = TOYBOX_CLIP.build().to(config.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    total = 6 if config.quick else NUM_UPDATES
    for update in Checkpointer(config.out_dir / "rewards" / "clip_state.pt", parts).updates(total, "clip"):
        rng = update_rng(config.seed + 101, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR, warmup=40)
        dataset = datasets[-1] if rng.random() < RECONSTRUCTED else datasets[0]
        pixels, specs, scenes = draw_batch(dataset, 16 if config.quick else BATCH_VIEWS, rng)
        tokens = clip_tokenizer(VOCAB_SIZE)([spec.prompt for spec in specs], MAX_TOKENS)
        pixels = prepare_images(pixels, IMAGE_PX, OPENAI_MEAN, OPENAI_STD)
        logits, _ = model.get_logits(pixels.to(config.device), tokens.to(config.device))
        loss = contrastive_loss(logits, truth_table(specs, scenes).to(config.device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
    return model.eval()


def draw_batch(
    dataset: Dataset, count: int, rng: np.random.Generator
) -> tuple[Tensor, list[PromptSpec], list[Scene]]:
    """Augmented views [n, 3, H, W] of n scenes, n true and n false descriptions, and the scenes."""
    chosen = rng.choice(len(dataset.scenes), count, replace=count > len(dataset.scenes))
    images = dataset.images[chosen, rng.integers(dataset.images.shape[1], size=count)]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    scenes = [dataset.scenes[i] for i in chosen]
    specs = [describe(scene, rng) for scene in scenes]
    specs += [falsify(spec, LIES[int(rng.integers(len(LIES)))], rng) for spec in specs]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return augment(pixels, generator), specs, scenes


def contrastive_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """InfoNCE in both directions: −log of the probability on all true pairs of a row or column.

    Args:
        logits: scaled cosines, [pictures, captions].
        is_true: whether the caption is true of the picture, same shape; each picture has a true caption.
            Captions that are true of no picture count as negatives only.
    """
    kept = logits.masked_fill(~is_true, float("-inf"))
    by_picture = logits.logsumexp(dim=1) - kept.logsumexp(dim=1)
    captions = is_true.any(dim=0)
    by_caption = (logits.logsumexp(dim=0) - kept.logsumexp(dim=0))[captions]
    return (by_picture.mean() + by_caption.mean()) / 2
