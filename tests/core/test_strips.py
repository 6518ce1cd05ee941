import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from t2mv_core.strips import decode_in_strips


def a_vae(**changes):
    """diffusers' VAE with random weights whose norms do something."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    options = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 4,
    }
    vae = AutoencoderKL(**{**options, **changes})
    for name, parameter in vae.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return a_vae()


def some_latents(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 12), height=st.integers(1, 11), width=st.integers(1, 6), num=st.integers(1, 2))
def test_strips_of_any_height_give_the_picture_that_diffusers_decodes(rows, height, width, num):
    vae, latents = a_vae(), some_latents(num, 4, height, width)
    expected = vae.decode(latents).sample
    torch.testing.assert_close(decode_in_strips(vae, latents, rows), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_add_attention": False},
        {"use_post_quant_conv": False},
        {"act_fn": "gelu"},
        {"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D")},
    ],
    ids=["plain", "direct", "another activation", "attention between the resnets"],
)
def test_other_decoders_of_diffusers(changes):
    vae, latents = a_vae(**changes), some_latents(1, 4, 6, 5)
    expected = vae.decode(latents).sample
    torch.testing.assert_close(decode_in_strips(vae, latents, 2), expected, atol=2e-5, rtol=2e-5)


def test_brightness_far_from_zero_costs_no_digits(vae):
    vae = copy.deepcopy(vae)
    vae.decoder.conv_in.bias.add_(1000.0)  # a variance from sums of squares would be off by percents here
    latents = some_latents(1, 4, 8, 8)
    exact = copy.deepcopy(vae).double().decode(latents.double()).sample
    ours, theirs = decode_in_strips(vae, latents, 2), vae.decode(latents).sample
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + 1e-5


def test_half_precision_is_as_good_as_diffusers(vae):
    latents = some_latents(1, 4, 8, 8)
    exact, half = vae.decode(latents).sample, copy.deepcopy(vae).bfloat16()
    ours = decode_in_strips(half, latents.bfloat16(), 2)
    assert ours.dtype == torch.bfloat16
    theirs = half.decode(latents.bfloat16()).sample
    assert (ours - exact).abs().mean() <= 1.2 * (theirs - exact).abs().mean()


def test_no_activation_is_copied_whole(vae, monkeypatch):
    seen = []
    convolve = torch.nn.functional.conv2d

    def watch(x, weight, *others, **more):
        if weight.shape[2:] == (3, 3):
            seen.append(x.shape[2] * x.shape[3])
        return convolve(x, weight, *others, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watch)
    decode_in_strips(vae, some_latents(1, 4, 16, 4), 2)
    # The last level has 4 x the latents' side: strips of 8 rows, one more above and below, 16 wide.
    assert max(seen) == (8 + 2) * 16


def test_the_vae_and_the_latents_are_left_alone(vae):
    latents = some_latents(1, 4, 4, 4)
    before, weights = latents.clone(), copy.deepcopy(vae.state_dict())
    first = decode_in_strips(vae, latents, 1)
    assert torch.equal(latents, before)
    assert all(torch.equal(weight, weights[name]) for name, weight in vae.state_dict().items())
    assert torch.equal(decode_in_strips(vae, latents, 1), first)


def test_a_strip_without_rows_is_refused(vae):
    with pytest.raises(ValueError, match="strip_latent_rows=0 must be at least 1"):
        decode_in_strips(vae, some_latents(1, 4, 4, 4), 0)
