"""What a scorer's network takes: pictures resized and normalised, prompts as token ids, features kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prompts import count_of, quote_some

logger = logging.getLogger(__name__)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Fit = Literal["crop", "pad", "stretch"]
"""How a picture that is not square becomes square: its middle, with black bars, or distorted."""
CHUNK_BYTES = 256 * 2**20
"""Bound on the activations of one forward pass of a scorer."""
LIVE_COPIES = 24
"""Copies of a transformer's tokens that live at once without a graph: residual, q, k, v, attention, MLP
(4 + 4 while it is activated), and attention's logits as far as they are kept; rounded up."""

MAX_CACHED_PROMPTS = 2048
TEXT_CHUNK = 64
"""Prompts in one forward pass of a text encoder."""


def prepare_images(
    images: Tensor,
    image_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    mode: str = "bicubic",
    fit: Fit = "stretch",
) -> Tensor:
    """Resize [n, 3, H, W] to image_px squared with antialiasing and normalise per channel; float32.

    Pictures that have the size already are not resampled.
    """
    images = images.float()
    height, width = images.shape[-2:]
    if (height, width) != (image_px, image_px):
        size = (image_px, image_px)
        if fit != "stretch":
            size = _fitting_size(height, width, image_px, fit)
        # First across, then down, clipped after either: so does PIL, by which published scorers learned.
        for step in ((height, size[1]), size):
            images = F.interpolate(images, step, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
        images = _center(images, image_px)
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


def _fitting_size(height: int, width: int, image_px: int, fit: Fit) -> tuple[int, int]:
    """Return the size of a picture before it is cut or gets bars; rounded as published."""
    if fit == "crop":  # torchvision and transformers round the longer side down
        shorter = min(height, width)
        return int(image_px * height / shorter), int(image_px * width / shorter)
    longer = max(height, width)
    return max(1, round(height * image_px / longer)), max(1, round(width * image_px / longer))


def _center(images: Tensor, image_px: int) -> Tensor:
    """Cut what is too long, and fill what is too short with black, equally on both sides."""
    padding: list[int] = []
    for size in reversed(images.shape[-2:]):
        # Torchvision's rounding: a cut's first half is rounded, a bar's first half rounded down.
        missing = image_px - size
        first = missing // 2 if missing > 0 else -round(-missing / 2)
        padding += [first, missing - first]
    return F.pad(images, padding)


def images_per_chunk(tokens: int, width: int, dtype: torch.dtype) -> int:
    """Return how many pictures of `tokens` tokens of `width` channels fit into CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (LIVE_COPIES * tokens * width * dtype.itemsize))


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pictures.

    Attributes:
        image_px: side, pixels.
        num_tokens: tokens of a picture inside the network.
        width: channels of a token.
        mean: per channel, in [0, 1].
        std: per channel.
        fit: how a picture that is not square becomes square.
        mode: interpolation.
    """

    image_px: int
    num_tokens: int
    width: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    fit: Fit = "crop"
    mode: str = "bicubic"

    def chunks(self, images: Tensor, weight: Tensor, num_views: int = 1) -> Iterator[Tensor]:
        """Yield [n, 3, H, W] prepared, on the device and in the type of `weight`, in chunks of whole sets."""
        chunk_size = images_per_chunk(num_views * self.num_tokens, self.width, weight.dtype)
        for chunk in images.split(num_views * chunk_size):
            chunk = chunk.to(weight.device)
            pixels = prepare_images(chunk, self.image_px, self.mean, self.std, self.mode, self.fit)
            yield pixels.to(weight.dtype)


class Tokenize(Protocol):
    """An encoding of prompts."""

    def __call__(self, texts: Sequence[str], max_length: int) -> Tensor:
        """Return ids [n, max_length]: start, words, end, zeros; a cut prompt keeps its end."""
        ...

    def unread_words(self, text: str, max_length: int) -> str:
        """Return the last words of a text that `max_length` ids do not hold as a whole."""
        ...


class PromptTokens:
    """The tokenizer of one scorer, which warns once of each prompt that is longer than the context."""

    def __init__(self, tokenize: Tokenize, context_length: int, name: str) -> None:
        self.tokenize, self.context_length, self.name = tokenize, context_length, name
        self._described: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids [n, context_length]; the end token stays when a prompt is cut."""
        for prompt in prompts:
            if prompt not in self._described:
                for sentence in self.describe([prompt]):
                    logger.warning("%s", sentence)
        return self.tokenize(prompts, self.context_length)

    def describe(self, prompts: Sequence[str]) -> list[str]:
        """Say in a sentence which words are not read, none if all are; none of these is logged again."""
        pairs = ((prompt, self.tokenize.unread_words(prompt, self.context_length)) for prompt in prompts)
        unread = {prompt: words for prompt, words in pairs if words}
        self._described.update(prompts)
        if not unread:
            return []
        num_tokens = self.context_length - 2  # without start and end
        return [
            f"{self.name} reads {num_tokens} tokens of a prompt; it does not read "
            f"{quote_some(list(unread.values()), characters=200)}{count_of(len(unread), len(prompts))}."
        ]


def describe_unread(rewards: Iterable[Any], prompts: Sequence[str]) -> list[str]:
    """Say what scorers do not read of prompts, a sentence each; parts of one reward count as one."""
    sentences: list[str] = []
    for reward in rewards:
        while hasattr(reward, "reward"):  # a part of it, or one over views
            reward = reward.reward
        if isinstance(tokens := getattr(reward, "tokens", None), PromptTokens):
            sentences += tokens.describe(list(dict.fromkeys(prompts)))
    return list(dict.fromkeys(sentences))


class PromptCache:
    """Text features by prompt: each distinct prompt is encoded once while it is among the last ones used."""

    def __init__(self, max_prompts: int = MAX_CACHED_PROMPTS) -> None:
        self.max_prompts = max_prompts
        self._features: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def clear(self) -> None:
        """Forget everything, as after a change of weights or device."""
        self._features.clear()

    def lookup(
        self, prompts: Sequence[str], encode: Callable[[list[str]], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return the stacked features of the prompts; `encode` sees new ones only, TEXT_CHUNK at a time."""
        known = {prompt: self._features[prompt] for prompt in prompts if prompt in self._features}
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(unknown), TEXT_CHUNK):
            chunk = unknown[start : start + TEXT_CHUNK]
            encoded = encode(chunk)
            for i, prompt in enumerate(chunk):  # clones, as a slice would keep the whole chunk's memory
                known[prompt] = tuple(part[i].clone() for part in encoded)
        for prompt, parts in known.items():
            self._features[prompt] = parts
            self._features.move_to_end(prompt)
        while len(self._features) > self.max_prompts:
            self._features.popitem(last=False)
        return tuple(torch.stack(parts) for parts in zip(*(known[prompt] for prompt in prompts), strict=True))
