import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.unet.attention import MultiviewSelfAttention
from t2mv_core.unet.reference_attention import NO_PICTURE, ReferenceFeatures, reference_attention


def naive_reference_attention(query, key, value, num_views, heads):
    """Every (view, head, token) by itself: softmax(q·k/√D) over all tokens of its set's picture."""
    out = torch.zeros_like(query)
    dim = query.shape[-1] // heads
    for view in range(len(query)):
        picture = view // num_views
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            for token in range(query.shape[1]):
                scores = key[picture, :, part] @ query[view, token, part] / dim**0.5
                out[view, token, part] = torch.softmax(scores, dim=0) @ value[picture, :, part]
    return out


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    num_pictures=st.integers(1, 2),
    num_views=st.sampled_from([1, 3, 6]),
    heads=st.integers(1, 2),
    num_tokens=st.integers(1, 5),
    num_reference_tokens=st.integers(1, 5),
    dim=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_reference_attention_is_the_naive_loop(
    num_pictures, num_views, heads, num_tokens, num_reference_tokens, dim, seed
):
    query = draw(num_pictures * num_views, num_tokens, heads * dim, seed=seed)
    key, value = draw(2, num_pictures, num_reference_tokens, heads * dim, seed=seed + 1)
    expected = naive_reference_attention(query, key, value, num_views, heads)
    torch.testing.assert_close(reference_attention(query, key, value, heads), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def layer():
    """An attention of 2 heads, its processor without multiview attention, and tokens of 2 sets of 3 views."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    attention = Attention(query_dim=8, heads=2, dim_head=4)
    processor = MultiviewSelfAttention(8, 8, mv_scale=0.0, reference_name="here.attn1")
    return attention, processor, draw(6, 2 * 4, 8)


def run(layer, reference):
    attention, processor, tokens = layer
    with torch.no_grad():
        return processor(attention, tokens, num_views=3, latent_size=(4, 8), reference=reference)


def test_processor_adds_the_reference_attention_to_the_ordinary_one(layer):
    from diffusers.models.attention_processor import AttnProcessor2_0

    attention, processor, tokens = layer
    states = draw(2, 5, 8, seed=1)  # the picture need not have the views' size
    out = run(layer, ReferenceFeatures({"elsewhere.attn1": draw(2, 5, 8), "here.attn1": states}, scale=0.7))
    with torch.no_grad():
        qkv = processor.to_q_ref(tokens), processor.to_k_ref(states), processor.to_v_ref(states)
        read = processor.to_out_ref[0](naive_reference_attention(*qkv, num_views=3, heads=2))
        expected = AttnProcessor2_0()(attention, tokens) + 0.7 * read
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_sets_without_a_picture_have_states_of_zeros_and_get_the_bias(layer):
    states = draw(1, 5, 8, seed=1)
    padded = torch.cat([states, torch.zeros(1, 5, 8)])
    first = run(layer, ReferenceFeatures({"here.attn1": states}))
    expected = run(layer, ReferenceFeatures({"here.attn1": padded}))
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-5)
    none, bias = run(layer, None), layer[1].to_out_ref[0].bias.detach()
    torch.testing.assert_close(first[3:], (none + bias)[3:], atol=1e-6, rtol=0)
    torch.testing.assert_close(run(layer, NO_PICTURE), none + bias, atol=1e-6, rtol=0)
    assert float((first[:3] - none[:3] - bias).abs().max()) > 1e-2


def test_a_picture_by_itself_gets_the_self_attention_alone(layer):
    from diffusers.models.attention_processor import AttnProcessor2_0

    attention, processor, tokens = layer
    processor.mv_scale = 1.0
    with torch.no_grad():
        alone = processor(attention, tokens, num_views=None, latent_size=(4, 8))
        torch.testing.assert_close(alone, AttnProcessor2_0()(attention, tokens), atol=1e-6, rtol=1e-5)
    assert float((run(layer, None) - alone).abs().max()) > 1e-2


def test_states_in_another_precision_are_converted(layer):
    states = draw(2, 5, 8, seed=1).bfloat16()
    out = run(layer, ReferenceFeatures({"here.attn1": states}))
    assert out.dtype == torch.float32
    assert torch.equal(out, run(layer, ReferenceFeatures({"here.attn1": states.float()})))


def test_every_self_attention_of_an_image_model_has_it_and_none_of_a_text_model(image_bundle, bundle):
    names = {name for name in image_bundle.unet.state_dict() if name.endswith("to_q_ref.weight")}
    attentions = {name for name in image_bundle.unet.attn_processors if name.endswith("attn1.processor")}
    assert names == {f"{name}.to_q_ref.weight" for name in attentions}
    assert len(names) == 7
    assert not any("_ref" in name for name in bundle.unet.state_dict())


def test_features_are_selected_scaled_and_dropped():
    features = ReferenceFeatures({"a": torch.arange(6.0).reshape(3, 2, 1), "b": torch.arange(3.0)[:, None]})
    assert len(features) == 3
    chosen = features.select([2, 0, 0])
    assert chosen.states["a"][:, 0, 0].tolist() == [4.0, 0.0, 0.0]
    assert chosen.states["b"][:, 0].tolist() == [2.0, 0.0, 0.0]
    scaled = features.scaled(0.5).scaled(3.0)
    assert (scaled.scale, scaled.select([1]).scale, scaled.to("cpu").scale) == (1.5, 1.5, 1.5)
    assert scaled.states["a"] is features.states["a"]
    assert (len(scaled.without_pictures()), scaled.without_pictures().scale) == (0, 1.5)
    assert (len(NO_PICTURE), len(NO_PICTURE.select([0, 1]))) == (0, 0)
