"""The demo on a tiny random model: everything is written, and the verdicts are honest."""

import pytest

import t2mv_core.formats.sources
from t2mv_core.loading import load_bundle
from training import demo
from training.evaluation.intervals import Interval
from training.evaluation.measure import Instruments


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
