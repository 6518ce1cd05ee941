"""What a LoRA's file says of its scale is followed; what was assumed or not understood is said."""

import json
import time

import pytest
import torch

from t2mv_core.formats.safetensors_io import write_safetensors
from t2mv_core.lora.facts import complete_alphas
from t2mv_core.lora.files import load_lora
from t2mv_core.lora.layouts import LoraModule
from t2mv_core.lora.words import describe_lora

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
RANK = 16


@pytest.fixture
def lcm_bundle(make_lcm_bundle):
    """A model of its own: LoRAs stay attached to the shared one."""
    return make_lcm_bundle()


def scale_of(metadata, path, rank=RANK, module=MODULE):
    """Alpha / rank of a module that states none, and the notes."""
    modules = {module: LoraModule(torch.ones(rank, 4), torch.ones(4, rank))}
    completed, notes = complete_alphas(modules, metadata, path)
    return completed[module].alpha / rank, notes


def peft(**facts):
    """As diffusers writes PEFT's configuration into the header."""
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in facts.items()})}


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        (peft(r=16, lora_alpha=16, use_rslora=True), 4.0),  # alpha / sqrt(rank)
        (peft(r=16, lora_alpha=16, alpha_pattern={MODULE: 32}), 2.0),
        (peft(r=16, lora_alpha=16, alpha_pattern={"attn1.to_q": 32}), 2.0),
        (peft(r=16, lora_alpha=16, alpha_pattern={r"mid_block\..*to_[qk]": 8, "to_q": 32}), 0.5),  # the first
        (peft(r=4, lora_alpha=8, rank_pattern={"to_q": 16}), 0.5),
        ({"lora_adapter_metadata": json.dumps({"r": 16, "lora_alpha": 64})}, 4.0),  # save_lora_adapter
        ({"lora_alpha": "32"}, 2.0),
        ({"network_alpha": "8"}, 0.5),
        ({"ss_network_alpha": "8.0", "ss_network_dim": "16"}, 0.5),
        ({"alpha": "32", "rank": "16"}, 2.0),
        ({"lora_alpha": "16", "use_rslora": "true", "rank_pattern": "{}"}, 4.0),
        ({"unet.lora_alpha": "64", "unet.r": "16", "text_encoder.lora_alpha": "4"}, 4.0),
        ({**peft(r=16, lora_alpha=32), "network_alpha": "32.0"}, 2.0),
        ({"lora_alpha": "16", "alpha_pattern": json.dumps({"to_q": 4})}, 0.25),
    ],
)
def test_a_stated_scale_is_followed(metadata, scale, tmp_path):
    assert scale_of(metadata, tmp_path / "a.safetensors") == (scale, [])


def write_config(folder, **facts):
    (folder / "adapter_config.json").write_text(json.dumps(facts))


def test_pefts_folder_is_read(tmp_path):
    peft_config = pytest.importorskip("peft").LoraConfig(r=16, lora_alpha=64, target_modules=["to_q"])
    peft_config.save_pretrained(tmp_path)
    assert scale_of({"format": "pt"}, tmp_path / "adapter_model.safetensors") == (4.0, [])
    (tmp_path / "renamed.safetensors").touch()
    assert scale_of({}, tmp_path / "renamed.safetensors")[0] == 4.0
    (tmp_path / "adapter_model.safetensors").touch()  # beside it the configuration is not the other file's
    assert scale_of({}, tmp_path / "renamed.safetensors")[0] == 1.0


def test_a_configuration_is_read_behind_a_byte_order_mark(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 64}', encoding="utf-8-sig")
    assert scale_of({}, tmp_path / "adapter_model.safetensors") == (4.0, [])


@pytest.mark.parametrize("other", ["OTHER.SAFETENSORS", "other.sft"])
def test_a_configuration_beside_several_files_is_nobodys(tmp_path, other):
    write_config(tmp_path, r=16, lora_alpha=64)
    for name in ("a.safetensors", other):
        (tmp_path / name).touch()
    assert scale_of({}, tmp_path / "a.safetensors")[0] == 1.0


def test_a_null_hides_no_other_sources_fact(tmp_path):
    write_config(tmp_path, r=16, lora_alpha=None, alpha_pattern=None)
    facts = {"lora_alpha": "32", "alpha_pattern": '{"to_q": 64}'}
    assert scale_of(facts, tmp_path / "adapter_model.safetensors") == (4.0, [])


@pytest.mark.parametrize("metadata", [{}, {"ss_network_alpha": "None"}, {"ss_network_alpha": "Dynamic"}])
def test_an_assumed_alpha_is_said(metadata, tmp_path):
    scale, notes = scale_of(metadata, tmp_path / "a.safetensors")
    assert scale == 1.0
    assert notes == ["alpha is not stated for 1 modules; it was assumed to equal their rank"]


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (peft(r=16, lora_alpha=16, layer_replication=[[0, 2]]), "states layer_replication=[[0, 2]], which"),
        (peft(r=16, lora_alpha=16, peft_type="LOHA"), "states peft_type=LOHA"),
        (peft(r=16, lora_alpha=16, init_lora_weights="pissa"), "pissa (trained on a changed base model)"),
        ({"lora_alpha": "16", "network_alphas": "{}"}, "its header states network_alphas={}, which"),
        ({"lora_alpha": "16", "lora_adapter_metadata": "{"}, "lora_adapter_metadata cannot be read"),
        ({"lora_alpha": "16", "alpha_pattern": "to_q"}, "its alpha_pattern cannot be read"),
        (
            peft(r=16, lora_alpha=16, alpha_pattern={"q": 32, "attn2.to_q": 32}),
            "its alpha_pattern names none of the modules that have no alpha of their own",
        ),
        (
            {**peft(r=16, lora_alpha=16), "network_alpha": "8"},
            "several alphas: 16 (lora_alpha in lora_adapter_metadata), 8 (network_alpha in its header)",
        ),
        ({"lora_alpha": "16", "rank": "4"}, "it states rank 4, but its matrices have rank 16"),
    ],
)
def test_a_fact_that_is_not_followed_is_named(metadata, sentence, tmp_path):
    scale, notes = scale_of(metadata, tmp_path / "a.safetensors")
    assert scale == 1.0
    assert len(notes) == 1
    assert sentence in notes[0]


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": "much"},
        {"alpha": "nan"},
        peft(r=0, lora_alpha=1),
        peft(alpha_pattern={"(": 1}, lora_alpha=1),
    ],
)
def test_nonsense_is_refused(metadata, tmp_path):
    with pytest.raises(ValueError, match=r"a\.safetensors: .* in its metadata"):
        scale_of(metadata, tmp_path / "a.safetensors")


def test_a_pattern_for_each_module_costs_little(tmp_path):
    names = [f"down_blocks.{i}.attentions.0.attn1.to_q" for i in range(800)]
    modules = {name: LoraModule(torch.ones(1, 1), torch.ones(1, 1)) for name in names}
    metadata = peft(lora_alpha=1, alpha_pattern={name: index for index, name in enumerate(names)})
    started = time.process_time()
    completed, _ = complete_alphas(modules, metadata, tmp_path / "a.safetensors")
    assert time.process_time() - started < 1
    assert [completed[name].alpha for name in names] == list(range(800))


def write_lora(path, up, **more):
    tensors = {f"{MODULE}.lora_A.weight": torch.ones(2, 32), f"{MODULE}.lora_B.weight": up}
    write_safetensors({**tensors, **more}, path, {"lora_alpha": "2"})
    return path


def test_another_alpha_beside_the_same_file_is_another_lora(lcm_bundle, tmp_path):
    tensors = {f"{MODULE}.lora_A.weight": torch.ones(2, 32), f"{MODULE}.lora_B.weight": torch.ones(32, 2)}
    write_safetensors(tensors, tmp_path / "adapter_model.safetensors", {})
    loaded = []
    for alpha in (2, 4):
        write_config(tmp_path, r=2, lora_alpha=alpha)
        loaded.append(load_lora(lcm_bundle, tmp_path / "adapter_model.safetensors"))
    layer = lcm_bundle.unet.get_submodule(MODULE)
    assert [layer.scaling[bundle.loras[0].name] for bundle in loaded] == [1.0, 2.0]


def test_a_lora_of_zeros_says_that_it_changes_nothing(lcm_bundle, tmp_path):
    sentence = "it changes nothing: in every module a matrix, or alpha, is zero"
    zeros = load_lora(lcm_bundle, write_lora(tmp_path / "zeros.safetensors", torch.zeros(32, 2)))
    assert describe_lora(zeros.loras[0]) == ["1 modules act, 0 are left out", sentence]
    some = load_lora(lcm_bundle, write_lora(tmp_path / "some.safetensors", torch.eye(32, 2)))
    assert describe_lora(some.loras[0]) == ["1 modules act, 0 are left out"]
    biased = write_lora(tmp_path / "biased.safetensors", torch.zeros(32, 2))
    bias = {"mid_block.attentions.0.proj_in.diff_b": torch.ones(32)}
    handle = load_lora(lcm_bundle, write_lora(biased, torch.zeros(32, 2), **bias)).loras[0]
    assert describe_lora(handle) == ["2 modules act, 0 are left out"]
