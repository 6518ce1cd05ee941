"""The path that measures on a GPU, run on the CPU with a small model and a meter that counts its calls."""

import copy
from dataclasses import replace

import pytest

from benchmarks import memory_budget
from benchmarks.memory_budget import PLANS, Meter, estimate, measure
from t2mv_core.loading import load_bundle
from t2mv_core.text import encode_text

SAMPLING = ["text", "cameras", "unet", "vae"]


@pytest.fixture
def small(monkeypatch):
    """The bundled model (its teacher where guidance takes two passes) in place of the full-size one."""
    models = {True: load_bundle("toybox"), False: load_bundle("toybox-teacher")}
    bundle = models[True]
    monkeypatch.setattr(memory_budget, "create_bundle", lambda is_lcm, *_: copy.deepcopy(models[is_lcm]))
    monkeypatch.setattr(memory_budget, "draw_condition", lambda n, *_: encode_text(bundle, ["a mug"] * n))
    monkeypatch.setattr(memory_budget, "IMAGE_PX", bundle.image_px)
    monkeypatch.setattr(memory_budget, "LATENT_PX", bundle.latent_px)
    monkeypatch.setattr(memory_budget, "NUM_TOKENS", 24)
    monkeypatch.setattr(memory_budget, "DTYPE", bundle.dtype)


@pytest.mark.parametrize(
    "name",
    [
        "LCM-SDXL, all on the device, six views decoded at once",
        "SDXL with guidance, staged, two passes",
        "training, pair of sets per micro-step, no checkpointing",
        "training, one set (splits_pairs), checkpointing",
    ],
)
def test_a_plan_is_measured_stage_by_stage(small, name):
    forgotten = []
    meter = Meter(lambda: forgotten.append(name), lambda: len(forgotten) * 2**30)
    plan = PLANS[name]
    found = measure(plan, "cpu", meter)
    stages = ["micro-step"] if plan.trained_sets else SAMPLING
    assert found == {stage: number + 1.0 for number, stage in enumerate(stages)}


def test_training_is_estimated_without_a_device(small, monkeypatch):
    def outline(*_):
        bundle = load_bundle("toybox")
        parts = {name: copy.deepcopy(module).to("meta") for name, module in bundle.modules().items()}
        return replace(bundle, **parts)

    monkeypatch.setattr(memory_budget, "create_bundle", outline)
    condition = encode_text(load_bundle("toybox"), ["a mug"]).to("meta")
    monkeypatch.setattr(memory_budget, "draw_condition", lambda *_: condition)
    checkpointed, plain = (
        estimate(PLANS[f"training, one set (splits_pairs), {how}checkpointing"])["micro-step"]
        for how in ("", "no ")
    )
    assert 0 < checkpointed < plain
