"""A few-step LoRA as the frozen base: it acts always, it never changes, and it is not saved as ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.safetensors_io import read_safetensors
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import add_lora
from t2mv_core.lora.files import load_lora, lora_state_dict, save_lora
from t2mv_core.samplers import SamplingSettings, sample_standard
from t2mv_core.text import encode_text
from t2mv_core.trajectory import SeededNoise
from training import evaluate
from training.config import BaseLoraConfig, ModelConfig
from training.evaluate import parse
from training.models.base_loras import add_base_loras, check_base_loras, describe_other_base, load_base_model
from training.models.policy import LORA_NAME, camera_rig, reference_policy
from training.run.checkpoint import load_checkpoint
from training.run.trainer import Trainer

TARGETS = ("to_q", "to_k", "ff.net.2", "conv1", "time_emb_proj")
STRENGTH = 0.8
SHORT = {"epochs": 1, "iterations_per_epoch": 1}


@pytest.fixture
def base_lora(tiny_model_dir, tmp_path) -> Path:
    """A LoRA that changes what the tiny model says, on linear layers and convolutions."""
    return make_lora(tiny_model_dir, tmp_path / "few_step.safetensors", seed=1)


def make_lora(model_dir, path, seed):
    unet = load_bundle(str(model_dir)).unet
    torch.manual_seed(seed)
    add_lora(unet, 2, 2, "new", targets=TARGETS)
    with torch.no_grad():
        for tensor in lora_state_dict(unet, "new").values():
            tensor.copy_(0.3 * torch.randn(tensor.shape))
    save_lora(unet, path, {}, "new")
    return path


@pytest.fixture
def make_trainer(tiny_model_dir, plain_rewards, tiny_config, tmp_path):
    """Trainers of the tiny model on base LoRAs, sampled as DDIM although the model is an LCM."""

    def make(*paths, name="run", resume=False, strength=STRENGTH, **sections):
        loras = [{"path": str(path), "strength": strength} for path in paths]
        own = {"name": str(tiny_model_dir), "solver": "ddim-trailing", "base_loras": loras}
        model = {**own, **sections.pop("model", {})}
        run = {"sheet_prompts": 0, "out_dir": str(tmp_path / name), **sections.pop("run", {})}
        config = tiny_config(model=model, run=run, **sections)
        return Trainer(config, load_base_model(config.model, "cpu"), plain_rewards, resume=resume)

    return make


def sample(bundle, seed=3):
    """The latents that `bundle` ends at, and its log-probabilities."""
    rig = camera_rig((0.0, 90.0))
    condition = encode_text(bundle, ["a red mug", "a blue car"])
    settings = SamplingSettings(num_steps=2, guidance_scale=1.0)
    with torch.no_grad():
        cameras = encode_cameras(bundle, rig)
        found = sample_standard(bundle, condition, cameras, SeededNoise([seed, seed + 1]), settings)
    return torch.cat([found.denoised.flatten(), found.log_probs.flatten()])


def test_the_base_lora_acts_and_is_left_as_it_was(make_trainer, base_lora, tiny_model_dir):
    plain = load_bundle(str(tiny_model_dir)).with_solver("ddim-trailing")
    expected = sample(load_lora(plain, base_lora, STRENGTH))
    assert not torch.equal(expected, sample(plain))
    trainer = make_trainer(base_lora, optim={"kl_weight": 1.0}, run={"epochs": 1})
    bundle = trainer.policy.bundle
    assert bundle.schedule.solver_name == "ddim-trailing"
    name = bundle.loras[0].name
    before = {key: tensor.clone() for key, tensor in lora_state_dict(bundle.unet, name).items()}
    assert torch.equal(sample(bundle), expected)  # a new LoRA changes nothing
    assert trainer.run()
    for key, tensor in lora_state_dict(bundle.unet, name).items():
        assert torch.equal(tensor, before[key])
        assert not tensor.requires_grad
    assert torch.equal(sample(reference_policy(trainer.policy).bundle), expected)
    assert not torch.equal(sample(bundle), expected)
    assert trainer.learner.reference.bundle.loras == bundle.loras[:1]


def test_the_saved_lora_is_ours_alone_and_says_what_lies_below(make_trainer, base_lora):
    trainer = make_trainer(base_lora, run=SHORT)
    trainer.run()
    tensors, metadata = read_safetensors(trainer.folder.lora_path(1))
    modules = {key.rpartition(".lora_")[0] for key in lora_state_dict(trainer.policy.bundle.unet, LORA_NAME)}
    assert {key.partition(".")[0] for key in tensors} == {
        f"lora_unet_{name.replace('.', '_')}" for name in modules
    }
    assert not any("conv1" in key for key in tensors)
    (fact,) = json.loads(metadata["base_loras"])
    assert (fact["file"], fact["strength"]) == ("few_step.safetensors", STRENGTH)
    assert len(fact["sha256"]) == 64
    assert metadata["solver"] == "ddim-trailing"
    assert describe_other_base(metadata, trainer.policy.bundle.loras[:1]) == []
    assert describe_other_base(read_safetensors(base_lora)[1], ()) == []  # says nothing of a base
    (sentence,) = describe_other_base(metadata, ())
    assert "was trained on base LoRAs few_step.safetensors at 0.8" in sentence
    assert "not on none" in sentence


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_two_loras_loaded_in_a_row_draw_what_training_drew(
    make_trainer, base_lora, tiny_model_dir, ema_decay
):
    trainer = make_trainer(base_lora, optim={"ema_decay": ema_decay}, run=SHORT)
    trainer.run()
    plain = load_bundle(str(tiny_model_dir)).with_solver("ddim-trailing")
    both = load_lora(load_lora(plain, base_lora, STRENGTH), trainer.folder.lora_path(1))
    with trainer._averaged():
        expected = sample(trainer.policy.bundle)
    assert torch.equal(sample(both), expected)
    # In the other order the sums are rounded differently, and nothing else.
    swapped = load_lora(load_lora(plain, trainer.folder.lora_path(1)), base_lora, STRENGTH)
    torch.testing.assert_close(sample(swapped), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sections", ["plain", "everything"], indirect=True)
def test_a_run_on_a_base_lora_resumes_bit_for_bit(make_trainer, base_lora, sections, tmp_path):
    sections = {name: dict(values) for name, values in sections.items()}
    whole = make_trainer(base_lora, name="whole", **sections)
    whole.run()
    make_trainer(base_lora, name="parts", run={"epochs": 1}, **sections).run()
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(base_lora.read_bytes())  # the file may lie elsewhere by now
    parts = make_trainer(moved, name="parts", resume=True, **sections)
    assert parts.iteration == 2
    parts.run()
    first, second = (load_checkpoint(t.folder.state_path).lora for t in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_resume_on_another_base_is_refused_in_words(make_trainer, base_lora, tiny_model_dir, tmp_path):
    make_trainer(base_lora, run=SHORT).run()
    other = make_lora(tiny_model_dir, tmp_path / "other.safetensors", seed=2)
    now_none = r"was started on base LoRAs few_step.safetensors at 0.8 \(sha256 \w{8}\), now they are none"
    with pytest.raises(ValueError, match=now_none):
        make_trainer(resume=True, run=SHORT)
    with pytest.raises(ValueError, match="now they are other.safetensors at 0.8"):
        make_trainer(other, resume=True, run=SHORT)
    with pytest.raises(ValueError, match="now they are few_step.safetensors at 0.5"):
        make_trainer(base_lora, resume=True, run=SHORT, strength=0.5)
    with pytest.raises(ValueError, match="was started with model.solver=ddim-trailing, now it is lcm"):
        make_trainer(base_lora, resume=True, run=SHORT, model={"solver": "lcm"})
    assert make_trainer(base_lora, resume=True, run=SHORT).iteration == 1


def test_evaluate_measures_on_top_of_the_base_loras(make_trainer, base_lora, tmp_path, monkeypatch):
    """`--run` brings base LoRAs and solver along, settings name them; either way the same numbers."""
    trainer = make_trainer(base_lora, run=SHORT)
    trainer.run()
    seen = []

    def load_and_keep(config):
        seen.append(load_base_model(config))
        return seen[-1]

    monkeypatch.setattr(evaluate, "load_base_model", load_and_keep)
    monkeypatch.setattr(evaluate, "check_reward_models", lambda *given: None)
    monkeypatch.setattr(evaluate, "load_instruments", lambda *given: Instruments_of(trainer))
    short = ["--num-prompts", "1", "--seeds", "0", "--samplers", "standard", "--prompts", "dev"]
    short += ["--lora", str(trainer.folder.lora_path(1))]
    by_run = evaluate.run(*parse(["--run", str(trainer.folder.root), *short, "--out", str(tmp_path / "a")]))
    settings = [f"model.name={trainer.config.model.name}", "model.solver=ddim-trailing"]
    settings += [f"model.base_loras=[{{path: {base_lora}, strength: {STRENGTH}}}]"]
    settings += ["sampling.azimuths_deg=[0, 90]", "sampling.guidance_scale=7", "reward.view=redness"]
    by_name = evaluate.run(
        *parse(["--preset", "demo", *short, "--steps", "2", "--out", str(tmp_path / "b"), *settings])
    )
    for bundle in seen:
        assert [handle.strength for handle in bundle.loras] == [STRENGTH]
        assert bundle.schedule.solver_name == "ddim-trailing"
    first, second = (
        [row["measures"] for row in json.loads(path.with_suffix(".json").read_text())["variants"]]
        for path in (by_run, by_name)
    )
    assert first == second
    assert first[0] != first[1]  # base and LoRA differ


def Instruments_of(trainer):  # noqa: N802 - reads like the class it makes
    from training.evaluation.measure import Instruments

    return Instruments(trainer.rewards)


def test_files_that_are_no_lora_are_refused_before_the_model_is_read(tmp_path, base_lora, tiny_model_dir):
    missing = BaseLoraConfig(str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"model.base_loras: there is no file .*nowhere"):
        load_base_model(ModelConfig("no/such-model", base_loras=(missing,)), "cpu")
    unet = tmp_path / "unet.safetensors"
    save_file({"conv_in.weight": torch.ones(1)}, unet)
    with pytest.raises(ValueError, match=r"unet.safetensors holds no LoRA \(first key: 'conv_in.weight'\)"):
        check_base_loras([BaseLoraConfig(str(unet))])
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(base_lora.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        check_base_loras([BaseLoraConfig(str(damaged))])
    check_base_loras([BaseLoraConfig(str(base_lora))])


def test_a_lora_that_matches_nothing_is_refused_when_the_model_is_loaded(tiny_bundle, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"transformer.block.lora_A.weight": torch.ones(2, 4)}, foreign)
    with pytest.raises(ValueError, match="has no LoRA weights for this model"):
        add_base_loras(tiny_bundle, [BaseLoraConfig(str(foreign))])
