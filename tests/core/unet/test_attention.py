import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.unet.attention import (
    MultiviewSelfAttention,
    has_multiview_attention,
    install_multiview_attention,
    merge_rows,
    rows_of_level,
    rowwise_multiview_attention,
    split_rows,
)


def naive_rowwise_attention(query, key, value, num_views):
    """Every (prompt, head, view, row, column) by itself: softmax(q·k/√D) over its row of all views."""
    batch, heads, height, width, dim = query.shape
    out = torch.zeros_like(query)
    for prompt in range(batch // num_views):
        views = range(prompt * num_views, (prompt + 1) * num_views)
        for head in range(heads):
            for row in range(height):
                keys = torch.cat([key[v, head, row] for v in views])
                values = torch.cat([value[v, head, row] for v in views])
                for view in views:
                    for column in range(width):
                        scores = keys @ query[view, head, row, column] / dim**0.5
                        out[view, head, row, column] = torch.softmax(scores, dim=0) @ values
    return out


def ours(query, key, value, num_views):
    """The same layout as the naive loop's, [B*V, heads, H, W, D], through the merged rows."""
    heads, height, width = query.shape[1:4]
    tokens = (x.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2) for x in (query, key, value))
    out = rowwise_multiview_attention(*(merge_rows(x, num_views, height) for x in tokens), heads)
    out = split_rows(out, num_views, height)
    return out.reshape(len(query), height, width, heads, -1).permute(0, 3, 1, 2, 4)


def draw_qkv(num_prompts, num_views, heads, height, width, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, num_prompts * num_views, heads, height, width, dim, generator=generator).unbind(0)


@given(
    num_views=st.sampled_from([1, 3, 6]),
    num_prompts=st.integers(1, 2),
    heads=st.integers(1, 2),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    dim=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_rowwise_attention_is_the_naive_loop(num_views, num_prompts, heads, height, width, dim, seed):
    qkv = draw_qkv(num_prompts, num_views, heads, height, width, dim, seed)
    expected = naive_rowwise_attention(*qkv, num_views)
    torch.testing.assert_close(ours(*qkv, num_views), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_views", [4, 0, -1])
def test_views_that_do_not_divide_the_batch_are_refused(num_views):
    with pytest.raises(ValueError, match=f"num_views={num_views} does not divide a batch of 6 views"):
        merge_rows(torch.zeros(6, 4, 2), num_views, 2)


def test_rows_of_level_halves_and_rounds_up():
    # 12x10 -> 6x5 -> 3x3 -> 2x2; 96 x 96 of SDXL at 768 px -> 48 -> 24.
    assert [rows_of_level(n, (12, 10)) for n in (120, 30, 9, 4)] == [12, 6, 3, 2]
    assert [rows_of_level(n, (96, 96)) for n in (9216, 2304, 576)] == [96, 48, 24]
    # Portrait and landscape have levels of the same number of tokens; a square root would give 5 for both.
    assert (rows_of_level(24, (4, 6)), rows_of_level(24, (6, 4))) == (4, 6)


@pytest.mark.parametrize("num_tokens", [7, 0, 121])
def test_tokens_of_no_level_are_refused(num_tokens):
    with pytest.raises(ValueError, match=f"{num_tokens} tokens do not belong to any UNet level"):
        rows_of_level(num_tokens, (12, 10))


def test_processor_adds_the_multiview_attention_to_the_ordinary_one():
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    torch.manual_seed(0)
    num_views, heads, height, width, channels = 3, 2, 2, 4, 8
    attention = Attention(query_dim=channels, heads=heads, dim_head=channels // heads)
    processor = MultiviewSelfAttention(channels, channels, mv_scale=0.7)
    tokens = torch.randn(num_views, height * width, channels)
    # The UNet's input is twice as high and wide as this level.
    out = processor(attention, tokens, num_views=num_views, latent_size=(2 * height, 2 * width))

    def split_heads(x):  # [n, h·w, heads·d] -> [n, heads, h, w, d]
        return x.reshape(num_views, height, width, heads, -1).permute(0, 3, 1, 2, 4)

    qkv = [split_heads(proj(tokens)) for proj in (processor.to_q_mv, processor.to_k_mv, processor.to_v_mv)]
    multiview = naive_rowwise_attention(*qkv, num_views).permute(0, 2, 3, 1, 4).reshape(tokens.shape)
    ordinary = AttnProcessor2_0()(attention, tokens)
    expected = ordinary + 0.7 * processor.to_out_mv[0](multiview)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_processor_refuses_cross_attention():
    from diffusers.models.attention_processor import Attention

    attention = Attention(query_dim=4, heads=1, dim_head=4)
    tokens = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="unmasked self-attention"):
        MultiviewSelfAttention(4, 4)(attention, tokens, encoder_hidden_states=tokens)


def test_every_self_attention_and_no_cross_attention_gets_one(lcm_bundle):
    processors = lcm_bundle.unet.attn_processors
    multiview = {name for name, x in processors.items() if isinstance(x, MultiviewSelfAttention)}
    # One transformer in each of 2 down blocks and the mid block, 2 in each of 2 up blocks: 7 blocks.
    assert len(multiview) == 7
    assert multiview == {name for name in processors if name.endswith("attn1.processor")}
    assert has_multiview_attention(lcm_bundle.unet)


def test_installing_twice_is_refused(lcm_bundle):
    with pytest.raises(ValueError, match="already has multiview attention"):
        install_multiview_attention(lcm_bundle.unet)


def test_unet_without_transformers_is_refused():
    from diffusers import UNet2DConditionModel

    plain = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    unet = UNet2DConditionModel(**plain, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    assert not has_multiview_attention(unet)
    with pytest.raises(ValueError, match="no self-attention"):
        install_multiview_attention(unet)


def test_with_scale_zero_the_unet_is_the_plain_one(make_lcm_bundle):
    from diffusers import UNet2DConditionModel

    unet = make_lcm_bundle().unet
    plain = UNet2DConditionModel.from_config(unet.config).eval()
    own = {name: x for name, x in unet.state_dict().items() if ".processor." not in name}
    plain.load_state_dict(own)
    for processor in unet.attn_processors.values():
        if isinstance(processor, MultiviewSelfAttention):
            processor.mv_scale = 0.0
    torch.manual_seed(1)
    inputs = {
        "sample": torch.randn(3, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(3, 5, 32),
        "timestep_cond": torch.randn(3, 16),
        "added_cond_kwargs": {"text_embeds": torch.randn(3, 16), "time_ids": torch.ones(3, 6)},
    }
    multiview = unet(**inputs, cross_attention_kwargs={"num_views": 3, "latent_size": (8, 8)}).sample
    torch.testing.assert_close(multiview, plain(**inputs).sample, atol=1e-5, rtol=1e-5)
