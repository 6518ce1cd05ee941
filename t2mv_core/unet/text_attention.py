"""Cross-attention to the text, computed per prompt: the views of a prompt read the same words.

Keys and values of the words are projected once per prompt, not once per view; the tokens of all its views
are one sequence of queries. Each query's result is what a cross-attention per view gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..autocast import in_autocast_dtype

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, [..., heads, L, D] each.

    On the CPU half precision is computed in float32: torch's backward pass in bfloat16 takes three times as
    long there (docs/results/training_iteration).
    """
    if query.device.type != "cpu" or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    return out.to(query.dtype)


class TextCrossAttention:
    """Processor of one `attn2`."""

    def __call__(  # diffusers reads this signature to know which arguments it may pass
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        num_views: int | None = 1,
        latent_size: tuple[int, int] = (1, 1),
        reference: object = None,
    ) -> Tensor:
        """Return what every image token reads from its prompt's words, [B*V, H*W, C].

        Args:
            attn: the diffusers attention this processor serves.
            hidden_states: normalised image tokens, [B*V, H*W, C], the views of a prompt contiguous.
            encoder_hidden_states: word features, one row per prompt, [B, L, D], or per view, [B*V, L, D].
            attention_mask: must be None; the UNet masks no words.
            temb: unused; part of diffusers' processor interface.
            num_views: unused; the self-attention's.
            latent_size: unused; likewise.
            reference: unused; likewise.

        Raises:
            ValueError: no words, a mask, or rows of words that do not divide the views.
        """
        if encoder_hidden_states is None or attention_mask is not None:
            raise ValueError("Text attention belongs on an unmasked cross-attention (attn2) only.")
        hidden_states = in_autocast_dtype(hidden_states)
        batch, prompts = len(hidden_states), len(encoder_hidden_states)
        if batch % prompts:
            raise ValueError(
                f"{prompts} rows of words do not divide {batch} views; pass one row per prompt or per view."
            )
        queries = attn.to_q(rearrange(hidden_states, "(b v) l c -> b (v l) c", b=prompts))
        query, key, value = (
            rearrange(x, "b l (a d) -> b a l d", a=attn.heads)
            for x in (queries, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        out = rearrange(attend(query, key, value), "b a (v l) d -> (b v) l (a d)", v=batch // prompts)
        return attn.to_out[1](attn.to_out[0](out))
