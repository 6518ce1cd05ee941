"""Whatever a workflow holds, the trainer gets checked values under fixed names, or the user a sentence."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from training.config import load_config
from training.data.prompts import read_prompt_file
from training.mvczigal import build_parser

GOOD: dict[str, Any] = {
    "name": "my lora", "preset": "demo", "prompts": "a red mug", "iterations": 7, "learning_rate": 1e-5,
    "rank": 4, "seed": 3, "objective": "ppo", "prompts_per_iteration": 2, "resume": True, "download": False,
}  # fmt: skip
KEYS = {
    "run.out_dir", "run.epochs", "run.iterations_per_epoch", "run.keep_loras", "run.sheet_prompts",
    "run.trackers", "run.seed", "model.allow_download", "model.device", "model.lora_rank", "model.lora_alpha",
    "reward.allow_download", "reward.folder", "sampling.prompts", "sampling.prompts_per_iteration",
    "objective", "optim.lr", "optim.prompts_per_update",
}  # fmt: skip
ANY_TEXT = st.text(st.characters(), max_size=80)  # unpaired surrogates too: paths can hold them
HOSTILE = st.one_of(
    ANY_TEXT,
    st.sampled_from(["../x", "a/b", "--preset", "optim.lr=1", "a\n--resume", "con", "x" * 200, ".", "a\0b"]),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def settings(pack: ModuleType) -> ModuleType:
    """`nodes/train/settings.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.train.settings")


@pytest.fixture(scope="module")
def process(pack: ModuleType) -> ModuleType:
    """`nodes/train/process.py` of the loaded pack."""
    return importlib.import_module(f"{pack.__name__}.nodes.train.process")


@given(text=ANY_TEXT)
def test_any_text_survives_yaml_in_plain_characters(settings: ModuleType, text: str) -> None:
    written = settings.yaml_value(text)
    assert written.isascii()
    assert written.isprintable()
    assert yaml.safe_load(written) == text


@pytest.mark.parametrize("value", [0, 12, 3e-5, 1e-320, True, [], [1, 2]])
def test_other_values_survive_the_trainers_reading(settings: ModuleType, value: Any) -> None:
    read = yaml.safe_load(settings.yaml_value(value))
    assert (float(read) if isinstance(value, float) else read) == value  # YAML 1.1 takes 3e-05 for a word


@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)), HOSTILE, max_size=3), folder=ANY_TEXT)
def test_hostile_values_are_refused_or_stay_values(
    settings: ModuleType, process: ModuleType, changes: dict[str, Any], folder: str
) -> None:
    inputs = {**GOOD, **changes}
    try:
        settings.check_inputs(inputs)
    except ValueError:
        return
    run_dir = Path("/runs") / folder.replace("\0", "").strip("/") / inputs["name"]
    preset = load_config(inputs["preset"])
    around = (run_dir, run_dir.parent / "rewards", True)
    words = settings.build_overrides(inputs, preset, *around, run_dir / "prompts.jsonl")
    assert {word.partition("=")[0] for word in words} <= KEYS
    command = process.build_command(inputs["preset"], inputs["resume"], words)
    read = build_parser().parse_intermixed_args(command[command.index(process.CODE) + 2 :])
    assert (read.preset, read.resume == "auto", read.overrides) == (
        inputs["preset"], inputs["resume"], words,
    )  # fmt: skip
    config = load_config(inputs["preset"], words)
    assert config.run.out_dir == str(run_dir)
    assert config.run.seed == inputs["seed"]
    assert config.model.allow_download is config.reward.allow_download is inputs["download"]
    assert config.reward.folder == str(run_dir.parent / "rewards")
    assert not config.reward.own


@given(name=st.one_of(ANY_TEXT, st.from_regex(r"[\w .-]{1,52}", fullmatch=True)))
def test_accepted_names_are_plain_file_names(settings: ModuleType, name: str) -> None:
    try:
        settings.check_name(name)
    except ValueError:
        return
    assert Path("/runs", name).parent == Path("/runs")
    assert Path("/runs", name).resolve() == Path("/runs", name)
    assert not set(name) & set('/\\:*?"<>|\n\r\t\0')
    assert name[0].isalnum()
    assert name[-1] not in " ."
    assert len(f".{name}.safetensors.1234567.tmp".encode()) <= 255


@pytest.mark.parametrize("name", ["lora", "Zauberwürfel 2", "小象", "a", "v1.2-final_x"])
def test_ordinary_names_are_accepted(settings: ModuleType, name: str) -> None:
    settings.check_name(name)


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a.", ".a", "-a", "_a", "nul", "COM1.x", "a/b", "a\\b", "..", 3]
)
def test_other_names_are_refused(settings: ModuleType, name: Any) -> None:
    with pytest.raises(ValueError, match="cannot name a LoRA"):
        settings.check_name(name)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("preset", "comparison", "is not available here"),
        ("objective", "mvc", "is not available here"),
        ("iterations", 1.5, "must be a whole number"),
        ("iterations", True, "must be a whole number"),
        ("rank", 257, "must be a whole number from 0 to 256"),
        ("seed", -1, "must be a whole number from 0"),
        ("learning_rate", math.nan, "must be a number from 0 to 1"),
        ("learning_rate", "fast", "must be a number from 0 to 1"),
        ("download", "yes", "must be true or false"),
        ("prompts", 5, "must be a text"),
        ("prompts", "\ud83d", "half a character"),
        ("prompts", "\n".join(map(str, range(5001))), "5001 prompts"),
    ],
)
def test_bad_values_are_refused_in_words(settings: ModuleType, name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings.check_inputs({**GOOD, name: value})


def test_linked_values_pass_before_the_run(settings: ModuleType) -> None:
    settings.check_inputs(dict.fromkeys(GOOD))


@given(prompts=st.lists(st.text(max_size=30), max_size=5))
def test_prompts_come_out_of_the_file_as_they_were_typed(
    settings: ModuleType, tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    read = settings.read_training_prompts("\n".join(["# not a comment", *prompts]))
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    settings.write_prompts(read, path)
    assert [line.prompt for line in read_prompt_file(path)] == read
    assert read[0] == "# not a comment"


def test_zero_means_the_presets_value(settings: ModuleType) -> None:
    zeros = {**GOOD, "prompts": "", "objective": settings.PRESETS_OWN}
    zeros |= dict.fromkeys(("iterations", "learning_rate", "rank", "prompts_per_iteration"), 0)
    preset = load_config("demo")
    around = (Path("/r/x"), Path("/models/t2mv_rewards"), False)
    config = load_config("demo", settings.build_overrides(zeros, preset, *around, None))
    assert (config.model, config.sampling, config.optim) == (preset.model, preset.sampling, preset.optim)
    assert config.objective == preset.objective
    # the same length, but a LoRA and a sheet after every iteration
    assert (config.run.epochs, config.run.iterations_per_epoch) == (25, 1)  # demo: 5 epochs of 5


def test_overrides_do_what_their_names_say(settings: ModuleType) -> None:
    around = (Path("/r/x"), Path("/models/t2mv_rewards"), True)
    words = settings.build_overrides(GOOD, load_config("demo"), *around, Path("/r/p.jsonl"))
    config = load_config("demo", words)
    assert config.run.epochs == 7
    assert config.optim.lr == 1e-5
    assert (config.model.lora_rank, config.model.lora_alpha) == (4, 4.0)  # demo's scale is 8 / 8
    assert config.objective == "ppo"
    assert (config.sampling.prompts_per_iteration, config.optim.prompts_per_update) == (2, 2)  # demo's: 4
    assert config.sampling.prompts == str(Path("/r/p.jsonl"))
    assert config.model.device == "cpu"
