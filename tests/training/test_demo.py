"""The demo on a tiny random model: everything is written, and the verdicts are honest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

import t2mv_core.formats.sources
from t2mv_core.loading import load_bundle
from training import demo
from training.evaluation.intervals import Interval
from training.evaluation.measure import Instruments
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import sample_scene


def test_the_demo_writes_its_folder_and_continues_when_repeated(
    tiny_model_dir, plain_rewards, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(demo, "load_base_model", lambda *_: load_bundle(str(tiny_model_dir)))
    monkeypatch.setattr(demo, "load_instruments", lambda *_: Instruments(plain_rewards))
    words = ["--out", str(tmp_path / "demo"), "--num-prompts", "2", "sampling.prompts_per_iteration=2"]
    words += [
        "optim.prompts_per_update=null",
        "run.epochs=1",
        "run.iterations_per_epoch=1",
        "sampling.num_steps=1",
        "constraint.threshold_prompts=2",
        "reward.view=redness",
        "reward.joint=agreement",
        "run.trackers=[]",
    ]
    assert demo.main(words) == 0
    for name in (
        "overview.png",
        "before.png",
        "zmv.png",
        "after.png",
        "sheet.png",
        "curves.png",
        "report.md",
        "report.json",
    ):
        assert (tmp_path / "demo" / name).exists(), name
    text = (tmp_path / "demo" / "report.md").read_text()
    assert "What the LoRA changed" in text
    with caplog.at_level("INFO"):
        assert demo.main(words) == 0
    assert "is complete already" in caplog.text


def test_the_object_opens_in_another_program_with_the_right_colours(tmp_path):
    """A blue mug: upright (y up), in the room of the pictures, and blue."""
    mug = replace(sample_scene(3, "mug", "blue", True), part_colour=None, companion_colour=None)
    images, silhouettes = render_views(mug)
    demo.write_object(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, tmp_path)
    read = trimesh.load(tmp_path / "object.glb", force="mesh")
    assert read.is_watertight
    assert np.abs(read.vertices).max() <= 0.56
    red, green, blue = read.visual.vertex_colors[:, :3].astype(float).mean(axis=0)
    assert blue > 1.5 * max(red, green)
    shown = images[silhouettes].mean(axis=0) / 255  # sRGB; the file's colours are linear
    np.testing.assert_allclose((np.array([red, green, blue]) / 255) ** (1 / 2.2), shown, atol=0.08)
    assert (tmp_path / "object.png").is_file()


def test_views_without_an_object_write_none_and_say_so(tmp_path, caplog):
    demo.write_object(torch.full((6, 3, 64, 64), 0.5), tmp_path)
    assert "make no object" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (Interval(0.1, 0.05, 0.2, 60), ": better ("),
        (Interval(0.1, -0.05, 0.2, 60), ": not shown ("),
        (Interval(-0.1, -0.2, -0.05, 60), ": WORSE ("),
    ],
)
def test_a_verdict_says_what_the_interval_says(change, word):
    assert word in demo.verdicts({"judge_colour": change})[0]


def test_a_missing_toybox_gets_a_sentence(tmp_path, capsys, monkeypatch):
    def missing(part):
        raise FileNotFoundError(f"The toybox has no {part!r}.")

    monkeypatch.setattr(t2mv_core.formats.sources, "toybox_path", missing)
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert "The toybox has no 'model'" in capsys.readouterr().err
