"""Training of the bundled single-view scorer: contrastive, with nearly true captions in every batch.

On the side its vision tower learns about directions and proportions, for the joint-view scorer that starts
from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2mv_core.rewards.clip_score import ClipSize
from t2mv_core.rewards.inputs import OPENAI_MEAN, OPENAI_STD, prepare_images
from t2mv_core.text import clip_tokenizer
from t2mv_core.toybox.prompt_lists import PromptSpec

from ..data.augmentation import augment
from ..data.dataset import Dataset
from ..model import IMAGE_PX, MAX_TOKENS, VOCAB_SIZE
from ..stages.stage import Checkpointer, StageConfig, Stateful, cosine_lr, descend, update_rng
from .lies import describe, falsify, possible_lies, truth_table
from .reward_data import SIGNED_FACTS, signed_facts, view_facts, visible_change

if TYPE_CHECKING:
    from open_clip.model import CLIP

NUM_UPDATES = 1600
BATCH_VIEWS = 128
PEAK_LR = 1.5e-3
RECONSTRUCTED = 0.3
LIES = {"family": 1, "colour": 2, "part": 2, "companion": 2, "swap": 2}
MAX_LOGIT_SCALE = 100.0
UNCLAIMED = 0.5
RIGHTLY_CLAIMED = 0.4
VIEW_SPREAD = 0.1
NO_CLAIM = -1

TOYBOX_CLIP = ClipSize(
    embed_dim=96,
    image_px=IMAGE_PX,
    patch_px=16,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    vocab_size=VOCAB_SIZE,
    context_length=MAX_TOKENS,
    text_width=96,
    text_layers=2,
    text_heads=4,
    quick_gelu=False,
    image_pool="avg",  # so that patches lie where pictures lie: HyperScore reads patches
)


def train_clip(config: StageConfig, datasets: Sequence[Dataset]) -> tuple[CLIP, Tensor]:
    """Train on renders (first dataset) and reconstructions (second, if any); resumes after a kill.

    Returns:
        The scorer, and the embeddings of the views' directions [V, width], with which the joint-view scorer
        starts (see `ViewTasks`).
    """
    torch.manual_seed(config.seed)
    model = TOYBOX_CLIP.build().to(config.device)
    tasks = ViewTasks(model.visual, datasets[0].images.shape[1]).to(config.device)
    weights = [*model.parameters(), *tasks.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    parts: dict[str, Stateful] = {"model": model, "tasks": tasks, "optimizer": optimizer}
    total = 6 if config.quick else NUM_UPDATES
    for update in Checkpointer(config.out_dir / "rewards" / "clip_state.pt", parts).updates(total, "clip"):
        rng = update_rng(config.seed + 101, update)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(update, total, PEAK_LR, warmup=40)
        dataset = datasets[-1] if rng.random() < RECONSTRUCTED else datasets[0]
        batch = draw_batch(dataset, 16 if config.quick else BATCH_VIEWS, rng).to(config.device)
        with tasks.claiming(batch.claims):
            logits, _ = model.get_logits(batch.pixels, batch.tokens)
        loss = contrastive_loss(logits, batch.is_true) + tasks.loss(batch)
        descend(loss, weights, optimizer)
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(MAX_LOGIT_SCALE)))
    return model.eval(), tasks.view_embedding.detach()


@dataclass(frozen=True)
class ViewBatch:
    """n single views with 2n descriptions.

    Attributes:
        pixels: normalised pictures, [n, 3, px, px].
        tokens: of n true and n false descriptions, [2n, L].
        is_true: which description is true of which picture, [n, 2n].
        views: the direction each picture shows, [n].
        claims: the direction it is said to show, [n]; NO_CLAIM where nothing is said.
        changes: how far it is from what its scene looks like from the claimed direction, [n] in [0, 1].
        facts: of what it shows, [n, NUM_FACTS].
    """

    pixels: Tensor
    tokens: Tensor
    is_true: Tensor
    views: Tensor
    claims: Tensor
    changes: Tensor
    facts: Tensor

    def to(self, device: str) -> ViewBatch:
        """The batch on a device."""
        return ViewBatch(*(getattr(self, part.name).to(device) for part in fields(self)))


class ViewTasks(nn.Module):
    """What the vision tower learns about directions and objects, for the joint-view scorer's sake.

    That scorer gets the direction that each picture is said to show, as an embedding added to its tokens, and
    has to see when it shows another. Learned from whole sets alone this takes it too long. So here the layer
    before the last has to tell the direction, and the last one whether a claim is right, and what opposite
    views have in common, with a sign by the claim: so can that scorer compare views although it adds them up.
    """

    def __init__(self, visual: Any, num_views: int) -> None:
        super().__init__()
        width = TOYBOX_CLIP.vision_width
        self.view_embedding = nn.Parameter(VIEW_SPREAD * torch.randn(num_views, width))
        self.azimuth = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_views))
        self.change = nn.Linear(width, 1)
        self.facts = nn.Linear(width, SIGNED_FACTS)
        self._visual = (visual,)  # in a tuple: the tower is not a part of this module
        self._middle = self._last = torch.empty(0)

    @contextmanager
    def claiming(self, claims: Tensor) -> Iterator[None]:
        """Add the claims' embeddings to the pictures that go through the tower inside the block."""
        visual, added = self._visual[0], self.view_embedding[claims.clamp_min(0)]
        added = (added * (claims != NO_CLAIM)[:, None])[:, None]

        blocks = visual.transformer.resblocks
        tokens_dim = 1 if blocks[0].attn.batch_first else 0  # before open_clip 2.27 the sequence came first

        def keep_middle(_: nn.Module, inputs: Any, output: Tensor) -> None:
            self._middle = output.mean(dim=tokens_dim)

        def keep_last(_: nn.Module, inputs: Any, output: Tensor) -> None:
            self._last = output[:, 1:].mean(dim=1)

        handles = [
            visual.ln_pre.register_forward_pre_hook(lambda _, inputs: inputs[0] + added),
            blocks[-2].register_forward_hook(keep_middle),
            visual.ln_post.register_forward_hook(keep_last),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, batch: ViewBatch) -> Tensor:
        """Cross-entropy of the direction where nothing was claimed, of the visible change where it was.

        Where it was, also the squared error of the signed facts.
        """
        is_claimed = batch.claims != NO_CLAIM
        azimuth = F.cross_entropy(self.azimuth(self._middle[~is_claimed]), batch.views[~is_claimed])
        change = self.change(self._last[is_claimed])[:, 0]
        claims = F.binary_cross_entropy_with_logits(change, batch.changes[is_claimed])
        facts = signed_facts(batch.facts[is_claimed], batch.claims[is_claimed])
        return azimuth + claims + F.mse_loss(self.facts(self._last[is_claimed]), facts)


def draw_batch(dataset: Dataset, count: int, rng: np.random.Generator) -> ViewBatch:
    """Augmented views of `count` scenes, what is true and false of them, claims about directions."""
    chosen = rng.choice(len(dataset.scenes), count, replace=count > len(dataset.scenes))
    num_views = dataset.images.shape[1]
    views = rng.integers(num_views, size=count)
    claims = np.where(rng.random(count) < RIGHTLY_CLAIMED, views, rng.integers(num_views, size=count))
    shown, claimed = (
        dataset.images[chosen, which].astype(np.float32) / np.float32(255) for which in (views, claims)
    )
    shapes = dataset.silhouettes[chosen, views] | dataset.silhouettes[chosen, claims]
    changes = visible_change(claimed, shown, shapes)
    claims[: max(1, int(UNCLAIMED * count))] = NO_CLAIM
    scenes = [dataset.scenes[i] for i in chosen]
    specs = [describe(scene, rng) for scene in scenes]
    specs += [_draw_lie(spec, rng) for spec in specs]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    pixels = augment(torch.from_numpy(shown).permute(0, 3, 1, 2), generator)
    return ViewBatch(
        prepare_images(pixels, IMAGE_PX, OPENAI_MEAN, OPENAI_STD),
        clip_tokenizer(VOCAB_SIZE)([spec.prompt for spec in specs], MAX_TOKENS),
        truth_table(specs, scenes),
        torch.from_numpy(views),
        torch.from_numpy(claims),
        torch.from_numpy(changes),
        torch.from_numpy(view_facts(shown, dataset.silhouettes[chosen, views])),
    )


def _draw_lie(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    """A description that is false in one way, drawn by the weights of LIES among the possible ones."""
    kinds = possible_lies(spec)
    weights = np.array([LIES[kind] for kind in kinds])
    return falsify(spec, kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))], rng)


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
