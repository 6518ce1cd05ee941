"""What a reward is: the record it returns, the protocol it follows, and the checks every scorer shares."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

RewardKind = Literal["view", "joint"]
Tokenize = Callable[[list[str], int], Tensor]
"""(prompts, max_length) -> ids [n, max_length]: start, words, end, zeros; a cut prompt keeps its end."""

# Pictures decoded in half precision leave [0, 1] by rounding; anything further out is another range.
RANGE_TOLERANCE = 1e-3
MAX_CACHED_PROMPTS = 2048


@dataclass(frozen=True)
class RewardResult:
    """Scores of one call: higher is better, comparable only within the same reward.

    Attributes:
        scores: [n] for a view reward, [B] for a joint reward; float32, without a graph.
        details: named parts of the score, same length as `scores` (HyperScore's four heads, for example).
    """

    scores: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)


class Reward(Protocol):
    """A scorer: pictures [n, 3, H, W] in [0, 1] and prompts in, a RewardResult out.

    A `view` reward takes one prompt per picture. A `joint` reward takes B prompts for n = B·V pictures, the
    views of a prompt contiguous, and scores every set as a whole.
    """

    name: str
    kind: RewardKind

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score the pictures against the prompts."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the scorer to a device and return it."""
        ...


def check_request(images: Tensor, prompts: Sequence[str], kind: RewardKind) -> int:
    """Refuse pictures or prompts that would be scored wrongly without an error.

    Returns:
        Pictures per prompt: 1 for a view reward, V for a joint reward.

    Raises:
        ValueError: wrong shape, dtype, range or count, NaN, or an empty prompt.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(
            f"images have shape {list(images.shape)}; a reward takes [n, 3, H, W] with n of at least 1."
        )
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}; pass floats in [0, 1] (divide 0..255 by 255).")
    if not images.isfinite().all():
        raise ValueError(
            "images hold NaN or infinity; decode the latents again or look at the step that made them."
        )
    low, high = float(images.min()), float(images.max())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"images range from {low:.3g} to {high:.3g}; pass values in [0, 1].")
    return check_prompts(prompts, images.shape[0], kind)


def check_prompts(prompts: Sequence[str], num_images: int, kind: RewardKind) -> int:
    """Check that the prompts fit the number of pictures; return the pictures per prompt.

    Raises:
        ValueError: a bare string, an empty prompt, or a count that does not fit.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one string ({prompts[:40]!r}); pass a list of prompts.")
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError(
                f"prompt {index} is empty; a reward needs a sentence to compare the picture with."
            )
    if kind == "view" and len(prompts) != num_images:
        raise ValueError(
            f"{len(prompts)} prompts for {num_images} images; a view reward takes one prompt per image: "
            "repeat each prompt for its views."
        )
    if not prompts or num_images % len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts for {num_images} images; a joint reward takes B prompts for B·V images, "
            "the views of a prompt contiguous."
        )
    return num_images // len(prompts)


def prepare_images(
    images: Tensor, image_px: int, mean: Sequence[float], std: Sequence[float], mode: str = "bicubic"
) -> Tensor:
    """Resize [n, 3, H, W] to image_px squared with antialiasing and normalise per channel; float32.

    Pictures that have the size already are not resampled. Bicubic overshoot is clipped, as PIL does.
    """
    images = images.float()
    if images.shape[-2:] != (image_px, image_px):
        images = F.interpolate(images, (image_px, image_px), mode=mode, align_corners=False, antialias=True)
        images = images.clamp(0, 1)
    return (images - images.new_tensor(mean)[:, None, None]) / images.new_tensor(std)[:, None, None]


class PromptTokens:
    """Turns prompts into token ids for one scorer; warns once when a prompt is longer than the context."""

    def __init__(self, tokenize: Tokenize, context_length: int, name: str) -> None:
        self.tokenize, self.context_length, self.name = tokenize, context_length, name
        self._has_warned = False

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token ids [n, context_length]; the end token stays when a prompt is cut."""
        # One place more than the context: a prompt whose end (the largest id) stands there does not fit.
        probe = self.tokenize(list(prompts), self.context_length + 1)
        if not self._has_warned and bool((probe.argmax(dim=1) == self.context_length).any()):
            self._has_warned = True
            logger.warning(
                "%s reads at most %d tokens; the rest of a longer prompt is ignored.",
                self.name,
                self.context_length,
            )
        return self.tokenize(list(prompts), self.context_length)


class PromptCache:
    """Text features by prompt: each distinct prompt is encoded once while it is among the last ones used."""

    def __init__(self, max_prompts: int = MAX_CACHED_PROMPTS) -> None:
        self.max_prompts = max_prompts
        self._features: OrderedDict[str, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def clear(self) -> None:
        """Forget everything; needed after the weights or the device changed."""
        self._features.clear()

    def lookup(
        self, prompts: Sequence[str], encode: Callable[[list[str]], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Features of every prompt, in order, stacked; `encode` sees only the distinct unknown prompts."""
        known = {prompt: self._features[prompt] for prompt in prompts if prompt in self._features}
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if unknown:
            encoded = encode(unknown)
            known.update({prompt: tuple(part[i] for part in encoded) for i, prompt in enumerate(unknown)})
        for prompt, parts in known.items():
            self._features[prompt] = parts
            self._features.move_to_end(prompt)
        while len(self._features) > self.max_prompts:
            self._features.popitem(last=False)
        return tuple(torch.stack(parts) for parts in zip(*(known[prompt] for prompt in prompts), strict=True))


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors into the module: nothing missing, nothing left over, every shape right.

    Raises:
        ValueError: names the first key that is missing, left over or of another shape, and the file.
    """
    expected = module.state_dict()
    hint = f"{source} does not hold this model's weights; check that it is the right file and whole."
    for name, tensor in expected.items():
        if name not in tensors:
            raise ValueError(f"Weight {name!r} is missing: {hint}")
        if tensors[name].shape != tensor.shape:
            given, wanted = list(tensors[name].shape), list(tensor.shape)
            raise ValueError(f"Weight {name!r} has shape {given}, the model needs {wanted}: {hint}")
    for name in tensors:
        if name not in expected:
            raise ValueError(f"Weight {name!r} is not part of the model: {hint}")
    module.load_state_dict(dict(tensors), strict=True)


def read_reward_file(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of a scorer saved by this project (config as JSON in the safetensors metadata).

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another architecture, or without a config.
    """
    from ..files import read_safetensors

    tensors, metadata = read_safetensors(path)
    found = metadata.get("architecture")
    if found != architecture:
        raise ValueError(
            f"{path} holds {found or 'no named architecture'}, not {architecture}; pass that scorer's file."
        )
    try:
        return tensors, dict(json.loads(metadata["config"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path} has no readable config in its metadata; save it again with this project."
        ) from error
