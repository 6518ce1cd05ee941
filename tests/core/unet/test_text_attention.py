"""Cross-attention per prompt is diffusers' cross-attention per view."""

import pytest
import torch
import torch.nn.functional as F

from t2mv_core.unet.text_attention import TextCrossAttention, attend


@pytest.mark.parametrize("num_rows", [2, 6])
def test_rows_of_words_per_prompt_or_per_view_give_what_diffusers_gives(num_rows):
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    torch.manual_seed(0)
    num_views = 3
    attention = Attention(query_dim=8, cross_attention_dim=5, heads=2, dim_head=4)
    tokens, words = torch.randn(2 * num_views, 6, 8), torch.randn(num_rows, 7, 5)
    found = TextCrossAttention()(attention, tokens, words, num_views=num_views)
    per_view = words.repeat_interleave(2 * num_views // num_rows, dim=0)
    torch.testing.assert_close(found, AttnProcessor2_0()(attention, tokens, per_view), atol=1e-6, rtol=1e-5)


def test_words_are_projected_once_per_prompt(lcm_bundle, rig):
    from t2mv_core.denoiser import encode_cameras, predict_noise
    from t2mv_core.text import encode_text

    cameras, rows = encode_cameras(lcm_bundle, rig), []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        for name, module in lcm_bundle.unet.named_modules()
        if name.endswith("attn2.to_k")
    ]
    condition = encode_text(lcm_bundle, ["a red mug", "a blue chair"])
    x = torch.zeros(2, cameras.num_views, 4, 8, 8)
    with torch.no_grad():
        predict_noise(lcm_bundle, x, 999, condition, cameras, 7.0)
    for hook in hooks:
        hook.remove()
    assert set(rows) == {2}


def test_rows_that_do_not_divide_are_refused():
    from diffusers.models.attention_processor import Attention

    attention = Attention(query_dim=4, cross_attention_dim=4, heads=1, dim_head=4)
    with pytest.raises(ValueError, match="2 rows of words do not divide 3 views"):
        TextCrossAttention()(attention, torch.zeros(3, 4, 4), torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="unmasked cross-attention"):
        TextCrossAttention()(attention, torch.zeros(3, 4, 4))


def test_half_precision_on_the_cpu_attends_in_float32():
    generator = torch.Generator().manual_seed(0)
    low = [torch.randn(1, 2, 5, 8, generator=generator).bfloat16() for _ in range(3)]
    exact = F.scaled_dot_product_attention(*(x.float() for x in low))
    for has_autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
            found = attend(*low)
        assert torch.equal(found, exact.bfloat16())
