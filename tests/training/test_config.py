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
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    preset_names,
)

TRAINING_DIR = Path(config_module.__file__).parent


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_survives_a_round_trip(preset):
    config = load_config(preset)
    assert config.preset == preset
    assert config_from_dict(yaml.safe_load(yaml.safe_dump(config_to_dict(config)))) == config


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
        ("optim.lr=0", "optim.lr=0.0 must be greater than zero"),
        ("optim.lr=.nan", "optim.lr=nan must be greater than zero"),
        ("optim.micro_batch=1.5", "optim.micro_batch=1.5 must be a whole number"),
        ("optim.micro_batch=true", "optim.micro_batch=True must be a whole number"),
        ("model.allow_download=maybe", "model.allow_download='maybe' must be true or false"),
        ("objective=zigal", "objective='zigal' is not known; use one of mvc_zigal"),
        ("optim.prompts_per_update=1000", "exceeds sampling.prompts_per_iteration"),
        ("optim.steps_per_update=0", "steps_per_update=0"),
        ("sampling.num_steps=0", "sampling.num_steps=0 must be greater than zero"),
        ("sampling.zigzag_steps=9", "must lie between 0 and sampling.num_steps"),
        ("sampling.azimuths_deg=3", "must be a list"),
        ("optim.betas=[0.9]", "must have 2 entries"),
        ("optim=3", "optim. must be a block"),
        ("optim.lr", "is not an override"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.mixed_precision=fp8", "use one of no, bf16"),
    ],
)
def test_a_wrong_override_gets_a_sentence(word, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_config("demo", [word])


def test_an_unknown_preset_names_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match="use one of demo, toybox"):
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


def leaf_fields(kind, prefix=""):
    for field in fields(kind):
        nested = field.default_factory if is_dataclass(field.default_factory) else None
        yield from leaf_fields(nested, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]


def test_every_setting_has_a_reader_and_a_sentence():
    readers = "".join(p.read_text() for p in TRAINING_DIR.glob("*.py") if not p.name.startswith("config"))
    source = Path(config_module.__file__).read_text()
    for name in leaf_fields(TrainConfig):
        attribute = name.rpartition(".")[2]
        assert re.search(rf"\.{attribute}\b", readers), f"no code reads {name}"
        assert re.search(rf'\n    {attribute}: .+\n    """', source), f"{name} is not explained"
