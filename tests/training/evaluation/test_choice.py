"""Prompts that chose the LoRA are not measured on unnoticed."""

import pytest
import torch

from t2mv_core.formats.safetensors_io import write_safetensors
from training import compare, demo
from training.config import load_config
from training.evaluation.choice import choice_facts, remark_on_choice

STOPPED = ["evaluation.every=5", "evaluation.stop_measure=view_reward", "evaluation.num_prompts=16"]
ON_DEV = [*STOPPED, "evaluation.prompts=dev"]
ON_SHARE = [*STOPPED, "sampling.held_out_share=0.2"]


@pytest.mark.parametrize(
    ("written_with", "evaluated_with", "words"),
    [
        (ON_DEV, ON_DEV, None),
        (ON_DEV, [], "on prompts (evaluation.prompts=dev evaluation.num_prompts=16) that"),
        (ON_DEV, [*STOPPED, "evaluation.prompts=heldout"], "on prompts (evaluation.prompts=dev "),
        ([*STOPPED, "evaluation.prompts=/home/me/own.txt"], [], "(evaluation.prompts=own.txt "),
        (ON_SHARE, ON_SHARE, None),
        (ON_SHARE, [*STOPPED, "sampling.held_out_share=0.5"], " sampling.held_out_share=0.2) that"),
        ([], ON_DEV, None),  # an older file names the measure only
        ([], [], "on prompts (its file does not say which) that"),
    ],
)
def test_a_lora_that_other_prompts_chose_is_remarked_on(written_with, evaluated_with, words, tmp_path):
    best, last = tmp_path / "best.safetensors", tmp_path / "epoch_0001.safetensors"
    facts = {"evaluation_view_reward": "0.5", **choice_facts(load_config("demo", written_with))}
    write_safetensors({"x": torch.zeros(1)}, best, facts)
    write_safetensors({"x": torch.zeros(1)}, last, {"view_reward_mean": "0.5"})
    remarks = remark_on_choice({best: "best", last: "last"}, load_config("demo", evaluated_with))
    if words is None:
        assert remarks == []
    else:
        (remark,) = remarks
        assert words in remark


def test_the_demo_measures_on_no_prompts_that_choose_its_lora(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--num-prompts", "16", *STOPPED, "evaluation.prompts=heldout"]
    assert demo.main(words) == 1
    assert "chooses the LoRA by 16 of the 16 prompts to measure on" in capsys.readouterr().err


def test_the_comparison_measures_on_no_prompts_that_choose_a_lora(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--methods", "none", "mvc_zigal_stopped", "--report-only"]
    assert compare.main([*words, "--prompts", "dev"]) == 1
    assert "chooses the LoRA by 40 of the" in capsys.readouterr().err
    assert len(compare.tasks_of(compare.build_parser().parse_args(words))) == 8  # on heldout
