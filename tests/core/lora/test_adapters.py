import functools
import gc
import pickle
import re
import weakref
from dataclasses import replace

import pytest
import torch

from t2mv_core.bundle import LoraHandle
from t2mv_core.denoiser import encode_cameras, predict_noise
from t2mv_core.formats.safetensors_io import read_safetensors, write_safetensors
from t2mv_core.lora import files
from t2mv_core.lora.adapters import (
    activate_loras,
    add_lora,
    attached_loras,
    lora_layers,
    remove_lora,
    trainable_parameters,
)
from t2mv_core.lora.files import load_lora, lora_state_dict, save_lora
from t2mv_core.reference import encode_reference
from t2mv_core.text import encode_text

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
MV_LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q_mv"


@pytest.fixture
def base(make_lcm_bundle):
    """A model of one's own: attaching changes the UNet's layers."""
    return make_lcm_bundle()


@pytest.fixture
def predict(lcm_bundle, rig, prompts):
    """A bundle's prediction on fixed inputs."""
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    condition, cameras = encode_text(lcm_bundle, prompts), encode_cameras(lcm_bundle, rig)
    return lambda bundle: predict_noise(bundle, x, 500, condition, cameras, 4.0)


@pytest.fixture(scope="module")
def lora_shapes(make_lcm_bundle):
    """The shapes of a LoRA's tensors, by PEFT's names."""

    @functools.cache
    def shapes(rank):
        unet = make_lcm_bundle().unet
        add_lora(unet, rank, 1.0)
        return {name: tensor.shape for name, tensor in lora_state_dict(unet).items()}

    return shapes


@pytest.fixture
def lora_file(lora_shapes, tmp_path):
    """Writes a LoRA with random weights, by PEFT's names as the published code would."""

    def write(name="a", rank=2, alpha=4.0, seed=0, metadata=None):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: 0.3 * torch.randn(shape, generator=generator) for key, shape in lora_shapes(rank).items()
        }
        path = tmp_path / f"{name}.safetensors"
        metadata = {"rank": str(rank), "alpha": str(alpha)} if metadata is None else metadata
        write_safetensors(tensors, path, metadata)
        return path

    return write


def test_lora_goes_on_the_reference_attention_and_comes_back_from_its_file(
    make_image_bundle, rig, prompts, pictures, tmp_path
):
    trained, fresh = make_image_bundle("lcm"), make_image_bundle("lcm")
    assert add_lora(trained.unet, 2, 4.0) == 7 * 16  # attn1 has 4 more projections
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(trained.unet):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    save_lora(trained.unet, tmp_path / "a.safetensors", {})
    keys = read_safetensors(tmp_path / "a.safetensors")[0].keys()
    stem = f"lora_unet_{MV_LAYER.removesuffix('to_q_mv').replace('.', '_')}"
    parts = ("to_q_ref", "to_k_ref", "to_v_ref", "to_out_ref_0")
    assert {f"{stem}{part}.lora_up.weight" for part in parts} <= keys
    loaded = load_lora(fresh, tmp_path / "a.safetensors")
    assert (loaded.loras[0].num_matched, loaded.loras[0].unmatched) == (7 * 16, ())

    condition, cameras = encode_text(fresh, prompts), encode_cameras(fresh, rig)
    x = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = encode_reference(fresh, pictures, condition)

    @torch.no_grad()
    def predict(bundle):
        return predict_noise(bundle, x, 500, condition, cameras, 4.0, 1.0, reference)

    expected = predict(replace(trained, loras=(LoraHandle("default"),)))
    assert torch.equal(predict(loaded), expected)
    # Without its part on the reference attention it is another LoRA.
    for path, layer in lora_layers(fresh.unet, loaded.loras[0].name):
        if "_ref" in path:
            layer.lora_B[loaded.loras[0].name].weight.data.zero_()
    assert float((predict(loaded) - expected).abs().max()) > 1e-3


def test_a_lora_of_an_image_model_leaves_out_its_reference_part_on_a_text_model(
    make_image_bundle, make_lcm_bundle, tmp_path
):
    unet = make_image_bundle("lcm").unet
    add_lora(unet, 2, 4.0, init=False)
    save_lora(unet, tmp_path / "a.safetensors", {})
    (handle,) = load_lora(make_lcm_bundle(), tmp_path / "a.safetensors").loras
    assert handle.num_matched == 7 * 12
    assert len(handle.unmatched) == 7 * 4 * 3  # up, down and alpha
    assert all("_ref" in key for key in handle.unmatched)


def layer_output(bundle, path=LAYER):
    """One adapted layer on a fixed input: exactly linear in the strengths, which the whole UNet is not."""
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    activate_loras(bundle)
    with torch.no_grad():
        return bundle.unet.get_submodule(path)(x)


def test_lora_goes_on_every_attention_projection(base):
    # 7 transformer blocks: attn1 has 4 ordinary and 4 multiview projections, attn2 4.
    assert add_lora(base.unet, 2, 2.0) == 7 * 12
    names = {name.rsplit(".lora_", 1)[0] for name in lora_state_dict(base.unet)}
    assert {
        LAYER,
        MV_LAYER,
        MV_LAYER.replace("to_q_mv", "to_out_mv.0"),
        LAYER.replace("attn1", "attn2"),
    } <= names


def test_new_lora_changes_nothing_and_is_all_that_learns(base, predict):
    before = predict(base)
    add_lora(base.unet, 2, 2.0)
    acting = replace(base, loras=(LoraHandle("default"),))
    assert torch.equal(predict(acting), before)  # B is zero at first
    learning = {id(parameter) for parameter in base.unet.parameters() if parameter.requires_grad}
    assert learning == {id(parameter) for parameter in trainable_parameters(base.unet)}
    assert {parameter.dtype for parameter in trainable_parameters(base.unet)} == {torch.float32}


def test_attached_lora_is_silent_until_a_bundle_lists_it(base, predict, lora_file):
    before = predict(base)
    acting = load_lora(base, lora_file())
    assert torch.equal(predict(base), before)
    assert float((predict(acting) - before).abs().max()) > 1e-2
    assert torch.equal(predict(base), before)
    assert torch.equal(predict(replace(acting, loras=())), before)


def test_saved_lora_computes_the_same_in_a_fresh_model(base, make_lcm_bundle, predict, tmp_path):
    add_lora(base.unet, 3, 1.5, name="policy")
    with torch.no_grad():
        for parameter in trainable_parameters(base.unet, "policy"):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    trained = predict(replace(base, loras=(LoraHandle("policy"),)))
    path = tmp_path / "lora.safetensors"
    save_lora(base.unet, path, {"preset": "demo", "joint_reward_mean": -0.25}, "policy")
    loaded = load_lora(make_lcm_bundle(), path)
    torch.testing.assert_close(predict(loaded), trained, atol=1e-6, rtol=0)
    (handle,) = loaded.loras
    assert (handle.strength, handle.num_matched, handle.unmatched) == (1.0, 84, ())


def test_file_holds_names_that_comfyui_knows_and_the_facts(base, tmp_path):
    add_lora(base.unet, 2, 4.0)
    save_lora(base.unet, tmp_path / "lora.safetensors", {"base_model": "tiny", "step": 3})
    tensors, metadata = read_safetensors(tmp_path / "lora.safetensors")
    stem, mv_stem = (f"lora_unet_{name.replace('.', '_')}" for name in (LAYER, MV_LAYER))
    assert tensors[f"{stem}.lora_down.weight"].shape == (2, 32)
    assert tensors[f"{mv_stem}.lora_up.weight"].shape == (32, 2)
    assert float(tensors[f"{stem}.alpha"]) == 4.0
    assert len(tensors) == 3 * 84
    expected = {"format": "t2mv-lora", "rank": "2", "alpha": "4.0", "base_model": "tiny", "step": "3"}
    assert metadata == expected


def test_effect_is_b_times_a_scaled_by_alpha_over_rank(base, lora_file):
    path = lora_file(rank=2, alpha=4.0)
    tensors, _ = read_safetensors(path)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    delta = 4.0 / 2.0 * x @ tensors[f"{LAYER}.lora_A.weight"].T @ tensors[f"{LAYER}.lora_B.weight"].T
    expected = layer_output(base) + delta
    torch.testing.assert_close(layer_output(load_lora(base, path)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, -1.0])
@pytest.mark.parametrize("path", [LAYER, MV_LAYER])
def test_strength_is_linear(base, lora_file, strength, path):
    file = lora_file()
    plain = layer_output(base, path)
    delta = layer_output(load_lora(base, file), path) - plain
    scaled = layer_output(load_lora(base, file, strength), path)
    torch.testing.assert_close(scaled, plain + strength * delta, atol=1e-5, rtol=1e-5)


def test_what_others_set_on_a_layer_does_not_last(base, lora_file):
    """A layer that has what is wanted is not set again; one that has not, is."""
    acting = load_lora(base, lora_file(), 0.5)
    expected = layer_output(acting)
    layer = base.unet.get_submodule(LAYER)
    layer.set_scale(acting.loras[0].name, 3.0)
    assert torch.equal(layer_output(acting), expected)
    layer.enable_adapters(False)
    assert torch.equal(layer_output(acting), expected)


def test_a_lora_attached_after_the_first_call_acts(base, lora_file):
    first = load_lora(base, lora_file("first", seed=1))
    before = layer_output(first)
    add_lora(base.unet, 2, 2.0, "late")
    with torch.no_grad():
        for parameter in trainable_parameters(base.unet, "late"):
            parameter.fill_(0.1)
    assert not torch.equal(layer_output(replace(base, loras=(*first.loras, LoraHandle("late")))), before)
    assert torch.equal(layer_output(first), before)


@pytest.mark.filterwarnings("error")
def test_loras_stack_in_any_order(base, predict, lora_file):
    first, second = lora_file("first", seed=1), lora_file("second", rank=3, seed=2)
    plain = layer_output(base)
    deltas = [layer_output(load_lora(base, path)) - plain for path in (first, second)]
    both = load_lora(load_lora(base, first, 0.5), second, -2.0)
    torch.testing.assert_close(
        layer_output(both), plain + 0.5 * deltas[0] - 2.0 * deltas[1], atol=1e-4, rtol=1e-5
    )
    other_way = load_lora(load_lora(base, second, -2.0), first, 0.5)
    torch.testing.assert_close(predict(both), predict(other_way), atol=1e-4, rtol=1e-4)


def test_same_file_twice_adds_up(base, lora_file):
    path = lora_file()
    twice = load_lora(load_lora(base, path, 0.5), path, 0.75)
    torch.testing.assert_close(
        layer_output(twice), layer_output(load_lora(base, path, 1.25)), atol=1e-5, rtol=0
    )
    assert len(attached_loras(base.unet)) == 1


def test_bundles_over_one_unet_do_not_disturb_each_other(base, make_lcm_bundle, predict, lora_file):
    first, second = lora_file("first", seed=1), lora_file("second", seed=2)
    alone = [predict(load_lora(make_lcm_bundle(), path, 0.8)) for path in (first, second)]
    before = predict(base)
    bundles = [load_lora(base, path, 0.8) for path in (first, second)]
    for _ in range(2):
        assert torch.equal(predict(bundles[0]), alone[0])
        assert torch.equal(predict(bundles[1]), alone[1])
        assert torch.equal(predict(base), before)


def test_removing_restores_the_output_exactly(base, predict, lora_file):
    first, second = lora_file("first", seed=1), lora_file("second", seed=2)
    before = predict(base)
    one = load_lora(base, first)
    with_one = predict(one)
    both = load_lora(one, second)
    predict(both)
    remove_lora(base.unet, both.loras[1].name)
    assert torch.equal(predict(one), with_one)
    with pytest.raises(ValueError, match="no longer attached to this model; load it again"):
        predict(both)
    remove_lora(base.unet, one.loras[0].name)
    assert torch.equal(predict(base), before)
    assert attached_loras(base.unet) == []
    assert torch.equal(predict(load_lora(base, first)), with_one)


def test_loading_a_file_leaves_a_lora_in_training_alone(base, lora_file):
    add_lora(base.unet, 2, 2.0, name="policy")
    loaded = load_lora(base, lora_file())
    assert all(parameter.requires_grad for parameter in trainable_parameters(base.unet, "policy"))
    name = loaded.loras[0].name
    assert not any(parameter.requires_grad for parameter in trainable_parameters(base.unet, name))


@pytest.fixture
def learning(base):
    """A bundle with a LoRA in training, away from zero, and its parameters."""
    # docs/method.md, known traps: diffusers' own lora_scale is 9.5 % off at this strength.
    add_lora(base.unet, 2, 2.0)
    parameters = trainable_parameters(base.unet)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return replace(base, loras=(LoraHandle("default", strength=0.5),)), parameters


def test_another_bundles_call_before_the_backward_pass_changes_no_gradient(learning, predict, lora_file):
    bundle, parameters = learning
    others = load_lora(bundle, lora_file(seed=1)), replace(bundle, loras=())
    expected = torch.autograd.grad(predict(bundle).square().sum(), parameters)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    bundle.unet.enable_gradient_checkpointing()
    for other in others:
        loss = predict(bundle).square().sum()
        predict(other)
        gradients = torch.autograd.grad(loss, parameters)
        for gradient, plain in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, plain, atol=1e-5, rtol=1e-4)


def test_one_backward_pass_through_calls_of_two_bundles_adds_their_gradients(learning, predict, lora_file):
    bundle, parameters = learning
    other = load_lora(bundle, lora_file(seed=1))
    bundle.unet.enable_gradient_checkpointing()
    alone = [
        torch.autograd.grad(predict(acting).square().sum(), parameters) for acting in (bundle, other, bundle)
    ]
    first, second, third = (predict(acting).square().sum() for acting in (bundle, other, bundle))
    together = torch.autograd.grad(third + first + second, parameters)
    for gradient, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(gradient, sum(parts), atol=1e-4, rtol=1e-4)


def test_a_lora_goes_with_the_last_bundle_that_lists_it(base, predict, lora_file):
    add_lora(base.unet, 2, 2.0, "policy")
    kept = replace(load_lora(base, lora_file("kept"), 0.5), notices=())
    before, weights = predict(kept), []
    for seed in range(5):
        tried = load_lora(base, lora_file(f"tried {seed}", seed=seed))
        predict(tried)
        name = tried.loras[0].name
        weights.append(weakref.ref(trainable_parameters(base.unet, name)[0]))
    assert attached_loras(base.unet) == sorted(["policy", kept.loras[0].name, name])
    del tried
    assert torch.equal(predict(kept), before)
    assert attached_loras(base.unet) == sorted(["policy", kept.loras[0].name])
    assert [weight() for weight in weights] == [None] * 5


def test_a_lora_stays_while_a_backward_pass_needs_it(learning, predict, lora_file):
    bundle, parameters = learning
    bundle.unet.enable_gradient_checkpointing()
    other = load_lora(bundle, lora_file(seed=1))
    expected = torch.autograd.grad(predict(other).square().sum(), parameters)
    loss = predict(other).square().sum()
    del other
    predict(bundle)
    gradients = torch.autograd.grad(loss, parameters)
    for gradient, plain in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, plain, atol=1e-5, rtol=1e-4)


def test_a_file_that_comes_back_before_the_next_call_is_attached_still(base, predict, lora_file):
    path = lora_file()
    before = predict(load_lora(base, path))
    (weight, *_) = trainable_parameters(base.unet, attached_loras(base.unet)[0])
    again = load_lora(base, path)
    assert torch.equal(predict(again), before)
    assert trainable_parameters(base.unet, again.loras[0].name)[0] is weight


@pytest.mark.filterwarnings("error")
def test_removing_a_lora_leaves_the_others_as_they_are(base, predict, lora_file):
    add_lora(base.unet, 2, 2.0, "policy")
    acting = load_lora(base, lora_file())
    alone = predict(acting)
    both = replace(acting, loras=(*acting.loras, LoraHandle("policy")))
    predict(both)
    remove_lora(base.unet, "policy")
    assert torch.equal(predict(acting), alone)
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


def test_a_unet_with_loras_is_copied_by_pickle(base, predict, lora_file):
    acting = load_lora(base, lora_file())
    before = predict(acting)
    copy = pickle.loads(pickle.dumps(acting))
    assert torch.equal(predict(copy), before)
    assert attached_loras(copy.unet) == attached_loras(base.unet)


def test_the_last_user_of_a_model_frees_it(make_lcm_bundle, predict, lora_file):
    path = lora_file()
    gc.collect()
    gc.disable()  # a cycle would wait for it, with gigabytes
    try:
        bundle = load_lora(make_lcm_bundle(), path)
        bundle.unet.requires_grad_(True)
        predict(bundle).sum().backward()
        unet = weakref.ref(bundle.unet)
        del bundle
        assert unet() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_lora_changes_nothing_behind_another_either(base, lora_file, dtype):
    """The reference of a training on base LoRAs is then the policy at its start, to the last bit."""
    base.unet.to(dtype)
    below = load_lora(base, lora_file())
    add_lora(base.unet, 2, 2.0)
    for parameter in trainable_parameters(base.unet):
        parameter.data = parameter.data.float()
    both = replace(below, loras=(*below.loras, LoraHandle("default")))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    outputs = []
    for bundle in (below, both):
        activate_loras(bundle)
        outputs.append(bundle.unet.get_submodule(LAYER)(x))
    assert torch.equal(*outputs)


def test_ranks_may_differ_between_layers(base, lora_file, edit_weights):
    path = lora_file(rank=2, alpha=2.0)
    plain, x = layer_output(base, MV_LAYER), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    a, b = torch.randn(5, 32), torch.randn(32, 5)
    edit_weights(path, lambda x: x.update({f"{MV_LAYER}.lora_A.weight": a, f"{MV_LAYER}.lora_B.weight": b}))
    loaded = load_lora(base, path)
    expected = plain + 2 / 5 * x @ a.T @ b.T  # alpha 2 at this module's rank 5, as in peft
    torch.testing.assert_close(layer_output(loaded, MV_LAYER), expected, atol=1e-4, rtol=1e-5)


def test_ranks_of_their_own_cost_no_pattern_per_pair_of_layers(base, lora_file, edit_weights, monkeypatch):
    """On an SDXL-sized UNet peft compiled 370,000 regular expressions, 25 s of CPU."""
    path = lora_file()
    edit_weights(path, lambda tensors: tensors.update({f"{LAYER}.alpha": torch.tensor(1.0)}))
    patterns = []
    for function in (re.match, re.fullmatch, re.search):
        monkeypatch.setattr(
            re, function.__name__, lambda *args, run=function: patterns.append(args[0]) or run(*args)
        )
    (handle,) = load_lora(base, path).loras
    monkeypatch.undo()
    # Sorting the file's keys takes up to 14 per tensor, of which each module has two.
    assert len(patterns) <= 40 * handle.num_matched


def test_a_lora_from_a_file_has_its_layers_precision(base, lora_file):
    base.unet.to(torch.bfloat16)
    name = load_lora(base, lora_file()).loras[0].name
    assert {parameter.dtype for parameter in trainable_parameters(base.unet, name)} == {torch.bfloat16}


def test_keys_without_a_place_are_reported_not_dropped_in_silence(base, lora_file, edit_weights):
    path = lora_file()

    def change(tensors):
        tensors["text_encoder.layers.0.q_proj.lora_A.weight"] = torch.ones(2, 16)
        del tensors[f"{LAYER}.lora_B.weight"]

    edit_weights(path, change)
    (handle,) = load_lora(base, path).loras
    assert handle.num_matched == 83
    assert sorted(handle.unmatched) == [
        f"{LAYER}.lora_A.weight",
        "text_encoder.layers.0.q_proj.lora_A.weight",
    ]


def wrong_shape(tensors):
    tensors[f"{LAYER}.lora_A.weight"] = torch.ones(2, 48)


def wrong_rank(tensors):
    tensors[f"{LAYER}.lora_B.weight"] = torch.ones(32, 5)


def not_a_matrix(tensors):
    tensors[f"{LAYER}.lora_A.weight"] = torch.tensor(1.0)


def nothing_known(tensors):
    known = dict(tensors)
    tensors.clear()
    tensors.update({"blocks.0." + name: tensor for name, tensor in known.items()})


def poisoned(tensors):
    tensors[f"{LAYER}.lora_A.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_shape, r"lora_A of .* has shape \(2, 48\), this model needs \(2, 32\)"),
        (wrong_rank, r"lora_B of .* has shape \(32, 5\), this model needs \(32, 2\)"),
        (not_a_matrix, r"lora_A of .* has shape \(\)"),
        (nothing_known, "has no LoRA weights for this model"),
        (poisoned, "holds NaN or infinity"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_leave_no_trace(
    base, predict, lora_file, edit_weights, change, words
):
    before, path = predict(base), lora_file()
    edit_weights(path, change)
    with pytest.raises(ValueError, match=words):
        load_lora(base, path)
    assert attached_loras(base.unet) == []
    assert torch.equal(predict(base), before)


def test_a_lora_that_finds_no_memory_half_way_leaves_no_trace(base, predict, lora_file, monkeypatch):
    before, path, fit, fitted = predict(base), lora_file(), files._fit, []

    def fit_until_full(*arguments):
        if len(fitted) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        fitted.append(arguments)
        return fit(*arguments)

    monkeypatch.setattr(files, "_fit", fit_until_full)
    with pytest.raises(torch.OutOfMemoryError):
        load_lora(base, path)
    assert attached_loras(base.unet) == []
    assert torch.equal(predict(base), before)


def test_missing_and_foreign_files_give_a_sentence(base, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_lora(base, tmp_path / "nowhere.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="is a pickle with another ending"):
        load_lora(base, tmp_path / "pickle.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), float("-inf")])
def test_strength_must_be_finite(base, lora_file, strength):
    with pytest.raises(ValueError, match="must be a finite number"):
        load_lora(base, lora_file(), strength)


def test_a_file_written_anew_is_another_lora(base, lora_file):
    first = load_lora(base, lora_file("same", seed=1))
    before = layer_output(first)
    second = load_lora(base, lora_file("same", seed=2))
    assert not torch.allclose(layer_output(second), before, atol=1e-3)
    assert torch.equal(layer_output(first), before)


def test_bad_rank_and_used_name_are_refused(base):
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        add_lora(base.unet, 0, 1.0)
    add_lora(base.unet, 1, 1.0)
    with pytest.raises(ValueError, match="already has a LoRA named 'default'"):
        add_lora(base.unet, 1, 1.0)


def test_saving_what_is_not_there_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="has no LoRA named 'default'"):
        save_lora(base.unet, tmp_path / "lora.safetensors", {})
