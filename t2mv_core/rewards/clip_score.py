"""CLIP score: the cosine of a picture's and its prompt's features, by any open_clip-style model.

    score = cos(encode_image(x), encode_text(c))     (no logit scale)

Source: docs/method.md, section 8. PickScore and HPSv2 are this class with their weights, the bundled scorer
`toybox_clip` with a small model of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.safetensors_io import known_fields, read_with_config
from ..formats.strict import load_strictly
from .base import RewardKind, RewardResult, check_request
from .inputs import Preprocessing, PromptCache, PromptTokens, Tokenize

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from torch import nn
    from typing_extensions import Self

ARCHITECTURE = "open_clip"


@dataclass(frozen=True)
class ClipSize:
    """Sizes of a CLIP in OpenAI's state-dict layout; the defaults are ViT-B/16."""

    embed_dim: int = 512
    image_px: int = 224
    patch_px: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vocab_size: int = 49408
    context_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    quick_gelu: bool = True
    image_pool: str = "tok"  # OpenAI's models pool by the class token; "avg" is the mean of the patches

    def build(self) -> CLIP:
        """Create an open_clip CLIP of these sizes with random weights."""
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        vision = CLIPVisionCfg(
            layers=self.vision_layers,
            width=self.vision_width,
            head_width=self.vision_width // self.vision_heads,
            patch_size=self.patch_px,
            image_size=self.image_px,
            pool_type=self.image_pool,
        )
        text = CLIPTextCfg(
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            width=self.text_width,
            heads=self.text_heads,
            layers=self.text_layers,
        )
        return CLIP(self.embed_dim, vision, text, quick_gelu=self.quick_gelu)

    def preprocessing(self) -> Preprocessing:
        """Return what a model of these sizes wants of its pictures."""
        num_tokens = (self.image_px // self.patch_px) ** 2 + 1
        return Preprocessing(self.image_px, num_tokens, self.vision_width, fit="stretch")


class ClipScore:
    """View reward: cosine in [-1, 1] of each picture and its prompt; text features are cached per prompt."""

    kind: RewardKind = "view"

    def __init__(
        self,
        model: nn.Module,
        tokenize: Tokenize,
        preprocessing: Preprocessing,
        name: str = "clip",
        notices: tuple[str, ...] = (),
    ) -> None:
        """Wrap any model with open_clip's `encode_image`, `encode_text`, `logit_scale`, `context_length`.

        `notices` say in sentences what the model's files left open.
        """
        self.model: Any = model.eval().requires_grad_(False)
        context_length: Any = model.context_length
        self.tokens = PromptTokens(tokenize, int(context_length), name)
        self.preprocessing, self.name, self.notices = preprocessing, name, notices
        self.cache = PromptCache()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move the model to a device and precision; cached text features are dropped."""
        self.model.to(device=device, dtype=dtype)
        self.cache.clear()
        return self

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> RewardResult:
        """Score pictures [n, 3, H, W] in [0, 1] against n prompts."""
        check_request(images, prompts, self.kind)
        return RewardResult((self.encode_images(images) * self.encode_prompts(prompts)).sum(dim=-1))

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit text features [n, d]; prompts in the cache are not encoded again."""
        # The cache lies on the CPU: the model moves while it is kept.
        return self.cache.lookup(prompts, self._encode_new_prompts)[0].to(self.model.logit_scale.device)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit picture features [n, d] of pictures [n, 3, H, W] in [0, 1]."""
        pixels = self.preprocessing.chunks(images, self.model.logit_scale)
        return torch.cat([F.normalize(self.model.encode_image(x).float(), dim=-1) for x in pixels])

    def _encode_new_prompts(self, prompts: list[str]) -> tuple[Tensor]:
        tokens = self.tokens(prompts).to(self.model.logit_scale.device)
        return (F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu(),)


def load_clip_score(path: Path, name: str = "toybox_clip") -> ClipScore:
    """Load a CLIP that this project trained and saved with its sizes in the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file.
    """
    from ..text import clip_tokenizer

    tensors, config = read_with_config(path, ARCHITECTURE)
    size = ClipSize(**known_fields(ClipSize, config, path))
    model = size.build()
    load_strictly(model, tensors, str(path))
    return ClipScore(model, clip_tokenizer(size.vocab_size), size.preprocessing(), name)
