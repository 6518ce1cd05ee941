"""Presets, overrides, and every mistake answered by a sentence."""

import re
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

import training.config as config_module
from t2mv_core.defaults import DEFAULTS, FEW_STEP, OF_PICTURE, TOYBOX_OF_PICTURE, find_named_defaults
from t2mv_core.formats.safetensors_io import ENDINGS
from training.config import (
    OBJECTIVE_NAMES,
    OptimConfig,
    SamplingConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
    read_preset,
    sections,
)
from training.config.__main__ import main, reference_markdown
from training.config.yaml_text import read_yaml

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


@pytest.mark.parametrize("preset", preset_names())
def test_the_dual_step_is_the_published_one_where_its_rates_belong(preset):
    config = load_config(preset)
    assert config.constraint.unit == ("raw" if "hyperscore" in config.reward.joint else "spread")


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_has_its_models_numbers_and_repeats_none(preset):
    config, stated = load_config(preset), read_preset(preset)["sampling"]
    numbers = find_named_defaults(config.model.name, None).numbers()
    for name, number in numbers.items():
        assert getattr(config.sampling, name) == number
    assert not set(stated) & set(numbers)


def numbers_of(config):
    return {name: getattr(config.sampling, name) for name in FEW_STEP.numbers()}


@pytest.mark.parametrize(
    ("preset", "words", "row"),
    [
        ("demo", ["model.name=lcm-sdxl"], DEFAULTS["lcm-sdxl"]),
        ("toybox", ["model.name=toybox-teacher"], DEFAULTS["toybox-teacher"]),
        ("toybox", ["model.name=toybox-teacher", "model.solver=lcm"], FEW_STEP),
        ("lcm-sdxl", ["model.name=/m/sdxl.safetensors", "model.unet=/m/lcm"], DEFAULTS["lcm-sdxl"]),
        ("sdxl", ["model.name=/m/x", "model.solver=ddim-trailing"], FEW_STEP),
        ("sdxl", ["model.adapter=i2mv.safetensors", "sampling.references=pictures"], OF_PICTURE),
        ("sdxl", ["model.name=/m/x", "sampling.references=pictures"], OF_PICTURE),
        ("sdxl", ["sampling.references=null"], DEFAULTS["sdxl"]),
        ("lcm-sdxl", ["sampling.references=pictures"], DEFAULTS["lcm-sdxl"]),
        ("pictures", ["sampling.references=pictures"], TOYBOX_OF_PICTURE),
    ],
)
def test_numbers_that_nobody_states_are_the_models(preset, words, row):
    assert numbers_of(load_config(preset, words)) == row.numbers()


def test_numbers_that_somebody_states_stay(tmp_path):
    config = load_config("demo", ["model.name=sdxl", "sampling.num_steps=3", "sampling.inverse_view_scale=0"])
    stated = {"num_steps": 3, "inverse_view_scale": 0.0}
    assert numbers_of(config) == {**DEFAULTS["sdxl"].numbers(), **stated}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))  # as a run folder has it
    assert load_config(str(path), ["model.name=toybox"]).sampling == config.sampling


@pytest.mark.parametrize("section", ["", "sampling:\n  # num_steps: 3\n", "sampling: null\n"])
def test_a_preset_of_ones_own_has_them_too(tmp_path, section):
    path = tmp_path / "own.yaml"
    path.write_text(section)
    assert numbers_of(load_config(str(path))) == DEFAULTS["toybox"].numbers()
    config = load_config(str(path), ["model.name=/m/x"])  # the preset's model is the default one
    assert numbers_of(config) == DEFAULTS["toybox"].numbers()
    path.write_text(f"model: {{name: /m/x}}\n{section}")
    assert load_config(str(path)).sampling == SamplingConfig()  # of no row


def test_the_command_prints_the_settings_of_a_run(capsys):
    assert main(["demo", "optim.lr=1e-4"]) == 0
    assert config_from_dict(yaml.safe_load(capsys.readouterr().out)) == load_config("demo", ["optim.lr=1e-4"])
    assert main(["demo", "optim.learning=1"]) == 1
    assert "optim.learning is not a setting" in capsys.readouterr().err


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
        ("model.base_loras=[{pth: a.safetensors}]", "is not a setting; did you mean model.base_loras.path"),
        ("model.base_loras=[{path: a.safetensors, strength: .nan}]", "strength=nan must be a finite number"),
        ("model.base_loras=[a.safetensors]", "must be a block of `key: value` lines"),
        ("optim.lr=fast", "optim.lr='fast' must be a number"),
        ("optim.lr=0", "optim.lr=0.0 must be greater than 0."),
        ("optim.lr=.nan", "optim.lr=nan must be greater than 0 and finite."),
        ("optim.micro_batch=1.5", "optim.micro_batch='1.5' must be a whole number"),
        ("optim.micro_batch=true", "optim.micro_batch='true' must be a whole number"),
        ("model.allow_download=maybe", "model.allow_download='maybe' must be true or false"),
        ("objective=zigal", "objective='zigal' is not known; use one of mvc_zigal"),
        ("optim.prompts_per_update=1000", "exceeds sampling.prompts_per_iteration"),
        ("optim.steps_per_update=0", "optim.steps_per_update=0 must be at least 1, or null."),
        ("sampling.num_steps=0", "sampling.num_steps=0 must be at least 1."),
        ("sampling.zigzag_steps=9", "sampling.zigzag_steps=9 exceeds sampling.num_steps=4"),
        ("sampling.azimuths_deg=3", "must be a list"),
        ("optim.betas=[0.9]", "must have 2 entries"),
        ("optim=3", "optim must be a block"),
        ("optim.lr", "is not an override"),
        ("optim.lr=[", "must be a number"),
        ("optim.mixed_precision=fp8", "use one of no, bf16"),
        ("optim.trained_steps=0", "optim.trained_steps=0 must be at least 1, or null."),
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
        ("reward.paths={pickscore: [1]}", "reward.paths.pickscore=['1'] must be a word"),
        ("reward.own={mine: my.py}", "reward.own.mine must be a block of `key: value` lines"),
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
    ],
)
def test_a_wrong_override_gets_a_sentence(word, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_config("demo", [word])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("optim.mixed_precision=no", "no"),
        ("run.out_dir=20241128_01", "20241128_01"),
        ("run.out_dir=007", "007"),
        ("run.out_dir=1e5", "1e5"),
        ("run.out_dir=2024-11-28", "2024-11-28"),
        ("run.out_dir=12:30", "12:30"),
        ("run.out_dir=C:\\runs\\new", "C:\\runs\\new"),
        ("run.out_dir='null'", "null"),
        ("sampling.negative_prompt=low quality #1", "low quality #1"),
        ("sampling.negative_prompt=blurry: yes, *very* & !much", "blurry: yes, *very* & !much"),
        ("sampling.negative_prompt=off", "off"),
        ("sampling.negative_prompt='quoted # text'", "quoted # text"),
        ("sampling.negative_prompt=null", None),
        ("sampling.azimuths_deg=[0, 045, 090]", (0.0, 45.0, 90.0)),
        ("run.seed=010", 10),
        ("optim.lr=3e-4", 3e-4),
        ("optim.lr=1e1", 10.0),
        ("optim.splits_pairs=yes", True),
        ("optim.splits_pairs=False", False),
        ("reward.paths={pickscore: 0123}", {"pickscore": "0123"}),
    ],
)
def test_a_value_means_what_was_typed(word, value, tmp_path):
    section, _, rest = word.partition(".")
    key, _, text = rest.partition("=")
    assert getattr(getattr(load_config("demo", [word]), section), key) == value
    if "#1" in text or ": yes" in text:
        return  # in a file these are a comment and a block
    path = tmp_path / "own.yaml"
    path.write_text(f"{section}:\n  {key}: {text}\n")
    config = load_config(str(path))
    assert getattr(getattr(config, section), key) == value
    assert config_from_dict(read_yaml(yaml.safe_dump(config_to_dict(config)), "config.yaml")) == config


@pytest.mark.parametrize("text", ["[deformed], ugly", "{red|blue} mug", "'low' quality", '"a" mug', "["])
def test_a_text_of_the_command_line_may_begin_as_yaml_does(text):
    assert load_config("demo", [f"sampling.negative_prompt={text}"]).sampling.negative_prompt == text


def test_a_key_twice_on_the_command_line_is_refused():
    with pytest.raises(ValueError, match="lr is there twice"):
        load_config("demo", ["optim={lr: 1, lr: 2}"])


@pytest.mark.parametrize("text", ["1_000", "0x10", "0b1", "1:30", "1e2", "twelve"])
def test_a_number_in_another_notation_is_refused_rather_than_guessed(text):
    with pytest.raises(ValueError, match=f"run.seed='{text}' must be a whole number"):
        load_config("demo", [f"run.seed={text}"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("optim:\n  lr: 1e-5\nrun:\n  seed: 1\noptim:\n  weight_decay: 0\n", "line 5.*optim is there twice"),
        ("optim:\n  lr: 1e-5\n  lr: 1e-4\n", "line 3.*lr is there twice"),
        ("optim: {lr: 1, 'lr': 2}\n", "line 1.*lr is there twice"),
        ("reward:\n  view: {pickscore: 1, pickscore: 2}\n", "line 2.*pickscore is there twice"),
        ("optim:\n  lr: [\n", "line 3: this is not valid YAML"),
        ("optim:\n\tlr: 1\n", "line 2: this is not valid YAML"),
        ("optim: !!python/object:os.system {}\n", "line 1: this is not valid YAML"),
        ("run:\n  seed: !!int ''\n", "own.yaml: a value does not fit"),
        ("run:\n  out_dir: !!timestamp x\n", "own.yaml: a value does not fit"),
        ("run:\n  out_dir: !!bool x\n", "own.yaml: a value does not fit"),
        ("optim: " + "[" * 5000, "own.yaml: this is not valid YAML"),
    ],
)
def test_a_preset_with_a_key_twice_or_damaged_is_refused_with_the_line(tmp_path, text, place):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=place if place.startswith("own") else f"own.yaml, {place}"):
        load_config(str(path))


def test_a_preset_in_another_encoding_gets_a_sentence(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("optim: {lr: 1}", encoding="utf-16")
    with pytest.raises(ValueError, match=r"own.yaml is not UTF-8 text; save it as UTF-8"):
        load_config(str(path))


def test_a_section_of_comments_is_an_empty_one(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("\ufeffoptim:\n  # lr: 1\nrun: &same\n  seed: 3\n", encoding="utf-8")
    assert load_config(str(path)).optim == OptimConfig()
    assert load_config(str(path), ["optim.lr=1e-3"]).optim.lr == 1e-3


HOME_WORDS = {
    "run.out_dir": "~/runs/x",
    "model.name": "~/models/sdxl",
    "model.unet": "~/unet",
    "model.vae": "~/vae.safetensors",
    "model.scheduler": "~/scheduler",
    "model.adapter": "~/a.safetensors",
    "sampling.prompts": "~/p.txt",
    "evaluation.prompts": "~/q.txt",
    "reward.folder": "~/rewards",
}


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    preset = tmp_path / "own.yaml"
    preset.write_text("model: {base_loras: [{path: ~/l.safetensors}]}\n")
    words = [
        *(f"{key}={text}" for key, text in HOME_WORDS.items()),
        "reward.paths={pickscore: ~/pick}",
        "reward.own={mine: {file: ~/my.py}}",
    ]
    config = load_config("~/own.yaml", words)
    for key, text in HOME_WORDS.items():
        section, _, name = key.partition(".")
        assert getattr(getattr(config, section), name) == text.replace("~", str(tmp_path))
    assert config.model.base_loras[0].path == f"{tmp_path}/l.safetensors"
    assert config.reward.paths == {"pickscore": f"{tmp_path}/pick"}
    assert config.reward.own["mine"].file == f"{tmp_path}/my.py"
    assert load_config("demo", ["sampling.negative_prompt=~/x"]).sampling.negative_prompt == "~/x"


def test_every_setting_in_words_is_a_path_or_known_to_be_none():
    """A new setting with a path must not forget the home folder."""
    kinds = {node.__name__: node for node in vars(sections).values() if is_dataclass(node)}
    plain = {
        f"{kind}.{name}"
        for kind, node in kinds.items()
        for name, hint in typing.get_type_hints(node, include_extras=True).items()
        if hint in (str, str | None)
    }
    assert plain == {
        "TrainConfig.preset", "ModelConfig.device", "SamplingConfig.negative_prompt",
        "RewardConfig.device", "OwnRewardConfig.function", "EvaluationConfig.stop_measure",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a" + ending for ending in (*ENDINGS, *map(str.upper, ENDINGS))])
def test_a_base_lora_ends_as_the_nodes_take_it(name):
    (lora,) = load_config("demo", [f"model.base_loras=[{{path: {name}}}]"]).model.base_loras
    assert lora.path == name


def test_every_path_of_a_command_line_may_begin_with_the_home_folder():
    root = TRAINING_DIR.parent
    folders = ("training", "benchmarks", "docs")
    sources = [path for folder in folders for path in (root / folder).rglob("*.py")]
    assert [path.name for path in sources if "type=Path" in path.read_text("utf-8")] == []


def test_rewards_are_names_with_weights_or_one_name():
    named = load_config("demo", ["reward.view={pickscore: 2, hpsv2: 0.5}", "reward.joint=hyperscore"]).reward
    assert named.view == {"pickscore": 2.0, "hpsv2": 0.5}
    assert named.joint == {"hyperscore": 1.0}
    for word in ("reward.joint=null", "reward.joint={}"):
        assert load_config("demo", ["objective=zigal_view", word]).reward.joint == {}


@pytest.mark.parametrize("objective", OBJECTIVE_NAMES)
def test_objectives_that_need_a_joint_reward_say_so(objective):
    words = [f"objective={objective}", "reward.joint={}"]
    if objective in ("zigal_view", "reward_difference", "reward_difference_own_noise", "ppo"):
        assert load_config("demo", words).reward.joint == {}
    else:
        with pytest.raises(ValueError, match=f"objective={objective} needs a joint reward"):
            load_config("demo", words)


@pytest.mark.parametrize(
    "word",
    [
        "evaluation.prompts=dev",
        "sampling.held_out_share=0.1",
        "sampling.prompts=own.jsonl",
        "sampling.references=OWN.JSONL",
    ],
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


def test_a_reward_of_the_command_line_joins_those_there_are():
    config = load_config("comparison", ["reward.joint.geometry=0.5"])  # the preset states none
    assert config.reward.joint == {"toybox_hyperscore": 1.0, "geometry": 0.5}
    config = load_config("lcm-sdxl", ["reward.view.hpsv2=0.5"])  # the preset names one word
    assert config.reward.view == {"pickscore": 1.0, "hpsv2": 0.5}
    config = load_config("lcm-sdxl", ['reward.view="hpsv2"', "reward.view.pickscore=0.5"])
    assert config.reward.view == {"hpsv2": 1.0, "pickscore": 0.5}
    config = load_config("pictures", ["reward.view.picture_similarity=2"])
    assert config.reward.view == {"toybox_picture": 1.0, "picture_similarity": 2.0}
    assert load_config("comparison", ["reward.joint={geometry: 0.5}"]).reward.joint == {"geometry": 0.5}
