"""The image adapter: no effect at first, words that say less, pictures for most sets, figures per object."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2mv_core.reference import compute_reference_features
from t2mv_core.reference_picture import GENERIC_PROMPT
from training.toybox.data.dataset import dataset_scene
from training.toybox.stages.image_adapter import draw_pictures, draw_words
from training.toybox.stages.image_report import Objects, contradicting, figures, prompts_of, true_spec
from training.toybox.stages.networks import MultiviewNetworks


@pytest.fixture(scope="module")
def networks() -> MultiviewNetworks:
    torch.manual_seed(0)
    text = MultiviewNetworks()
    networks = MultiviewNetworks(has_reference=True).eval().requires_grad_(False)
    networks.put_in(text)
    networks.start_reference()
    networks.text = text.eval().requires_grad_(False)
    return networks


def test_a_new_reference_attention_changes_nothing(networks):
    x, steps = torch.randn(2, 6, 4, 16, 16), torch.tensor([900, 100])
    condition = networks.encode(["a red mug", "a blue car"])
    reference = compute_reference_features(networks.unet, torch.randn(2, 4, 16, 16), condition)
    views = networks.predict_views(x, steps, condition, networks.cameras(), reference=reference)
    torch.testing.assert_close(views, networks.text.predict(x, steps, condition), rtol=1e-4, atol=1e-4)


def test_only_the_adapters_weights_are_trained(networks):
    names = {name for name, _ in networks.named_parameters()}
    learned = {id(parameter) for parameter in networks.adapter_parameters()}
    chosen = {name for name, parameter in networks.named_parameters() if id(parameter) in learned}
    assert all(".processor." in name or name.startswith("camera_encoder.") for name in chosen)
    assert sum("_ref" in name for name in chosen) == 7 * 5
    assert names - chosen


def test_words_say_nothing_the_kind_or_everything():
    scene = dataset_scene(0, 3)
    drawn = Counter(draw_words(scene, np.random.default_rng(n)) for n in range(400))
    assert drawn[""] == pytest.approx(100, abs=30)
    assert drawn[GENERIC_PROMPT] == pytest.approx(120, abs=30)
    family = drawn[f"a {scene.family}"] + drawn[f"an {scene.family}"]
    assert family == pytest.approx(80, abs=30)
    assert all(scene.colour in words for words in drawn if words and words.count(" ") > 1)


def test_about_a_tenth_of_the_sets_goes_without_a_picture(networks):
    pictures = np.random.default_rng(0).normal(size=(5, 2, 4, 16, 16)).astype(np.float16)
    condition = networks.encode(["a red mug"] * 8)
    counts = []
    for seed in range(12):
        picked = np.arange(8) % 5
        counts.append(len(draw_pictures(networks, pictures, picked, condition, np.random.default_rng(seed))))
    assert 6.0 < np.mean(counts) < 8.0
    assert min(counts) < 8


def test_a_contradiction_names_a_colour_that_is_not_there():
    scenes = [dataset_scene(1, number, allow_held_out=True) for number in range(30)]
    for scene, words in zip(scenes, prompts_of(scenes)["contradiction"], strict=True):
        assert contradicting(scene) in words
        assert contradicting(scene) not in (scene.colour, scene.part_colour, scene.companion_colour)
    assert len({contradicting(scene) for scene in scenes}) > 4
    assert all(true_spec(scene).part_colour not in ("wooden", "metal") for scene in scenes)


def test_kept_is_family_and_all_colours_and_psnr_is_by_hand():
    truth = torch.zeros(2, 6, 3, 8, 8)
    images = torch.zeros(2, 6, 3, 8, 8, dtype=torch.uint8)
    images[0, 2], images[1] = 51, 102  # errors of 0.2 in one view, of 0.4 in all
    nan = float("nan")
    values = {
        "judge_family": torch.tensor([[1.0], [1.0]]),
        "judge_colour": torch.tensor([[1.0], [0.0]]),
        "judge_part": torch.tensor([[nan], [1.0]]),
        "judge_relation": torch.tensor([[nan], [nan]]),
    }
    settings = SimpleNamespace(num_steps=4, guidance_scale=3.0)
    found = SimpleNamespace(values=values, images=images, variant=SimpleNamespace(settings=settings))
    objects = Objects((), torch.zeros(2, 3, 8, 8), torch.tensor([2, 0]), truth)
    entry = figures(found, objects)
    assert entry["kept"]["mean"] == 0.5
    assert "judge_relation" not in entry
    by_hand = [-10 * np.log10(0.04 / 6), -10 * np.log10(0.16)]
    assert entry["psnr"]["mean"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    own_side = [-10 * np.log10(0.04), -10 * np.log10(0.16)]
    assert entry["psnr_own_side"]["mean"] == pytest.approx(np.mean(own_side), abs=1e-4)
