"""Reference attention: how the views of an object see the picture that they are drawn from.

Beside the multiview attention, every self-attention (`attn1`) of an image-to-multiview UNet gets a third one
with its own projections:

    out = W_out·softmax(Q Kᵀ / √D) V + b,   Q = W_q x,   K = W_k r,   V = W_v r

x are the normalised tokens of a view that the self-attention is given; r are the states that it was given
when the picture went through the UNet by itself, the same for every view of the set. The result, times
`ref_scale`, is added to self-attention and multiview attention. A set without a picture has r = 0: the
softmax then averages zeros, and b is left. The unconditional half of guidance is such a set.

Source: MV-Adapter, arXiv:2412.03632.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from .text_attention import attend


@dataclass(frozen=True)
class ReferenceFeatures:
    """What the UNet gets to know of pictures: the states of every self-attention, and how much they count.

    They depend on pictures, prompts and acting LoRAs alone: computed once per set, not per view or step.

    Attributes:
        states: r by the self-attention's name in the UNet, each [B, L, C]; none: the sets go without.
        scale: factor on the reference attention's output; 1 is as trained, 0 drops it.
    """

    states: dict[str, Tensor]
    scale: float = 1.0

    def __len__(self) -> int:
        """Return the number of pictures B."""
        return len(next(iter(self.states.values()), ()))

    def select(self, indices: Sequence[int] | Tensor) -> ReferenceFeatures:
        """Return the features of some of the pictures, in the order of `indices`."""
        index = torch.as_tensor(indices, dtype=torch.long)
        return self._with({name: x[index.to(x.device)] for name, x in self.states.items()})

    def to(self, device: torch.device | str) -> ReferenceFeatures:
        """Return a copy on a device."""
        return self._with({name: x.to(device) for name, x in self.states.items()})

    def scaled(self, factor: float) -> ReferenceFeatures:
        """Return the features with another weight, over the same states."""
        return replace(self, scale=factor * self.scale)

    def without_pictures(self) -> ReferenceFeatures:
        """Return what sets without a picture get under the same scale."""
        return self._with({})

    def _with(self, states: dict[str, Tensor]) -> ReferenceFeatures:
        return replace(self, states=states)


NO_PICTURE = ReferenceFeatures({})
"""For sets without a picture: r = 0, as the adapter saw it where its training dropped the picture."""


def concat_references(parts: Sequence[ReferenceFeatures]) -> ReferenceFeatures:
    """Join the features of several pictures of the same size, of the same model and scale."""
    names = parts[0].states
    return replace(
        parts[0], states={name: torch.cat([part.states[name] for part in parts]) for name in names}
    )


def reference_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend from every token of all views to all tokens of their set's picture.

    The views' tokens are one sequence of queries: no key or value is repeated per view.

    Args:
        query: [B*V, L, heads*D], the views of a set contiguous.
        key: of B pictures, [B, M, heads*D].
        value: the same.
        heads: number of attention heads.

    Returns:
        [B*V, L, heads*D].
    """
    num_views = len(query) // len(key)
    query = rearrange(query, "(b v) l (a d) -> b a (v l) d", v=num_views, a=heads)
    key, value = (rearrange(x, "b m (a d) -> b a m d", a=heads) for x in (key, value))
    return rearrange(attend(query, key, value), "b a (v l) d -> (b v) l (a d)", v=num_views)
