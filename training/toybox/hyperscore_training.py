"""Training of the bundled joint-view scorer: regression of known damage, and the order of pairs of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t2mv_core.rewards.base import prepare_images
from t2mv_core.rewards.hyperscore import IMAGENET_MEAN, IMAGENET_STD
from t2mv_core.rewards.hyperscore_network import HyperScore, HyperScoreSize
from t2mv_core.text import clip_tokenizer

from .augmentation import move
from .clip_training import TOYBOX_CLIP
from .dataset import Dataset
from .model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE
from .reward_data import SetMaker
from .stage import Checkpointer, StageConfig, Stateful, cosine_lr, update_rng

NUM_UPDATES = 640
BATCH_SCENES = 8
SETS_PER_SCENE = 2
PEAK_LR = 1e-3
CLIP_LR_SHARE = 0.6
RECONSTRUCTED = 0.3
RANKING_WEIGHT = 0.3
RANKING_SCALE = 0.1
APART_WEIGHT = 0.05

TOYBOX_HYPERSCORE = HyperScoreSize(
    clip=TOYBOX_CLIP,
    num_context=8,
    target_widths=(64, 32, 16, 8),
    condition_channels=32,
    condition_grid=4,
    num_views=6,
)


def train_hyperscore(
    config: StageConfig, datasets: Sequence[Dataset], clip_weights: Mapping[str, Tensor]
) -> HyperScore:
    """Train from the single-view scorer's weights; the text tower stays frozen, as in the published model."""
    torch.manual_seed(config.seed + 1)
    model = HyperScore(TOYBOX_HYPERSCORE, clip_tokenizer(VOCAB_SIZE)).to(config.device)
    model.clip_model.load_state_dict(dict(clip_weights))
    model.prompt_learner.read_embedding(model.clip_model)
    optimizer = _create_optimizer(model)
    makers = [SetMaker(dataset) for dataset in datasets]
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    total = 4 if config.quick else NUM_UPDATES
    for update in Checkpointer(config.out_dir / "rewards" / "hyperscore_state.pt", parts).updates(
        total, "hyperscore"
    ):
        rng = update_rng(config.seed + 202, update)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * cosine_lr(update, total, PEAK_LR, warmup=40)
        maker = makers[-1] if rng.random() < RECONSTRUCTED else makers[0]
        views, prompts, targets = draw_sets(maker, 2 if config.quick else BATCH_SCENES, rng)
        tokens = clip_tokenizer(VOCAB_SIZE)(prompts, MAX_TOKENS).to(config.device)
        loss = set_loss(model(views.to(config.device), tokens), targets.to(config.device))
        loss = loss + APART_WEIGHT * _closeness(model.encode_conditions()[0])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def draw_sets(maker: SetMaker, num_scenes: int, rng: np.random.Generator) -> tuple[Tensor, list[str], Tensor]:
    """Two differently damaged sets of each of some scenes: [B, V, 3, H, W], prompts, targets [B, 4]."""
    indices = rng.integers(len(maker.dataset.scenes), size=num_scenes).repeat(SETS_PER_SCENE)
    sets = [maker.make(int(index), rng) for index in indices]
    views = torch.stack([made.views for made in sets])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    moved = move(views.flatten(0, 1), 0.5, generator)
    pixels = prepare_images(moved, IMAGE_PX, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, views.shape[:2])
    return pixels, [made.prompt for made in sets], torch.tensor([made.targets for made in sets])


def set_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Squared error plus a logistic loss on the order of all pairs, weighted by their gap; [B, 4] each."""
    gap = targets[:, None] - targets[None]
    answer = scores[:, None] - scores[None]
    wrong_order = F.softplus(-gap.sign() * answer / RANKING_SCALE)
    ranking = (wrong_order * gap.abs()).sum() / gap.abs().sum().clamp_min(1e-6)
    return F.mse_loss(scores, targets) + RANKING_WEIGHT * RANKING_SCALE * ranking


def _closeness(conditions: Tensor) -> Tensor:
    """Mean positive cosine between different conditions: each is to ask for something else."""
    unit = F.normalize(conditions, dim=-1)
    row, column = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit[row] * unit[column]).sum(dim=-1).relu().mean()


def _create_optimizer(model: HyperScore) -> torch.optim.Optimizer:
    model.text_encoder.requires_grad_(False)
    model.clip_model.token_embedding.requires_grad_(False)
    model.clip_model.logit_scale.requires_grad_(False)
    vision = list(model.clip_model.visual.parameters())
    known = {id(parameter) for parameter in vision}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": vision, "share": CLIP_LR_SHARE}, {"params": rest, "share": 1.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
