"""Row-wise multiview attention: how the views of one object see each other.

Every self-attention (`attn1`) of the UNet gets a second attention with its own projections. A query at
(view, row, column) attends to the same row of all views; the result, times `mv_scale`, is added to the
ordinary self-attention's output before the residual is added (docs/method.md, section 2; arXiv:2412.03632).
An image-to-multiview UNet adds `reference_attention` to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..autocast import in_autocast_dtype
from .reference_attention import ReferenceFeatures, reference_attention
from .text_attention import TextCrossAttention, attend

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


def rowwise_multiview_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend from every position to the same image row of all views of its prompt.

    A row's V·W keys are shared by its V·W queries, so the whole is one attention call over sequences of
    length V·W with batch B·H: no key or value is repeated per view.

    Args:
        query: tokens as `merge_rows` sorts them, [B*H, V*W, heads*D].
        key: the same of the keys.
        value: the same of the values.
        heads: number of attention heads.

    Returns:
        [B*H, V*W, heads*D], sorted likewise.
    """
    query, key, value = (rearrange(x, "n l (a d) -> n a l d", a=heads) for x in (query, key, value))
    return rearrange(attend(query, key, value), "n a l d -> n l (a d)")


def merge_rows(tokens: Tensor, num_views: int, num_rows: int) -> Tensor:
    """Sort the tokens of all views by image row: [B*V, H*W, C] -> [B*H, V*W, C], contiguous.

    Sorted before the projections, for which every token stands alone, one copy serves queries, keys and
    values.

    Args:
        tokens: of one UNet level, row-major.
        num_views: V, views per prompt, contiguous in the batch.
        num_rows: H.

    Raises:
        ValueError: the batch is not a multiple of `num_views`.
    """
    if num_views < 1 or len(tokens) % num_views:
        raise ValueError(
            f"num_views={num_views} does not divide a batch of {len(tokens)} views; pass latents as "
            "[B*V, ...] with the views of a prompt contiguous."
        )
    return rearrange(tokens, "(b v) (h w) c -> (b h) (v w) c", v=num_views, h=num_rows).contiguous()


def split_rows(tokens: Tensor, num_views: int, num_rows: int) -> Tensor:
    """Undo `merge_rows`: [B*H, V*W, C] -> [B*V, H*W, C]."""
    return rearrange(tokens, "(b h) (v w) c -> (b v) (h w) c", v=num_views, h=num_rows)


def rows_of_level(num_tokens: int, latent_size: tuple[int, int]) -> int:
    """Return the number of rows of the UNet level that has `num_tokens` tokens.

    Each level halves height and width, rounding up (stride-2 convolution, padding 1), so the level is found
    from the latent's real size; a square root would be silently wrong for views that are not square.

    Args:
        num_tokens: H_level · W_level.
        latent_size: (H, W) of the UNet's input.

    Raises:
        ValueError: no level of a latent of that size has so many tokens.
    """
    height, width = latent_size
    while height * width > max(num_tokens, 1):
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != num_tokens:
        raise ValueError(
            f"{num_tokens} tokens do not belong to any UNet level of a latent of size {latent_size[0]}x"
            f"{latent_size[1]}; pass latent_size=(H, W) of the latents given to the UNet."
        )
    return height


class MultiviewSelfAttention(nn.Module):
    """Processor of one `attn1`: ordinary self-attention plus decoupled row-wise multiview attention.

    Its parameters carry MV-Adapter's published names (`to_q_mv`, `to_k_mv`, `to_v_mv`, `to_out_mv.0`, and
    with reference attention `to_q_ref` and so on).
    """

    def __init__(
        self, query_dim: int, inner_dim: int, mv_scale: float = 1.0, reference_name: str | None = None
    ) -> None:
        """Create the projections.

        Args:
            query_dim: width of the stream.
            inner_dim: heads·D.
            mv_scale: factor on the multiview attention.
            reference_name: under which `ReferenceFeatures` have this self-attention's states; None for
                no reference attention.
        """
        super().__init__()
        self.mv_scale = mv_scale
        self.reference_name = reference_name
        self.to_q_mv = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k_mv = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_v_mv = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_out_mv = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Dropout(0.0)])
        if reference_name is not None:
            self.to_q_ref = nn.Linear(query_dim, inner_dim, bias=False)
            self.to_k_ref = nn.Linear(query_dim, inner_dim, bias=False)
            self.to_v_ref = nn.Linear(query_dim, inner_dim, bias=False)
            self.to_out_ref = nn.ModuleList([nn.Linear(inner_dim, query_dim), nn.Dropout(0.0)])

    def __call__(  # diffusers reads this signature to know which arguments it may pass
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        num_views: int | None = 1,
        latent_size: tuple[int, int] = (1, 1),
        reference: ReferenceFeatures | None = None,
    ) -> Tensor:
        """Return self-attention + mv_scale · multiview attention (+ reference attention), [B*V, H*W, C].

        Args:
            attn: the diffusers attention this processor serves; its projections are the ordinary ones.
            hidden_states: normalised tokens x of one UNet level, [B*V, H*W, C], row-major.
            encoder_hidden_states: must be None, this is a self-attention.
            attention_mask: must be None, the UNet's self-attention has none.
            temb: unused; part of diffusers' processor interface.
            num_views: V; None for pictures by themselves, which get the self-attention alone.
            latent_size: (H, W) of the latents given to the UNet.
            reference: pictures of the first of the B sets; the other sets go without. None for no reference
                attention.
        """
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("Multiview attention belongs on an unmasked self-attention (attn1) only.")
        heads, hidden_states = attn.heads, in_autocast_dtype(hidden_states)
        query, key, value = (
            rearrange(proj(hidden_states), "n l (a d) -> n a l d", a=heads)
            for proj in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = attend(query, key, value)
        out = attn.to_out[1](attn.to_out[0](rearrange(out, "n a l d -> n l (a d)")))
        if num_views is None:
            return out
        num_rows = rows_of_level(hidden_states.shape[1], latent_size)
        out = out + self.mv_scale * self._multiview(hidden_states, heads, num_views, num_rows)
        if reference is None:
            return out
        return out + reference.scale * self._reference(hidden_states, attn, num_views, reference)

    def _multiview(self, hidden_states: Tensor, heads: int, num_views: int, num_rows: int) -> Tensor:
        rows = merge_rows(hidden_states, num_views, num_rows)
        out = rowwise_multiview_attention(self.to_q_mv(rows), self.to_k_mv(rows), self.to_v_mv(rows), heads)
        out = self.to_out_mv[1](self.to_out_mv[0](out))
        return split_rows(out, num_views, num_rows)

    def _reference(
        self, hidden_states: Tensor, attn: Attention, num_views: int, reference: ReferenceFeatures
    ) -> Tensor:
        num_with_picture = num_views * len(reference)
        if num_with_picture:
            states = reference.states[self.reference_name].to(hidden_states.dtype)  # type: ignore[index]
            query = self.to_q_ref(hidden_states[:num_with_picture])
            out = reference_attention(query, self.to_k_ref(states), self.to_v_ref(states), attn.heads)
        else:
            out = hidden_states.new_zeros(0, hidden_states.shape[1], attn.inner_dim)
        if num_without := len(hidden_states) - num_with_picture:
            # States of zeros have keys and values of zeros: what their softmax averages is known.
            out = F.pad(out, (0, 0, 0, 0, 0, num_without))
        return self.to_out_ref[1](self.to_out_ref[0](out))


def install_multiview_attention(unet: UNet2DConditionModel, has_reference: bool = False) -> None:
    """Give every self-attention of a UNet its multiview attention, in place; weights are newly initialised.

    The number of views is not stored here: it travels with each UNet call in `cross_attention_kwargs`
    (`num_views`, `latent_size`), so one UNet serves any number of views at the same time. So do the features
    of pictures (`reference`).

    Args:
        unet: the UNet.
        has_reference: give it reference attention too, for image to multiview.

    Raises:
        ValueError: the UNet already has multiview attention, or has no self-attention at all.
    """
    if has_multiview_attention(unet):
        raise ValueError("This UNet already has multiview attention; load a fresh one to install it again.")
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        place = name.removesuffix(".processor")
        attention = unet.get_submodule(place)
        if name.endswith("attn1.processor"):
            reference_name = place if has_reference else None
            processors[name] = MultiviewSelfAttention(
                attention.query_dim, attention.inner_dim, reference_name=reference_name
            )
        else:
            processors[name] = TextCrossAttention()
    if not any(isinstance(processor, MultiviewSelfAttention) for processor in processors.values()):
        raise ValueError("This UNet has no self-attention (attn1) that multiview attention could join.")
    unet.set_attn_processor(processors)


def has_multiview_attention(unet: UNet2DConditionModel) -> bool:
    """Whether multiview attention is installed in this UNet."""
    return any(isinstance(processor, MultiviewSelfAttention) for processor in unet.attn_processors.values())
