"""Training of the bundled joint-view scorer: regression of known damage, and the order of pairs of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2mv_core.rewards.hyperscore_network import HyperScore, HyperScoreSize
from t2mv_core.rewards.inputs import IMAGENET_MEAN, IMAGENET_STD, prepare_images
from t2mv_core.text import clip_tokenizer

from ..data.augmentation import move
from ..data.dataset import Dataset
from ..model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE
from ..stages.stage import Checkpointer, StageConfig, Stateful, cosine_lr, descend, update_rng
from .clip_training import TOYBOX_CLIP
from .hyperscore_start import calibrate, start_from_clip
from .reward_data import SIGNED_FACTS, SetMaker, signed_facts

NUM_UPDATES = 6000
BATCH_SCENES = 8
VISION_LR = 4e-4
HYPERNET_LR = 2e-5
OTHER_LR = 1e-3
ALIGNMENT_SLOPE = 0.003  # (mean patch ⊙ end-of-text) sums to about 40 with a spread of 16
RECONSTRUCTED = 0.3
RANKING_WEIGHT = 0.3
RANKING_SCALE = 0.1
APART_WEIGHT = 0.05
TWIN_WEIGHT = 0.5
# A gap of the targets from which on the order of two sets of a scene counts in full.
TWIN_GAP = 0.05
HIDDEN = 128
MAX_MOVE = 0.25  # of what a picture may move: views that move on their own differ in proportions, too

TOYBOX_HYPERSCORE = HyperScoreSize(
    clip=TOYBOX_CLIP,
    num_context=8,
    target_widths=(96, 64, 32, 16),
    condition_channels=32,
    condition_grid=4,
    num_views=6,
)


def train_hyperscore(
    config: StageConfig,
    datasets: Sequence[Dataset],
    clip_weights: Mapping[str, Tensor],
    view_embedding: Tensor,
) -> HyperScore:
    """Train from the single-view scorer's weights; the text tower stays frozen, as in the published model.

    Args:
        config: of the run.
        datasets: renders, and reconstructions of them if there are any.
        clip_weights: the single-view scorer's.
        view_embedding: of the views' directions, [V, width], learned beside that scorer.
    """
    torch.manual_seed(config.seed + 1)
    makers = [SetMaker(dataset, is_rendered=place == 0) for place, dataset in enumerate(datasets)]
    model, short_cuts = _create_model(config, makers[0], clip_weights, view_embedding)
    optimizer = _create_optimizer(model, short_cuts)
    parts: dict[str, Stateful] = {"model": model, "short_cuts": short_cuts, "optimizer": optimizer}
    total = 4 if config.quick else NUM_UPDATES
    checkpointer = Checkpointer(config.out_dir / "rewards" / "hyperscore_state.pt", parts)
    for update in checkpointer.updates(total, "hyperscore"):
        rng = update_rng(config.seed + 202, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, group["peak"], warmup=40)
        maker = makers[-1] if rng.random() < RECONSTRUCTED else makers[0]
        batch = draw_sets(maker, 2 if config.quick else BATCH_SCENES, rng).to(config.device)
        loss = training_loss(model, short_cuts, batch)
        descend(loss, model.parameters(), optimizer)
    return model.eval()


@dataclass(frozen=True)
class SetBatch:
    """Normalised views [B, V, 3, H, W], token ids [B, L], targets [B, 4], damage per view [B, V, 2].

    `facts` [B, V, NUM_FACTS] of what the views show. Sets 2n and 2n + 1 are of one scene.
    """

    views: Tensor
    tokens: Tensor
    targets: Tensor
    view_damage: Tensor
    facts: Tensor

    def to(self, device: str) -> SetBatch:
        """The batch on a device."""
        return SetBatch(*(getattr(self, part.name).to(device) for part in fields(self)))


def draw_sets(maker: SetMaker, num_scenes: int, rng: np.random.Generator) -> SetBatch:
    """Two differently damaged sets of each of some scenes, one after the other."""
    indices = rng.integers(len(maker.dataset.scenes), size=num_scenes)
    sets = [made for index in indices for made in maker.make_pair(int(index), rng)]
    views = torch.stack([made.views for made in sets])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    moved = move(views.flatten(0, 1), MAX_MOVE, generator)
    pixels = prepare_images(moved, IMAGE_PX, IMAGENET_MEAN, IMAGENET_STD).unflatten(0, views.shape[:2])
    targets = torch.tensor([made.targets for made in sets])
    changes = torch.stack([made.view_changes for made in sets])
    texture = (1 - targets[:, 2:3]).expand_as(changes)
    tokens = clip_tokenizer(VOCAB_SIZE)([made.prompt for made in sets], MAX_TOKENS)
    facts = torch.stack([made.facts for made in sets])
    return SetBatch(pixels, tokens, targets, torch.stack([changes, texture], dim=-1), facts)


class ShortCuts(nn.Module):
    """Heads that only training uses: through them the vision tower hears at once what the scores need.

    The damage of a view is told by the mean of its patches, also against that of all views; the alignment by
    (mean patch ⊙ end-of-text); the geometry by the mean patch of all views. The scores read such means, too,
    so they can compare views only where the patches carry what they show with the signs of CONTRASTS.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.view_damage = nn.Sequential(nn.Linear(2 * dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
        self.geometry = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.facts = nn.Linear(dim, SIGNED_FACTS)
        self.alignment = nn.Linear(dim, 1)
        nn.init.constant_(self.alignment.weight, ALIGNMENT_SLOPE)  # CLIP's own similarity to begin with

    def loss(self, patches: Tensor, end: Tensor, batch: SetBatch) -> Tensor:
        """Squared errors, for patches [B, V·P, d] and end-of-text features [B, d]."""
        views = patches.unflatten(1, (batch.views.shape[1], -1)).mean(dim=2)
        mean = views.mean(dim=1)
        of_views = self.view_damage(torch.cat([views, views - mean[:, None]], dim=-1))
        alignment, geometry = self.alignment(mean * end)[:, 0], self.geometry(mean)[:, 0]
        facts = signed_facts(batch.facts, torch.arange(batch.facts.shape[1], device=mean.device))
        return (
            F.mse_loss(of_views, batch.view_damage)
            + F.mse_loss(alignment, batch.targets[:, 0])
            + F.mse_loss(geometry, batch.targets[:, 1])
            + F.mse_loss(self.facts(views), facts)
        )


def training_loss(model: HyperScore, short_cuts: ShortCuts, batch: SetBatch) -> Tensor:
    """The scores' loss, the short cuts to it, and a push that keeps the four conditions apart."""
    end, text = model.encode_prompts(batch.tokens)
    patches, conditions = model.encode_views(batch.views), model.encode_conditions()
    scores = model.score(patches, end, text, conditions)
    loss = set_loss(scores, batch.targets) + twin_loss(scores, batch.targets)
    return loss + short_cuts.loss(patches, end, batch) + APART_WEIGHT * _closeness(conditions[0])


def set_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Squared error plus a logistic loss on the order of all pairs, weighted by their gap; [B, 4] each."""
    gap = targets[:, None] - targets[None]
    answer = scores[:, None] - scores[None]
    wrong_order = F.softplus(-gap.sign() * answer / RANKING_SCALE)
    ranking = (wrong_order * gap.abs()).sum() / gap.abs().sum().clamp_min(1e-6)
    return F.mse_loss(scores, targets) + RANKING_WEIGHT * RANKING_SCALE * ranking


def twin_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Logistic loss on the order of the two sets of each scene, however small their gap; [B, 4] each.

    Other proportions make a small gap, which the squared error and the pairs of other scenes drown.
    """
    gap, answer = (x[0::2] - x[1::2] for x in (targets, scores))
    weight = (gap.abs() / TWIN_GAP).clamp_max(1)
    wrong_order = F.softplus(-gap.sign() * answer / RANKING_SCALE)
    return TWIN_WEIGHT * RANKING_SCALE * (wrong_order * weight).sum() / weight.sum().clamp_min(1)


def _closeness(conditions: Tensor) -> Tensor:
    """Mean positive cosine between different conditions: each is to ask for something else."""
    unit = F.normalize(conditions, dim=-1)
    row, column = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit[row] * unit[column]).sum(dim=-1).relu().mean()


def _create_model(
    config: StageConfig, maker: SetMaker, clip_weights: Mapping[str, Tensor], view_embedding: Tensor
) -> tuple[HyperScore, ShortCuts]:
    """The network at its start, and the heads that only training uses."""
    model = HyperScore(TOYBOX_HYPERSCORE, clip_tokenizer(VOCAB_SIZE)).to(config.device)
    start_from_clip(model, clip_weights, view_embedding)
    batch = draw_sets(maker, 2 if config.quick else 4 * BATCH_SCENES, update_rng(config.seed, 0)).to(
        config.device
    )
    calibrate(model, batch.views, batch.tokens)
    model.text_encoder.requires_grad_(False)
    model.clip_model.token_embedding.requires_grad_(False)
    model.clip_model.logit_scale.requires_grad_(False)
    return model, ShortCuts(TOYBOX_CLIP.embed_dim).to(config.device)


def _create_optimizer(model: HyperScore, short_cuts: ShortCuts) -> torch.optim.Optimizer:
    """Adam with slow steps for the hypernetwork: a target weight adds up hundreds of its weights."""
    vision = [*model.clip_model.visual.parameters()]
    if model.view_embedding is not None:
        vision.append(model.view_embedding)
    maker = [*model.hypernet.parameters(), *model.fc_condition.parameters()]
    rest = [model.prompt_learner.ctx, *model.fc_quality.parameters(), *short_cuts.parameters()]
    groups = [
        {"params": parameters, "peak": peak}
        for parameters, peak in ((vision, VISION_LR), (maker, HYPERNET_LR), (rest, OTHER_LR))
    ]
    return torch.optim.AdamW(groups, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.01)
