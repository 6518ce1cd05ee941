"""HyperScore as a joint reward: pictures of a set of views and its prompt in, four quality scores out.

The network and its equations are in hyperscore_network.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import (
    PromptCache,
    PromptTokens,
    RewardKind,
    RewardResult,
    Tokenize,
    check_request,
    prepare_images,
    read_reward_file,
)
from .hyperscore_network import HEADS, HyperScore, HyperScoreSize, TargetLayers, load_hyperscore_weights

if TYPE_CHECKING:
    from typing_extensions import Self

ARCHITECTURE = "hyperscore"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class HyperScoreReward:
    """Joint reward: `scores` is the head "overall", `details` holds all four heads, [B] each."""

    kind: RewardKind = "joint"

    def __init__(
        self, model: HyperScore, tokenize: Tokenize, name: str = "hyperscore", chunk_size: int = 8
    ) -> None:
        """Wrap a network; `chunk_size` sets of views go through it at a time."""
        self.model = model.eval().requires_grad_(False)
        self.tokens = PromptTokens(tokenize, model.size.clip.context_length, name)
        self.name, self.chunk_size = name, chunk_size
        self.cache = PromptCache()
        self._conditions: tuple[Tensor, TargetLayers] | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device; cached features are dropped."""
        self.model.to(device)
        self.cache.clear()
        self._conditions = None
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score B sets of views: pictures [B·V, 3, H, W] in [0, 1], B prompts.

        Raises:
            ValueError: pictures or prompts are not what a joint reward takes, or V is not the model's.
        """
        num_views, expected = check_request(images, prompts, self.kind), self.model.size.num_views
        if expected and num_views != expected:
            raise ValueError(
                f"{num_views} views per prompt; {self.name} scores sets of exactly {expected} views: "
                "use that camera rig or another joint reward."
            )
        device, image_px = self.model.fc_quality.weight.device, self.model.size.clip.image_px
        parts = []
        with torch.inference_mode():
            end, text = self.cache.lookup(
                prompts, lambda new: self.model.encode_prompts(self.tokens(new).to(device))
            )
            self._conditions = self._conditions or self.model.encode_conditions()
            for start in range(0, len(prompts), self.chunk_size):
                chosen = slice(start, start + self.chunk_size)
                chunk = images[start * num_views : (start + self.chunk_size) * num_views].to(device)
                pixels = prepare_images(chunk, image_px, IMAGENET_MEAN, IMAGENET_STD, mode="bilinear")
                patches = self.model.encode_views(pixels.unflatten(0, (-1, num_views)))
                parts.append(self.model.score(patches, end[chosen], text[chosen], self._conditions))
            scores = torch.cat(parts).float()
        scores = scores.clone()  # a clone made outside is an ordinary tensor again
        details = {head: scores[:, index] for index, head in enumerate(HEADS)}
        return RewardResult(details["overall"], details)


def load_hyperscore(path: Path, name: str, device: torch.device | str = "cpu") -> HyperScoreReward:
    """Load a HyperScore that this project trained and saved with its sizes in the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; the first wrong key or size is named.
    """
    from ..text import clip_tokenizer

    tensors, config = read_reward_file(path, ARCHITECTURE)
    size = HyperScoreSize.from_config(config, str(path))
    tokenize = clip_tokenizer(size.clip.vocab_size)
    model = HyperScore(size, tokenize)
    load_hyperscore_weights(model, tensors, str(path))
    return HyperScoreReward(model, tokenize, name).to(device)
