from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from t2mv_core.defaults import find_named_defaults
from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.sources import TOYBOX_PRESETS, ModelSources
from t2mv_core.loading import load_bundle
from t2mv_core.samplers import sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise


def test_bundle_is_never_changed(lcm_bundle):
    with pytest.raises(FrozenInstanceError):
        lcm_bundle.loras = ()


def test_encoders_are_not_needed_while_the_unet_works(make_lcm_bundle, rig, prompts, settings):
    """Text and cameras encoded first; then their encoders may lie anywhere, here where nothing computes."""
    bundle = make_lcm_bundle()
    condition, cameras = encode_text(bundle, prompts), encode_cameras(bundle, rig)
    expected = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    for encoder in (bundle.text_encoder, bundle.text_encoder_2, bundle.camera_encoder):
        encoder.to("meta")
    got = sample_standard(bundle, condition, cameras, SeededNoise([1, 2]), settings)
    assert torch.equal(got.denoised, expected.denoised)


def test_text_is_encoded_where_the_encoders_are(make_lcm_bundle, prompts):
    bundle = make_lcm_bundle()
    bundle.unet.to("meta")
    condition = encode_text(bundle, prompts)
    assert condition.prompt_embeds.device.type == "cpu"


@pytest.mark.parametrize(
    ("kind", "solver", "model", "guidance"),
    [
        ("lcm", "lcm", "tiny", 7.0),  # a UNet with a guidance input, as LCM-SDXL's
        ("lcm", "ddim", "tiny", 7.0),
        ("lcm", "lcm", "toybox", 3.0),
        ("ddim", "ddim", "tiny", 7.0),
        ("ddim", "ddim", "toybox-teacher", 2.0),
        ("ddim", "ddim-trailing", "toybox-teacher", 2.0),  # as its files say
        ("ddim", "lcm", "tiny", 1.0),
        ("ddim", "ddim-trailing", "tiny", 1.0),
        ("ddim", "lcm", "toybox-teacher", 1.0),  # with its LCM-LoRA
    ],
)
def test_every_model_has_a_guidance_of_its_own(request, kind, solver, model, guidance):
    bundle = request.getfixturevalue(f"{kind}_bundle").with_solver(solver)
    bundle = replace(bundle, sources=ModelSources(model=model, solver=solver))
    assert bundle.defaults.guidance_scale == guidance


@pytest.mark.parametrize("model", TOYBOX_PRESETS)
def test_the_shipped_models_are_of_the_kind_that_their_row_says(model):
    bundle = load_bundle(model)
    assert bundle.defaults is find_named_defaults(model, None)
    assert bundle.defaults.solver == bundle.schedule.solver_name
