"""One table of numbers, and which row a model gets."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from t2mv_core.defaults import (
    DEFAULTS,
    FEW_STEP,
    OF_PICTURE,
    TOYBOX_OF_PICTURE,
    ModelDefaults,
    find_defaults,
    find_named_defaults,
)
from t2mv_core.formats.sources import PRESETS
from t2mv_core.loading import load_bundle
from t2mv_core.samplers import SamplingSettings
from t2mv_core.schedule import SOLVERS

ROWS = [*DEFAULTS.values(), FEW_STEP, OF_PICTURE, TOYBOX_OF_PICTURE]


def test_every_preset_has_a_row_that_a_sampler_can_use():
    assert [name for name in PRESETS if name in DEFAULTS] == list(DEFAULTS)
    assert all(find_named_defaults(name, None) is not None for name in PRESETS)
    for row in ROWS:
        settings = SamplingSettings(**row.numbers())
        assert row.numbers() == {name: getattr(settings, name) for name in row.numbers()}
        assert row.solver in SOLVERS
        assert row.source in ("measured", "published")


def test_the_rows_of_published_weights_are_the_published_numbers():
    """docs/method.md, sections 2, 4 and 7; what nobody tried there does not become a default."""
    published = {
        "zigzag_steps": 1,
        "inverse_guidance_scale": 1.0,
        "inverse_view_scale": 1.0,
        "ref_scale": 1.0,
    }
    assert DEFAULTS["lcm-sdxl"].numbers() == {"num_steps": 8, "guidance_scale": 7.0, **published}
    assert DEFAULTS["sdxl"].numbers() == {"num_steps": 16, "guidance_scale": 7.0, **published}
    assert {DEFAULTS[name].source for name in ("lcm-sdxl", "sdxl")} == {"published"}


def test_a_row_holds_numbers_of_the_samplers_settings_and_nothing_else():
    names = {field.name for field in fields(ModelDefaults)} - {"solver", "source"}
    assert names == set(FEW_STEP.numbers())
    assert names <= {field.name for field in fields(SamplingSettings)}


@pytest.mark.parametrize(
    ("model", "has_guidance_embedding", "solver", "row"),
    [
        ("toybox", True, "lcm", DEFAULTS["toybox"]),
        ("toybox", True, "ddim", DEFAULTS["toybox"]),  # guidance stays an input of the UNet
        ("toybox-teacher", False, "ddim-trailing", DEFAULTS["toybox-teacher"]),
        ("toybox-teacher", False, "ddim", DEFAULTS["toybox-teacher"]),
        ("toybox-teacher", False, "lcm", FEW_STEP),  # with its LCM-LoRA
        ("lcm-sdxl", True, "lcm", DEFAULTS["lcm-sdxl"]),
        ("lcm-sdxl", False, "ddim", DEFAULTS["sdxl"]),  # another UNet was put in
        ("sdxl", False, "ddim", DEFAULTS["sdxl"]),
        ("sdxl", False, "ddim-trailing", FEW_STEP),  # Turbo, Lightning, Hyper-SD
        ("sdxl", False, "lcm", FEW_STEP),
        ("/m/lcm", True, "lcm", DEFAULTS["lcm-sdxl"]),
        ("/m/sdxl.safetensors", False, "ddim", DEFAULTS["sdxl"]),
        ("/m/dmd2.safetensors", False, "lcm", FEW_STEP),
    ],
)
def test_a_model_gets_its_own_row_or_that_of_its_kind(model, has_guidance_embedding, solver, row):
    assert find_defaults(model, has_guidance_embedding, solver) is row
    # With the MV-Adapter of image to multiview SDXL itself and the bundled student have other numbers.
    with_picture = {"sdxl": OF_PICTURE, "toybox": TOYBOX_OF_PICTURE}
    expected = next((with_picture[name] for name in with_picture if row is DEFAULTS[name]), row)
    assert find_defaults(model, has_guidance_embedding, solver, is_of_picture=True) is expected


def test_sdxl_draws_views_of_a_picture_with_the_published_numbers():
    assert (OF_PICTURE.num_steps, OF_PICTURE.guidance_scale) == (50, 3.0)
    assert DEFAULTS["sdxl"].solver == OF_PICTURE.solver == "ddim"


def test_without_its_files_only_a_name_of_the_table_is_known():
    assert {name: find_named_defaults(name, None) for name in DEFAULTS} == DEFAULTS
    assert find_named_defaults("toybox-teacher", "lcm") is FEW_STEP
    assert find_named_defaults("/m/sdxl.safetensors", "ddim") is None
    assert find_named_defaults("few-step", None) is None
    assert find_named_defaults("sdxl", None, is_of_picture=True) is OF_PICTURE
    assert find_named_defaults("toybox-image", None, is_of_picture=True) is TOYBOX_OF_PICTURE
    assert find_named_defaults("toybox-image-teacher", None, True) is DEFAULTS["toybox-teacher"]


def test_the_bundled_student_takes_more_of_a_picture_and_is_otherwise_as_for_text():
    assert replace(TOYBOX_OF_PICTURE, ref_scale=1.0) == DEFAULTS["toybox"]
    assert TOYBOX_OF_PICTURE.ref_scale == 1.5
    assert {row.ref_scale for row in ROWS if row is not TOYBOX_OF_PICTURE} == {1.0}
    assert load_bundle("toybox-image").defaults is TOYBOX_OF_PICTURE


def test_reading_the_table_imports_nothing_heavy():
    """Nodes read it when ComfyUI starts, and the configuration before anything is loaded."""
    code = "import sys, t2mv_core.defaults; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    command, root = [sys.executable, "-c", code], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
