"""HyperScore as a joint reward: pictures of a set of views and its prompt in, four quality scores out.

The network and its equations are in hyperscore_network.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formats.checkpoint import read_checkpoint
from ..formats.safetensors_io import read_with_config
from .base import RewardKind, RewardResult, check_request
from .hyperscore_network import HEADS, HyperScore, HyperScoreSize, TargetLayers, load_hyperscore_weights
from .inputs import IMAGENET_MEAN, IMAGENET_STD, PromptCache, PromptTokens, Tokenize

if TYPE_CHECKING:
    from typing_extensions import Self

ARCHITECTURE = "hyperscore"
MAX_CACHED_PROMPTS = 256
"""Every prompt keeps the features of all its tokens: 154 kB at full size."""


class HyperScoreReward:
    """Joint reward: `scores` is the head "overall", `details` holds all four heads, [B] each."""

    kind: RewardKind = "joint"

    def __init__(self, model: HyperScore, tokenize: Tokenize, name: str = "hyperscore") -> None:
        """Wrap a network."""
        self.model = model.eval().requires_grad_(False)
        self.preprocessing = replace(
            model.size.clip.preprocessing(), mean=IMAGENET_MEAN, std=IMAGENET_STD, mode="bilinear"
        )
        self.tokens = PromptTokens(tokenize, model.size.clip.context_length, name)
        self.name = name
        self.cache = PromptCache(MAX_CACHED_PROMPTS)
        self._conditions: tuple[Tensor, TargetLayers] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the model to a device, its CLIP to a precision; cached features are dropped."""
        self.model.to(device)
        if dtype is not None:
            self.model.set_clip_dtype(dtype)
        self.cache.clear()
        self._conditions = None
        return self

    def check_views(self, num_views: int) -> None:
        """Raise ValueError unless the model scores sets of so many views."""
        expected = self.model.size.num_views
        if expected and num_views != expected:
            raise ValueError(
                f"{num_views} views per prompt; {self.name} scores sets of exactly {expected} views: "
                "use that camera rig or another joint reward."
            )

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score B sets of views: pictures [B·V, 3, H, W] in [0, 1], B prompts.

        Raises:
            ValueError: pictures or prompts are not what a joint reward takes, or V is not the model's.
        """
        num_views = check_request(images, prompts, self.kind)
        self.check_views(num_views)
        weight, start, parts = self.model.clip_model.visual.conv1.weight, 0, []
        with torch.inference_mode():
            # Whoever moved the model without `to` (ComfyUI does) left these where they were.
            if self._conditions is None or self._conditions[0].device != weight.device:
                self.cache.clear()
                self._conditions = self.model.encode_conditions()
            end, text = self.cache.lookup(
                prompts, lambda new: self.model.encode_prompts(self.tokens(new).to(weight.device))
            )
            for pixels in self.preprocessing.chunks(images, weight, num_views):
                patches = self.model.encode_views(pixels.unflatten(0, (-1, num_views)))
                sets = slice(start, start := start + len(patches))
                parts.append(self.model.score(patches, end[sets], text[sets], self._conditions))
            scores = torch.cat(parts).float()
        scores = scores.clone()  # a clone made outside is an ordinary tensor again
        details = {head: scores[:, index] for index, head in enumerate(HEADS)}
        return RewardResult(details["overall"], details)


def load_hyperscore(path: Path, name: str = "toybox_hyperscore") -> HyperScoreReward:
    """Load a HyperScore that this project trained and saved with its sizes in the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file.
    """
    tensors, config = read_with_config(path, ARCHITECTURE)
    return _build(HyperScoreSize.from_config(config, str(path)), tensors, path, name)


def load_published_hyperscore(
    path: Path, name: str = "hyperscore", size: HyperScoreSize | None = None
) -> HyperScoreReward:
    """Load MATE-3D's `model.pth`, a state dict with OpenAI's CLIP ViT-B/16 inside.

    Args:
        path: the file.
        name: the name under which the reward is reported.
        size: sizes; None: the published ones.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file.
    """
    return _build(size or HyperScoreSize(), read_checkpoint(path), path, name)


def _build(size: HyperScoreSize, tensors: Mapping[str, Tensor], path: Path, name: str) -> HyperScoreReward:
    from ..text import clip_tokenizer

    tokenize = clip_tokenizer(size.clip.vocab_size)
    model = HyperScore(size, tokenize)
    load_hyperscore_weights(model, tensors, str(path))
    return HyperScoreReward(model, tokenize, name)
