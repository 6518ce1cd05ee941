"""Whatever a workflow holds, the trainer gets checked values under fixed names, or the user a sentence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from t2mv_pack.nodes.train import settings
from t2mv_pack.t2mv_core import bundle
from t2mv_pack.t2mv_core.formats import sources

from t2mv_core.defaults import FEW_STEP
from training.data.prompts import load_split, read_prompt_file

GOOD: dict[str, Any] = {
    "name": "my lora", "preset": "demo", "prompts": "a red mug", "iterations": 7, "learning_rate": 1e-5,
    "rank": 4, "seed": 3, "objective": "ppo", "prompts_per_iteration": 2, "resume": True, "download": False,
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


def places(run_dir: Path, prompts: Path | None = None, on_cpu: bool = True) -> Any:
    """A run folder and the others beside it."""
    return settings.Places(run_dir, run_dir.parent / "rewards", prompts, on_cpu)


POSSIBLE = {name: st.just(value) for name, value in GOOD.items()} | {
    "name": st.from_regex(r"[a-z][\w.-]{0,20}\w", fullmatch=True),
    "preset": st.sampled_from(["demo", "toybox", "lcm-sdxl-12gb"]),
    "prompts": st.text(max_size=80),
    "seed": st.integers(0, 2**32 - 1),
    "iterations": st.integers(0, 100_000),
    "learning_rate": st.floats(0, 1),
    "rank": st.integers(0, 256),
    "resume": st.booleans(),
    "download": st.booleans(),
}


@given(
    possible=st.fixed_dictionaries(POSSIBLE),
    hostile=st.dictionaries(st.sampled_from(sorted(GOOD)), HOSTILE, max_size=1),
    folder=ANY_TEXT,
)
def test_hostile_values_are_refused_or_stay_values(
    possible: dict[str, Any], hostile: dict[str, Any], folder: str
) -> None:
    inputs = {**possible, **hostile}
    try:
        settings.check_inputs(inputs)
    except ValueError:
        return
    run_dir = Path("/runs") / folder.replace("\0", "").strip("/") / inputs["name"]
    config = settings.build_config(inputs, places(run_dir, run_dir / "prompts.jsonl"))
    assert config.preset == inputs["preset"]
    assert config.run.out_dir == str(run_dir)
    assert config.run.seed == inputs["seed"]
    assert config.model.allow_download is config.reward.allow_download is inputs["download"]
    assert config.reward.folder == str(run_dir.parent / "rewards")
    assert not config.reward.own


def assert_is_a_plain_file_name(name: str) -> None:
    """On every system, with the endings that a run adds."""
    assert Path("/runs", name).parent == Path("/runs")
    assert Path("/runs", name).resolve() == Path("/runs", name)
    assert not set(name) & set('/\\:*?"<>|\n\r\t\0')
    assert name[0].isalnum()
    assert name[-1] not in " ."
    assert len(f".{name}.safetensors.1234567.tmp".encode()) <= 255


@given(name=st.one_of(ANY_TEXT, st.from_regex(r"[\w .-]{1,52}", fullmatch=True)))
def test_accepted_names_are_plain_file_names(name: str) -> None:
    try:
        settings.check_name(name)
    except ValueError:
        return
    assert_is_a_plain_file_name(name)


@pytest.mark.parametrize("name", ["lora", "Zauberwürfel 2", "小象", "a", "v1.2-final_x", "象" * 50])
def test_ordinary_names_are_accepted_and_plain_file_names(name: str) -> None:
    settings.check_name(name)
    assert_is_a_plain_file_name(name)


@pytest.mark.parametrize(
    "name", ["", " a", "a ", "a.", ".a", "-a", "_a", "nul", "COM1.x", "a/b", "a\\b", "..", 3]
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="cannot name a LoRA"):
        settings.check_name(name)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("preset", "comparison", "is not available here"),
        ("preset", "conflict", "is not available here"),
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
def test_bad_values_are_refused_in_words(name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings.check_inputs({**GOOD, name: value})


def test_linked_values_pass_before_the_run_and_the_others_are_checked() -> None:
    assert GOOD.keys() == {field.name for field in settings.FIELDS}
    linked = dict.fromkeys(GOOD)
    settings.check_inputs(linked)
    for name in GOOD:
        settings.check_inputs({**GOOD, name: None})
        with pytest.raises(ValueError, match=f"{name}|prompts? must be a text"):
            settings.check_inputs({**linked, name: []})


@given(prompts=st.lists(st.text(max_size=30), max_size=5))
def test_prompts_come_out_of_the_file_as_they_were_typed(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    read = settings.read_training_prompts("\n".join(["# not a comment", *prompts]))
    path = tmp_path_factory.mktemp("prompts") / settings.prompts_file_name(read)
    settings.write_prompts(read, path)
    assert [line.prompt for line in read_prompt_file(path)] == read
    assert read[0] == "# not a comment"
    assert settings.prompts_file_name([*read, "one more"]) != path.name


def test_zero_means_the_presets_value() -> None:
    zeros = {**GOOD, "prompts": "", "objective": settings.PRESETS_OWN}
    zeros |= dict.fromkeys(("iterations", "learning_rate", "rank", "prompts_per_iteration"), 0)
    config = settings.build_config(zeros, places(Path("/r/x"), on_cpu=False))
    preset = settings.load_config("demo")
    assert (config.model, config.sampling, config.optim) == (preset.model, preset.sampling, preset.optim)
    assert config.objective == preset.objective
    # the same length, but a LoRA and a sheet after every iteration
    assert (config.run.epochs, config.run.iterations_per_epoch) == (30, 1)  # demo: 6 epochs of 5


def test_inputs_do_what_their_names_say() -> None:
    config = settings.build_config(GOOD, places(Path("/r/x"), Path("/r/p.jsonl")))
    assert config.run.epochs == 7
    assert config.optim.lr == 1e-5
    assert (config.model.lora_rank, config.model.lora_alpha) == (4, 4.0)  # demo's scale is 8 / 8
    assert config.objective == "ppo"
    assert (config.sampling.prompts_per_iteration, config.optim.prompts_per_update) == (2, 2)  # demo's: 4
    assert config.sampling.prompts == str(Path("/r/p.jsonl"))
    assert config.model.device == "cpu"


def model_handle(dtype: torch.dtype = torch.float32, path: Path | None = None) -> Any:
    """What Load Model and Load LoRA give, as far as a configuration speaks of it."""
    unet = torch.nn.Linear(1, 1).to(dtype)
    unet.dtype = dtype
    lora = bundle.LoraHandle("style", 0.5, path=path)
    return SimpleNamespace(
        bundle=SimpleNamespace(
            unet=unet,
            loras=(lora,),
            sources=sources.ModelSources("/m/x.safetensors", "/m/mv.safetensors", vae="/m/vae.safetensors"),
            defaults=FEW_STEP,
        )
    )


def reward_handle(name: str, kind: str) -> Any:
    return SimpleNamespace(reward=SimpleNamespace(name=name, kind=kind))


def test_what_is_connected_stands_in_the_configuration() -> None:
    model = model_handle(torch.bfloat16, Path("/l/style.safetensors"))
    rewards = [reward_handle("pickscore", "view"), reward_handle("pickscore.min", "joint")]
    config = settings.build_config(GOOD | {"preset": "lcm-sdxl"}, places(Path("/r/x")), model, rewards)
    assert (config.model.name, config.model.adapter) == ("/m/x.safetensors", "/m/mv.safetensors")
    assert config.model.vae == "/m/vae.safetensors"
    assert config.model.dtype == "bf16"
    assert [(each.path, each.strength) for each in config.model.base_loras] == [("/l/style.safetensors", 0.5)]
    assert (config.reward.view, config.reward.joint) == ({"pickscore": 1.0}, {"pickscore.min": 1.0})
    assert not config.evaluation.view  # the preset measures with rewards that nobody has connected
    # A file of few-step weights: its kind's steps and guidance, not those of the preset's model.
    assert (config.sampling.num_steps, config.sampling.guidance_scale) == (4, 1.0)


def test_a_connected_model_keeps_what_the_preset_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "read_preset", lambda preset: {"sampling": {"num_steps": "8"}})
    model = model_handle(path=Path("/l/style.safetensors"))
    sampling = settings.build_config(GOOD | {"preset": "lcm-sdxl"}, places(Path("/r/x")), model).sampling
    assert (sampling.num_steps, sampling.guidance_scale) == (8, 1.0)


def test_the_toyboxs_rewards_do_not_judge_other_models_unasked() -> None:
    model, place = model_handle(path=Path("/l/style.safetensors")), places(Path("/r/x"))
    with pytest.raises(
        ValueError, match="toybox_clip knows only the toybox's objects, and the model is /m/x"
    ):
        settings.build_config(GOOD, place, model)
    asked_for = [reward_handle("toybox_clip", "view"), reward_handle("geometry", "joint")]
    assert settings.build_config(GOOD, place, model, asked_for).reward.view == {"toybox_clip": 1.0}
    model.bundle.sources = replace(model.bundle.sources, model="toybox-teacher")
    assert settings.build_config(GOOD, place, model).reward.view == {"toybox_clip": 1.0}


def test_what_cannot_be_trained_on_is_refused() -> None:
    def build(*connected: Any) -> Any:
        return settings.build_config(GOOD, places(Path("/r/x")), *connected)

    with pytest.raises(ValueError, match="float8 cannot be trained on"):
        build(model_handle(torch.float8_e4m3fn, Path("/l/style.safetensors")))
    with pytest.raises(ValueError, match="a LoRA without a file"):
        build(model_handle())
    with pytest.raises(ValueError, match="view names no reward"):
        build(None, [reward_handle("hyperscore", "joint")])


def test_all_of_ones_own_prompts_are_trained_on(tmp_path: Path) -> None:
    """Of a few prompts a preset that holds a fifth out may leave none."""
    inputs, path = {**GOOD, "preset": "lcm-sdxl-24gb", "objective": "preset's"}, tmp_path / "prompts.jsonl"
    settings.write_prompts(["a red mug"], path)
    own = settings.build_config(inputs, places(tmp_path / "run", path))
    assert load_split(own.sampling.prompts, own.sampling.held_out_share).train == ("a red mug",)
    assert own.evaluation.prompts == "objects"  # for `training.evaluate`
    preset = settings.build_config(inputs, places(tmp_path / "run"))
    assert (preset.sampling.held_out_share, preset.evaluation.prompts) == (0.2, None)
    assert own.evaluation.every == preset.evaluation.every == 0


def test_all_of_a_few_pictures_are_trained_on(tmp_path: Path) -> None:
    """The presets of SDXL hold a fifth out, which of one picture is nothing or all."""
    there = settings.Places(tmp_path / "run", tmp_path, None, True, tmp_path / "pictures.jsonl")
    config = settings.build_config({**GOOD, "preset": "lcm-sdxl-24gb", "objective": "preset's"}, there)
    assert config.sampling.references == str(tmp_path / "pictures.jsonl")
    assert (config.sampling.held_out_share, config.evaluation.every) == (0.0, 0)
