"""HyperScore's network: it scores a whole set of views on alignment, geometry, texture and overall quality.

A learned prompt per quality ("condition") decides which patches count and, through a hypernetwork, which
small network turns them into a score:

    a_kp  = Σ_t cos(t, k)·cos(t, p)                   t prompt tokens, p patches of all views, k condition
    q_k   = (Σ_p softmax_p(a_k)_p · p) ⊙ e            e the prompt's end-of-text feature
    s_k   = MLP_{θ_k}(W q_k),   θ_k = hypernetwork(W' k)

Source: MATE-3D / HyperScore as stated in docs/method.md, section 8. State-dict names and, at the default
sizes, shapes are those of the published checkpoint; the bundled scorer is the same class at small size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.safetensors_io import known_fields
from ..formats.strict import load_strictly
from .clip_score import ClipSize
from .inputs import Tokenize
from .registry import QUALITIES

if TYPE_CHECKING:
    from open_clip.model import CLIP

HEADS = QUALITIES

TargetLayers = list[tuple[Tensor, Tensor]]
"""Weight [K, out, in] and bias [K, out] of every layer of the K conditions' target networks."""


@dataclass(frozen=True)
class HyperScoreSize:
    """Sizes of a HyperScore; the defaults are the published model's.

    Attributes:
        clip: the CLIP inside.
        num_context: learnable vectors per condition prompt.
        target_widths: widths of the target network before its single output.
        condition_channels: channels of the condition map the hypernetwork reads.
        condition_grid: height and width of that map.
        num_views: 0 as published: the views are an unordered set. Above 0 every view has a learned embedding,
            and exactly this many views are scored.
    """

    clip: ClipSize = field(default_factory=ClipSize)
    num_context: int = 12
    target_widths: tuple[int, int, int, int] = (224, 112, 56, 28)
    condition_channels: int = 112
    condition_grid: int = 7
    num_views: int = 0

    def to_json(self) -> str:
        """Return the sizes as a weights file stores them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_config(cls, config: dict[str, Any], source: str) -> HyperScoreSize:
        """Read the sizes from a saved configuration; ValueError for one this class does not know."""
        values = dict(known_fields(cls, config, source))
        if "clip" in values:
            values["clip"] = ClipSize(**known_fields(ClipSize, values["clip"], source))
        if "target_widths" in values:
            values["target_widths"] = tuple(values["target_widths"])
        return cls(**values)


class TextTower(nn.Module):
    """The text half of a CLIP on embedded tokens; its tensors are the CLIP's own, under a second name."""

    attn_mask: Tensor

    def __init__(self, clip_model: CLIP) -> None:
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.register_buffer("attn_mask", clip_model.attn_mask, persistent=False)

    def forward(self, embedded: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Encode embedded tokens [n, L, w] with end tokens at `end` [n]: ([n, d], [n, L, d]), float32."""
        embedded = embedded.to(self.positional_embedding.dtype) + self.positional_embedding
        hidden = _transform(self.transformer, embedded, self.attn_mask)
        features = (self.ln_final(hidden) @ self.text_projection).float()
        return features[torch.arange(len(end), device=end.device), end], features


class PromptLearner(nn.Module):
    """One learned prompt per quality: start, "<quality> quality", learned context, the rest ("." and end)."""

    token_prefix: Tensor
    token_suffix: Tensor
    tokens: Tensor

    def __init__(self, clip_model: CLIP, num_context: int, tokenize: Tokenize) -> None:
        super().__init__()
        names = [f"{head} quality" for head in HEADS]
        length = int(clip_model.context_length)
        placeholder = " ".join(["X"] * num_context)
        tokens = tokenize([f"{placeholder} {name}." for name in names], length)
        self.register_buffer("tokens", tokens, persistent=False)
        self.name_lengths = (tokenize(names, length).argmax(dim=1) - 1).tolist()
        self.ctx = nn.Parameter(
            0.02 * torch.randn(len(names), num_context, clip_model.positional_embedding.shape[1])
        )
        self.register_buffer("token_prefix", torch.empty(0))
        self.register_buffer("token_suffix", torch.empty(0))
        self.read_embedding(clip_model)

    @torch.no_grad()
    def read_embedding(self, clip_model: CLIP) -> None:
        """Take the fixed part of the prompts from the CLIP's token embedding, after its weights changed."""
        embedded = clip_model.token_embedding(self.tokens)
        self.token_prefix = embedded[:, :1].clone()
        self.token_suffix = embedded[:, 1 + self.ctx.shape[1] :].clone()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return embedded prompts [4, L, w] and the place of their end token [4]."""
        rows = []
        for index, length in enumerate(self.name_lengths):
            name, rest = self.token_suffix[index].split([length, self.token_suffix.shape[1] - length])
            rows.append(torch.cat([self.token_prefix[index], name, self.ctx[index], rest]))
        return torch.stack(rows), self.tokens.argmax(dim=1)


class HyperNetwork(nn.Module):
    """Condition maps [K, channels, grid, grid] -> the weights of K target networks."""

    def __init__(self, size: HyperScoreSize) -> None:
        super().__init__()
        channels, cells = size.condition_channels, size.condition_grid**2
        w0, w1, w2, w3 = self.widths = size.target_widths
        for outputs, inputs in ((w1, w0), (w2, w1), (w3, w2)):
            if outputs * inputs % cells:
                raise ValueError(
                    f"target_widths {outputs} x {inputs} do not divide into condition_grid² = {cells} cells."
                )
        self.fc1w_conv = nn.Conv2d(channels, w1 * w0 // cells, 3, padding=1)
        self.fc1b_fc = nn.Linear(channels, w1)
        self.fc2w_conv = nn.Conv2d(channels, w2 * w1 // cells, 3, padding=1)
        self.fc2b_fc = nn.Linear(channels, w2)
        self.fc3w_conv = nn.Conv2d(channels, w3 * w2 // cells, 3, padding=1)
        self.fc3b_fc = nn.Linear(channels, w3)
        self.fc4w_fc = nn.Linear(channels, w3)
        self.fc4b_fc = nn.Linear(channels, 1)

    def forward(self, condition: Tensor) -> TargetLayers:
        """Return the four layers' weights and biases."""
        w0, w1, w2, w3 = self.widths
        count, pooled = len(condition), condition.mean(dim=(2, 3))
        return [
            (self.fc1w_conv(condition).reshape(count, w1, w0), self.fc1b_fc(pooled)),
            (self.fc2w_conv(condition).reshape(count, w2, w1), self.fc2b_fc(pooled)),
            (self.fc3w_conv(condition).reshape(count, w3, w2), self.fc3b_fc(pooled)),
            (self.fc4w_fc(pooled).reshape(count, 1, w3), self.fc4b_fc(pooled)),
        ]


class HyperScore(nn.Module):
    """The network; see the module docstring for the equations."""

    def __init__(self, size: HyperScoreSize, tokenize: Tokenize) -> None:
        super().__init__()
        self.size = size
        dim, channels, grid = size.clip.embed_dim, size.condition_channels, size.condition_grid
        self.clip_model = size.clip.build()
        self.prompt_learner = PromptLearner(self.clip_model, size.num_context, tokenize)
        self.text_encoder = TextTower(self.clip_model)
        self.fc_quality = nn.Linear(dim, size.target_widths[0])
        self.fc_condition = nn.Linear(dim, channels * grid * grid)
        self.hypernet = HyperNetwork(size)
        # Deviates from the published model, which pools the patches of all views as one set and so cannot see
        # two views swapped. Absent (num_views = 0) the state dict is the published one.
        self.view_embedding = (
            nn.Parameter(torch.zeros(size.num_views, size.clip.vision_width)) if size.num_views else None
        )

    def set_clip_dtype(self, dtype: torch.dtype) -> None:
        """Give the CLIP inside a precision; what makes scores of its features is small and stays float32."""
        self.clip_model.to(dtype=dtype)
        self.text_encoder.to(dtype=dtype)

    def encode_views(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures [B, V, 3, px, px] as patches of all views [B, V·P, d], float32."""
        visual, (num_sets, num_views) = self.clip_model.visual, pixels.shape[:2]
        pixels = pixels.flatten(0, 1).to(visual.conv1.weight.dtype)
        hidden = visual.conv1(pixels).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(len(hidden), 1, -1)
        hidden = torch.cat([class_token, hidden], dim=1) + visual.positional_embedding
        if self.view_embedding is not None:
            hidden = hidden + self.view_embedding.repeat(num_sets, 1)[:, None].to(hidden.dtype)
        hidden = _transform(visual.transformer, visual.ln_pre(hidden))
        patches = (visual.ln_post(hidden[:, 1:]) @ visual.proj).float()
        return patches.reshape(num_sets, num_views * patches.shape[1], -1)

    def encode_prompts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids [B, L]: end-of-text feature [B, d] and all token features [B, L, d]."""
        return self.text_encoder(self.clip_model.token_embedding(tokens), tokens.argmax(dim=1))

    def encode_conditions(self) -> tuple[Tensor, TargetLayers]:
        """Return the four conditions [4, d] and their target networks; they depend on the weights alone."""
        condition, _ = self.text_encoder(*self.prompt_learner())
        grid = self.size.condition_grid
        maps = self.fc_condition(condition).reshape(len(condition), self.size.condition_channels, grid, grid)
        return condition, self.hypernet(maps)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Score normalised pictures [B, V, 3, px, px] against token ids [B, L]: [B, 4], as HEADS."""
        end, text = self.encode_prompts(tokens)
        return self.score(self.encode_views(pixels), end, text, self.encode_conditions())

    def score(
        self, patches: Tensor, end: Tensor, text: Tensor, conditions: tuple[Tensor, TargetLayers]
    ) -> Tensor:
        """Score patches [B, N, d] by end-of-text [B, d] and tokens [B, L, d]: [B, 4]."""
        condition, layers = conditions
        return run_target(self.fc_quality(self.fuse(patches, end, text, condition)), layers)[..., 0]

    def fuse(self, patches: Tensor, end: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """Return what each condition sees of the patches, times the end-of-text feature: q_k, [B, 4, d].

        Args:
            patches: of all views, [B, N, d].
            end: end-of-text feature, [B, d].
            text: features of all tokens, [B, L, d].
            condition: [4, d].
        """
        unit_text = F.normalize(text, dim=-1)
        # Σ_t cos(t, k)·cos(t, p) = (Σ_t cos(t, k)·t̂)·p̂: one query per condition instead of tokens x patches.
        query = torch.einsum("btd,kd,bte->bke", unit_text, F.normalize(condition, dim=-1), unit_text)
        weights = torch.einsum("bke,bpe->bkp", query, F.normalize(patches, dim=-1)).softmax(dim=-1)
        return torch.einsum("bkp,bpd->bkd", weights, patches) * end[:, None]


def run_target(hidden: Tensor, layers: TargetLayers) -> Tensor:
    """Send [B, K, w] through the K conditions' target networks, rectified between the layers."""
    for index, (weight, bias) in enumerate(layers):
        hidden = torch.einsum("bki,koi->bko", hidden.relu() if index else hidden, weight) + bias
    return hidden


def _transform(transformer: Any, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run an open_clip transformer on [n, L, w]; before open_clip 2.27 it took the sequence first."""
    if transformer.resblocks[0].attn.batch_first:
        return transformer(hidden, attn_mask=mask)
    return transformer(hidden.transpose(0, 1), attn_mask=mask).transpose(0, 1)


def weights_to_save(model: HyperScore) -> dict[str, Tensor]:
    """Return the state dict without `text_encoder.*`, which only repeats tensors of `clip_model.*`."""
    return {name: t for name, t in model.state_dict().items() if not name.startswith("text_encoder.")}


def load_hyperscore_weights(model: HyperScore, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load the published layout strictly; `text_encoder.*` may be left out.

    Raises:
        ValueError: a weight does not fit, or `text_encoder.*` contradicts the CLIP.
    """
    complete = dict(tensors)
    for name in model.state_dict():
        twin = name.replace("text_encoder.", "clip_model.", 1)
        if not name.startswith("text_encoder.") or twin not in complete:
            continue
        if name in complete and not torch.equal(complete[name], complete[twin]):
            raise ValueError(
                f"{source}: weight {name!r} differs from {twin!r}; in HyperScore they are one tensor."
            )
        complete.setdefault(name, complete[twin])
    load_strictly(model, complete, source)
