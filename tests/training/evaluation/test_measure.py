"""Measuring counts what the UNet computed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SamplingSettings
from t2mv_core.unet.attention import install_multiview_attention
from training.config import SamplingConfig
from training.evaluation.measure import Instruments, Variant, is_judged, make_questions, measure

SETTINGS = SamplingSettings(num_steps=3, guidance_scale=2.0, inverse_guidance_scale=1.0)


@pytest.mark.parametrize(
    ("sampler", "settings", "evaluations"),
    [
        ("standard", SETTINGS, 2 * 3),
        ("standard", replace(SETTINGS, guidance_scale=1.0), 3),
        ("zmv", SETTINGS, 2 * 3 + 1 + 2),  # the zag without guidance, and a zig more
        ("redraw", SETTINGS, 2 * 3 + 2),
    ],
)
def test_guidance_without_an_embedding_takes_two_evaluations(
    tiny_model_dir, plain_rewards, sampler, settings, evaluations
):
    from diffusers import UNet2DConditionModel

    bundle = load_bundle(str(tiny_model_dir))
    assert bundle.has_guidance_embedding
    unet = UNet2DConditionModel.from_config({**bundle.unet.config, "time_cond_proj_dim": None})
    install_multiview_attention(unet)
    guided = replace(bundle, unet=unet.eval())
    config = SamplingConfig(azimuths_deg=(0.0, 90.0), batch_size=2)
    questions = make_questions(config, ["a cat", "a dog", "an ant"], [0, 1])
    with torch.no_grad():
        measured = measure(guided, Instruments(plain_rewards), Variant("v", sampler, settings), questions)
    assert measured.evaluations_per_set == evaluations
    if sampler == "standard":
        own = measure(bundle, Instruments(plain_rewards), Variant("v", sampler, settings), questions)
        assert own.evaluations_per_set == 3


def test_pictures_larger_than_the_toyboxs_are_not_judged():
    assert is_judged(SimpleNamespace(image_px=64))
    assert not is_judged(SimpleNamespace(image_px=768))
