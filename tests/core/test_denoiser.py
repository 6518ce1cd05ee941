import math
from dataclasses import replace

import pytest
import torch

from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import (
    CameraFeatures,
    call_unet,
    compute_camera_features,
    encode_cameras,
    guidance_embedding,
    predict_noise,
)
from t2mv_core.text import TextCondition, encode_text


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def unet_calls(bundle):
    """Batch size of every call of the UNet."""
    sizes = []
    hook = bundle.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


def test_guidance_embedding_by_hand():
    # dim 4, w = 1.5: frequencies 1 and 10000^-1, angles 1000·0.5·f = 500 and 0.05. w = 1 is angle 0.
    expected = [[math.sin(500), math.sin(0.05), math.cos(500), math.cos(0.05)], [0.0, 0.0, 1.0, 1.0]]
    embedding = guidance_embedding(torch.tensor([1.5, 1.0]), 4)
    torch.testing.assert_close(embedding, torch.tensor(expected), atol=1e-4, rtol=0)


def test_camera_features_are_one_residual_per_block(bundle, rig):
    features = encode_cameras(bundle, rig)
    # 16 px pictures reduced by 2 x the VAE's 2 give 4 x 4; the third block halves once more.
    assert [tuple(x.shape) for x in features.residuals] == [(3, 32, 4, 4)] * 2 + [(3, 32, 2, 2)] * 2
    assert features.num_views == 3
    assert not any(x.requires_grad for x in features.residuals)


def test_camera_features_belong_to_their_camera_alone(bundle, rig):
    together = encode_cameras(bundle, rig)
    alone = encode_cameras(bundle, rig.subset([1]))
    for whole, part in zip(together.residuals, alone.residuals, strict=True):
        torch.testing.assert_close(whole[1:2], part, atol=1e-5, rtol=1e-5)


def test_prediction_is_repeatable_and_leaves_the_camera_features_alone(bundle, x, condition, cameras):
    before = [residual.clone() for residual in cameras.residuals]  # diffusers adds residuals in place
    first = predict_noise(bundle, x, 500, condition, cameras, 4.0)
    assert torch.equal(first, predict_noise(bundle, x, 500, condition, cameras, 4.0))
    assert all(map(torch.equal, before, cameras.residuals))
    assert first.shape == x.shape


def test_permuting_views_with_their_cameras_permutes_the_output(bundle, x, condition, rig):
    order = [2, 0, 1]
    straight = predict_noise(bundle, x, 500, condition, encode_cameras(bundle, rig), 4.0)
    cameras = encode_cameras(bundle, rig.subset(order))
    permuted = predict_noise(bundle, x[:, order], 500, condition, cameras, 4.0)
    torch.testing.assert_close(permuted, straight[:, order], atol=1e-5, rtol=1e-4)
    # ... and only with their cameras: the model knows which view it draws.
    unmoved = predict_noise(bundle, x[:, order], 500, condition, encode_cameras(bundle, rig), 4.0)
    assert float((unmoved - straight[:, order]).abs().max()) > 1e-3


def test_views_see_each_other(bundle, x, condition, cameras):
    other = x.clone()
    other[:, 2] += 1.0
    change = predict_noise(bundle, other, 500, condition, cameras, 4.0) - predict_noise(
        bundle, x, 500, condition, cameras, 4.0
    )
    assert float(change[:, 0].abs().max()) > 1e-4


def test_batch_of_prompts_is_the_prompts_one_by_one(bundle, x, condition, cameras):
    steps = torch.tensor([999, 259])
    batch = predict_noise(bundle, x, steps, condition, cameras, 4.0)
    for i in range(2):
        alone = predict_noise(bundle, x[i : i + 1], steps[i : i + 1], condition.select([i]), cameras, 4.0)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (10, 6)])
def test_pictures_need_not_be_square(bundle, condition, rig, height, width):
    x = torch.randn(2, 3, 4, height, width, generator=torch.Generator().manual_seed(4))
    size_px = (2 * height, 2 * width)
    cameras = compute_camera_features(bundle.camera_encoder, rig, *size_px)
    straight = predict_noise(bundle, x, 500, condition, cameras, 4.0)
    assert straight.shape == x.shape
    order = [1, 2, 0]
    cameras = compute_camera_features(bundle.camera_encoder, rig.subset(order), *size_px)
    permuted = predict_noise(bundle, x[:, order], 500, condition, cameras, 4.0)
    torch.testing.assert_close(permuted, straight[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_views", [1, 6])
def test_any_number_of_views(bundle, condition, num_views):
    rig = CameraRig(tuple(30.0 * i for i in range(num_views)), (0.0,) * num_views)
    x = torch.randn(2, num_views, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    assert predict_noise(bundle, x, 500, condition, encode_cameras(bundle, rig), 4.0).shape == x.shape


def test_one_number_is_a_timestep_for_all_prompts(bundle, x, condition, cameras):
    one = predict_noise(bundle, x, 500, condition, cameras, 4.0)
    assert torch.equal(one, predict_noise(bundle, x, torch.tensor([500, 500]), condition, cameras, 4.0))


def test_view_scale_multiplies_the_camera_features(bundle, x, condition, cameras):
    doubled = CameraFeatures(tuple(2.0 * residual for residual in cameras.residuals))
    expected = predict_noise(bundle, x, 500, condition, doubled, 4.0, view_scale=1.0)
    scaled = predict_noise(bundle, x, 500, condition, cameras, 4.0, view_scale=2.0)
    torch.testing.assert_close(scaled, expected, atol=1e-6, rtol=1e-5)
    silent = CameraFeatures(tuple(torch.zeros_like(residual) for residual in cameras.residuals))
    expected = predict_noise(bundle, x, 500, condition, silent, 4.0)
    dropped = predict_noise(bundle, x, 500, condition, cameras, 4.0, view_scale=0.0)
    torch.testing.assert_close(dropped, expected, atol=1e-6, rtol=1e-5)


def test_classifier_free_guidance_is_the_formula(ddim_bundle, x, prompts, rig):
    condition, cameras = encode_text(ddim_bundle, prompts, "blurry"), encode_cameras(ddim_bundle, rig)
    steps = torch.tensor([500, 500])
    positive = call_unet(ddim_bundle.unet, x, steps, condition, cameras)
    other = TextCondition(condition.negative_embeds, condition.negative_pooled, condition.time_ids)
    negative = call_unet(ddim_bundle.unet, x, steps, other, cameras)
    for scale in (0.0, 2.5, 7.0):
        guided = predict_noise(ddim_bundle, x, 500, condition, cameras, scale)
        expected = negative + scale * (positive - negative)
        torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predict_noise(ddim_bundle, x, 500, condition, cameras, 1.0), positive)


def test_guidance_embedding_reaches_the_unet(lcm_bundle, x, prompts, rig):
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    weak, strong = (predict_noise(lcm_bundle, x, 500, condition, cameras, w) for w in (1.0, 7.0))
    expected = call_unet(
        lcm_bundle.unet, x, torch.tensor([500, 500]), condition, cameras, guidance=torch.tensor([7.0, 7.0])
    )
    assert torch.equal(strong, expected)
    assert float((strong - weak).abs().max()) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_second_pass_is_only_made_where_it_has_an_effect(bundle, x, condition, cameras, unet_calls, scale):
    predict_noise(bundle, x, 500, condition, cameras, scale)
    has_second_pass = not bundle.has_guidance_embedding and scale != 1.0
    assert unet_calls == [12 if has_second_pass else 6]  # 2 prompts x 3 views


def test_guidance_without_a_negative_condition_is_refused(ddim_bundle, x, prompts, rig):
    whole = encode_text(ddim_bundle, prompts)
    plain = replace(whole, negative_embeds=None, negative_pooled=None)
    cameras = encode_cameras(ddim_bundle, rig)
    with pytest.raises(ValueError, match="needs a negative condition"):
        predict_noise(ddim_bundle, x, 500, plain, cameras, 4.0)
    predict_noise(ddim_bundle, x, 500, plain, cameras, 1.0)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sizes_that_disagree_are_refused_in_words(bundle, x, condition, cameras, scale):
    with pytest.raises(ValueError, match="x 2 views were given .* cameras of 3 views; they must agree"):
        predict_noise(bundle, x[:, :2], 500, condition, cameras, scale)
    with pytest.raises(ValueError, match="they must agree"):
        predict_noise(bundle, x, 500, condition.select([0]), cameras, scale)


def test_guidance_in_two_passes_is_guidance_in_one(ddim_bundle, x, rig, prompts):
    condition, cameras = encode_text(ddim_bundle, prompts, "blurry"), encode_cameras(ddim_bundle, rig)
    sizes = []
    hook = ddim_bundle.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    together = predict_noise(ddim_bundle, x, 500, condition, cameras, 4.0)
    sequential = replace(ddim_bundle, has_sequential_guidance=True)
    apart = predict_noise(sequential, x, 500, condition, cameras, 4.0)
    hook.remove()
    assert sizes == [12, 6, 6]
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-5)


def test_a_model_with_a_guidance_embedding_keeps_its_one_pass(lcm_bundle, x, rig, prompts):
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    together = predict_noise(lcm_bundle, x, 500, condition, cameras, 4.0)
    sequential = replace(lcm_bundle, has_sequential_guidance=True)
    assert torch.equal(predict_noise(sequential, x, 500, condition, cameras, 4.0), together)
