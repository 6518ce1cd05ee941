"""The whole recipe in its quick form: every stage runs, what it exports loads, a second call only resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2mv_core.loading import load_bundle
from t2mv_core.toybox import TOYBOX_DIR
from training.toybox.__main__ import STAGES, main


@pytest.mark.slow
def test_the_quick_recipe_makes_a_model_that_loads(tmp_path: Path) -> None:
    words = ["all", "--quick", "--out", str(tmp_path)]
    assert main(words) == 0
    export = tmp_path / "export"
    bundle = load_bundle(str(export / "model"))
    assert bundle.has_guidance_embedding
    assert bundle.image_px == 64
    card = (export / "MODEL_CARD.md").read_text()
    assert json.loads((export / "report.json").read_text())["student"]["judge_family"]["count"] == 4
    assert "student, ZMV" in card
    assert "teacher with the LoRA, LCM" in card
    assert "toybox-image, contradiction" in card
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*state.pt")}
    assert len(finished) == 10  # VAE, base, two adapters, two students, two rewards, judge, distillation LoRA
    for stage in ("vae", "base", "adapter", "lcm", "rewards", "judge", "lcm_lora", "aware", "image_adapter"):
        assert main([stage, *words[1:]]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing was trained again


@pytest.mark.slow
def test_the_bundled_weights_stand_in_for_finished_stages(tmp_path: Path) -> None:
    words = ["--quick", "--out", str(tmp_path)]
    assert main(["render", *words]) == 0
    assert main(["restore", *words]) == 0
    assert main(["export", *words]) == 0  # reads the states
    made, bundled = (load_bundle(str(folder / "model")) for folder in (tmp_path / "export", TOYBOX_DIR))
    for name, tensor in bundled.unet.state_dict().items():
        assert torch.equal(made.unet.state_dict()[name], tensor), name
    adapters = [folder / "mvadapter.safetensors" for folder in (tmp_path / "export", TOYBOX_DIR)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    psnr = json.loads((tmp_path / "vae" / "report.json").read_text())["psnr_db"]
    assert psnr > 26


def test_an_unknown_stage_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render-all"])
    message = capsys.readouterr().err
    assert all(stage in message for stage in STAGES)


def test_a_stage_without_its_predecessor_says_which_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rewards", "--quick", "--out", str(tmp_path)]) == 2
    assert "run `python -m training.toybox render` first" in capsys.readouterr().err
