"""Presets, overrides, and every mistake answered by a sentence."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

import training.config as config_module
from training.config import (
    OBJECTIVE_NAMES,
    OptimConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
)
from training.config.__main__ import reference_markdown

TRAINING_DIR = Path(config_module.__file__).parents[1]


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_survives_a_round_trip(preset):
    config = load_config(preset)
    assert config.preset == preset
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))) == config


@pytest.mark.parametrize(("preset", "processes"), [("lcm-sdxl", 4), ("lcm-sdxl-24gb", 1), ("sdxl", 4)])
def test_presets_of_the_published_recipe_have_its_effective_batch(preset, processes):
    """method.md, section 7: 16 prompts over all devices an iteration, one update from all their steps."""
    config = load_config(preset)
    assert config.sampling.prompts_per_iteration == 16
    assert config.sampling.prompts_per_iteration % processes == 0
    assert config.optim.prompts_per_update is config.optim.steps_per_update is None
    published_accumulation = {"lcm-sdxl": 32, "sdxl": 64}[config.model.name]  # per device, of four
    per_device = config.sampling.prompts_per_iteration // 4 * config.sampling.num_steps
    assert per_device // config.optim.micro_batch == published_accumulation


def test_overrides_replace_single_values():
    config = load_config(
        "demo", ["optim.lr=3e-5", "objective=zigal_view", "sampling.azimuths_deg=[0]", "run.seed=7"]
    )
    assert (config.optim.lr, config.objective, config.sampling.azimuths_deg, config.run.seed) == (
        3e-5,
        "zigal_view",
        (0.0,),
        7,
    )
    assert config.model == load_config("demo").model


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optim.cliprange=1", "optim.cliprange is not a setting; did you mean optim.clip_range"),
        ("optm.lr=1", "optm is not a setting; did you mean optim"),
        ("optim.lr=fast", "optim.lr='fast' must be a number"),
        ("optim.lr=0", "optim.lr=0.0 must be greater than 0."),
        ("optim.lr=.nan", "optim.lr=nan must be greater than 0 and finite."),
        ("optim.micro_batch=1.5", "optim.micro_batch=1.5 must be a whole number"),
        ("optim.micro_batch=true", "optim.micro_batch=True must be a whole number"),
        ("model.allow_download=maybe", "model.allow_download='maybe' must be true or false"),
        ("objective=zigal", "objective='zigal' is not known; use one of mvc_zigal"),
        ("optim.prompts_per_update=1000", "exceeds sampling.prompts_per_iteration"),
        ("optim.steps_per_update=0", "optim.steps_per_update=0 must be at least 1, or null."),
        ("sampling.num_steps=0", "sampling.num_steps=0 must be at least 1."),
        ("sampling.zigzag_steps=9", "sampling.zigzag_steps=9 exceeds sampling.num_steps=4"),
        ("sampling.azimuths_deg=3", "must be a list"),
        ("optim.betas=[0.9]", "must have 2 entries"),
        ("optim=3", "optim. must be a block"),
        ("optim.lr", "is not an override"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.mixed_precision=fp8", "use one of no, bf16"),
        ("optim.trained_steps=0", "optim.trained_steps=0 must be at least 1, or null."),
        ("optim.trained_steps=-1", "optim.trained_steps=-1 must be at least 1, or null."),
        ("optim.trained_steps=5", "optim.trained_steps=5 exceeds sampling.num_steps=4"),
        ("optim.kl_weight=-1", "optim.kl_weight=-1.0 must be at least 0."),
        ("optim.kl_weight=.nan", "optim.kl_weight=nan must be at least 0 and finite."),
        ("optim.ema_decay=1", "optim.ema_decay=1.0 must be greater than 0 and less than 1, or null."),
        ("sampling.num_views=0", "sampling.num_views=0 must be at least 1, or null."),
        ("sampling.num_views=7", "sampling.num_views=7 exceeds the 6 angles"),
        ("sampling.azimuths_deg=[]", "sampling.azimuths_deg is empty"),
        ("sampling.azimuths_deg=[0, .inf]", "sampling.azimuths_deg=inf must be a finite number."),
        ("sampling.zigzag_repeats=3", "sampling.zigzag_repeats=3 must be at least 1 and at most 2."),
        ("optim.betas=[0.9, 1]", "optim.betas=1.0 must be at least 0 and less than 1."),
        ("constraint.threshold_init=.nan", "constraint.threshold_init=nan must be a finite number, or null."),
        ("constraint.lambda_init=9", "constraint.lambda_init=9.0 exceeds constraint.lambda_max=5.0"),
        ("model.solver=euler", "'euler' is not known; use one of lcm, ddim, ddim-trailing, or null."),
        ("model.base_loras=[{path: a.bin}]", "path='a.bin' must be a LoRA file"),
        ("sampling.state_dtype=fp16", "sampling.state_dtype='fp16' is not known; use one of fp32, bf16"),
        ("sampling.held_out_share=1", "sampling.held_out_share=1.0 must be at least 0 and less than 1."),
        ("reward.view={}", "reward.view names no reward"),
        ("reward.view=null", "reward.view names no reward"),
        ("reward.view={toybox_clip: 0}", "reward.view.toybox_clip=0.0 must be greater than 0."),
        ("reward.joint={a: .inf}", "reward.joint.a=inf must be greater than 0 and finite."),
        ("reward.joint={a: much}", "reward.joint.a='much' must be a number"),
        ("reward.view=[toybox_clip]", "must be a name, or names with weights"),
        ("reward.normalization=batch", "use one of iteration, prompt"),
        ("reward.dtype=fp8", "reward.dtype='fp8' is not known; use one of auto, fp32, bf16, fp16"),
        ("reward.paths=somewhere", "reward.paths='somewhere' must be a block of names"),
        ("reward.paths={pickscore: [1]}", "reward.paths.pickscore=[1] must be a word"),
        ("reward.own={mine: my.py}", "reward.own.mine. must be a block of `key: value` lines"),
        ("reward.own={mine: {file: my.txt}}", "file='my.txt' must be a Python file (.py)"),
        (
            "reward.own={mine: {file: my.py, function: a.b}}",
            "function='a.b' is not the name of a Python function",
        ),
        ("reward.own={mine: {file: my.py, kind: both}}", "kind='both' is not known; use one of view, joint"),
        ("reward.own={mine: {path: my.py}}", "reward.own.mine.path is not a setting; did you mean"),
        ("reward.own={my.own: {file: my.py}}", "reward.own.my.own must be named by letters"),
        ("evaluation.view=hpsv2", "evaluation.view='hpsv2' must be a list"),
        (
            "reward.joint={}",
            "needs a joint reward; set reward.joint, or use one of zigal_view",
        ),
        ("evaluation.every=5", "evaluation.every=5 needs prompts: set evaluation.prompts"),
        ("evaluation.every=-1", "evaluation.every=-1 must be at least 0."),
        ("evaluation.num_prompts=0", "evaluation.num_prompts=0 must be at least 1."),
        ("evaluation.patience=1", "evaluation.patience=1 needs evaluation.every and evaluation.stop_measure"),
        ("run.keep_loras=0", "run.keep_loras=0 must be at least 1, or null."),
        ("run.keep_loras=-2", "run.keep_loras=-2 must be at least 1, or null."),
    ],
)
def test_a_wrong_override_gets_a_sentence(word, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_config("demo", [word])


def test_the_word_no_is_not_taken_for_false():
    assert load_config("lcm-sdxl", ["optim.mixed_precision=no"]).optim.mixed_precision == "no"


def test_rewards_are_names_with_weights_or_one_name():
    named = load_config("demo", ["reward.view={pickscore: 2, hpsv2: 0.5}", "reward.joint=hyperscore"]).reward
    assert named.view == {"pickscore": 2.0, "hpsv2": 0.5}
    assert named.joint == {"hyperscore": 1.0}
    for word in ("reward.joint=null", "reward.joint={}"):
        assert load_config("demo", ["objective=zigal_view", word]).reward.joint == {}


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_objectives_that_need_a_joint_reward_say_so(objective):
    words = [f"objective={objective}", "reward.joint={}"]
    if objective in ("zigal_view", "reward_difference", "ppo"):
        assert load_config("demo", words).reward.joint == {}
    else:
        with pytest.raises(ValueError, match=f"objective={objective} needs a joint reward"):
            load_config("demo", words)


@pytest.mark.parametrize(
    "word", ["evaluation.prompts=dev", "sampling.held_out_share=0.1", "sampling.prompts=own.jsonl"]
)
def test_evaluation_gets_its_prompts_from_one_of_three_places(word):
    assert load_config("demo", ["evaluation.every=5", word]).evaluation.every == 5


def test_an_unknown_preset_names_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"use one of {', '.join(preset_names())}, or"):
        load_config("dmeo")
    path = tmp_path / "own.yaml"
    path.write_text("optim: {lr: 2e-4}\n")
    assert (load_config(str(path)).optim.lr, load_config(str(path)).preset) == (2e-4, "own")


def test_reading_the_configuration_imports_only_the_standard_library():
    code = "import sys, training.config; print([m for m in ('torch', 'yaml', 'numpy') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=TRAINING_DIR.parent
    )
    assert found.stdout.strip() == "[]"


def test_every_place_that_builds_a_record_has_its_values_checked():
    with pytest.raises(ValueError, match=r"optim.lr=-1.0 must be greater than 0"):
        OptimConfig(lr=-1)
    with pytest.raises(ValueError, match="optim.micro_batch='two' must be a whole number"):
        OptimConfig(micro_batch="two")


def test_the_reference_page_is_what_the_code_says():
    page = TRAINING_DIR.parent / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference_markdown(), (
        "python -m training.config > docs/configuration.md"
    )


def leaf_fields(kind, prefix=""):
    for field in fields(kind):
        nested = field.default_factory if is_dataclass(field.default_factory) else None
        yield from leaf_fields(nested, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]


def test_every_setting_has_a_reader_and_a_sentence():
    config_dir = TRAINING_DIR / "config"
    readers = "".join(p.read_text() for p in TRAINING_DIR.rglob("*.py") if p.parent != config_dir)
    source = "".join(p.read_text() for p in config_dir.glob("*.py"))
    for name in leaf_fields(TrainConfig):
        attribute = name.rpartition(".")[2]
        assert re.search(rf"\.{attribute}\b", readers), f"no code reads {name}"
        assert re.search(rf'\n    {attribute}: .+\n    """', source), f"{name} is not explained"
