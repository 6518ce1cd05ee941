"""HyperScore recomputed naively: one token, patch and condition at a time."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from t2mv_core.formats.safetensors_io import write_safetensors
from t2mv_core.formats.strict import without_weights
from t2mv_core.rewards.clip_score import ClipSize
from t2mv_core.rewards.hyperscore import (
    ARCHITECTURE,
    HyperScoreReward,
    load_hyperscore,
    load_published_hyperscore,
)
from t2mv_core.rewards.hyperscore_network import (
    HEADS,
    HyperNetwork,
    HyperScore,
    HyperScoreSize,
    load_hyperscore_weights,
    weights_to_save,
)
from t2mv_core.rewards.inputs import IMAGENET_MEAN, IMAGENET_STD
from t2mv_core.text import clip_tokenizer

CLIP_SIZE = ClipSize(
    embed_dim=12, image_px=16, patch_px=8, vision_width=16, vision_layers=2, vision_heads=2,
    vocab_size=600, context_length=32, text_width=16, text_layers=2, text_heads=2,
)  # fmt: skip
SIZE = HyperScoreSize(
    CLIP_SIZE, num_context=3, target_widths=(16, 8, 4, 2), condition_channels=6, condition_grid=2
)
PROMPTS = ["a red mug", "a blue car with metal wheels"]


def build(size=SIZE, seed=0):
    """A random network whose every tensor, zero-initialised ones included, is set."""
    torch.manual_seed(seed)
    model = HyperScore(size, clip_tokenizer(600))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.prompt_learner.read_embedding(model.clip_model)
    return model.eval()


def naive_transformer(transformer, hidden, is_causal):
    """A pre-norm transformer on one sequence [L, w], two heads, written out."""
    length, width = hidden.shape
    mask = torch.full((length, length), -math.inf).triu(1) if is_causal else torch.zeros(length, length)
    for block in transformer.resblocks:
        projected = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
        query, key, value = projected.reshape(length, 3, 2, width // 2).unbind(dim=1)
        heads = [
            ((query[:, h] @ key[:, h].T) / math.sqrt(width // 2) + mask).softmax(dim=1) @ value[:, h]
            for h in (0, 1)
        ]
        hidden = hidden + block.attn.out_proj(torch.cat(heads, dim=1))
        inner = block.mlp.c_fc(block.ln_2(hidden))
        hidden = hidden + block.mlp.c_proj(inner * torch.sigmoid(1.702 * inner))
    return hidden


def naive_text(model, embedded, end):
    """End-of-text feature and all token features of one embedded prompt [L, w]."""
    clip = model.clip_model
    hidden = naive_transformer(clip.transformer, embedded + clip.positional_embedding, is_causal=True)
    features = torch.stack([clip.ln_final(token) @ clip.text_projection for token in hidden])
    return features[end], features


def naive_patches(model, picture):
    """Projected patch tokens of one normalised picture [3, 16, 16], cut into patches of 8 pixels."""
    visual = model.clip_model.visual
    cut = [picture[:, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    embedded = [visual.class_embedding, *((visual.conv1.weight * patch).sum(dim=(1, 2, 3)) for patch in cut)]
    hidden = visual.ln_pre(torch.stack(embedded) + visual.positional_embedding)
    hidden = naive_transformer(visual.transformer, hidden, is_causal=False)
    return [visual.ln_post(token) @ visual.proj for token in hidden[1:]]


def naive_condition_prompt(model, head):
    """Start token, class name, context, rest: assembled from the tokenizer's ids."""
    learner, tokenize = model.prompt_learner, clip_tokenizer(600)
    name = tokenize([f"{HEADS[head]} quality"], 32)[0]
    name = name[1 : int(name.argmax())]
    full = tokenize(["X X X " + f"{HEADS[head]} quality."], 32)[0]
    table = model.clip_model.token_embedding.weight
    rest = full[1 + 3 + len(name) :]
    prompt = torch.cat([table[full[:1]], table[name], learner.ctx[head], table[rest]])
    return prompt, int(full.argmax())


def naive_scores(model, pixels, prompt):
    """Four scores of one set of views [V, 3, px, px]."""
    clip = model.clip_model
    patches = [patch for picture in pixels for patch in naive_patches(model, picture)]
    ids = clip_tokenizer(600)([prompt], 32)[0]
    end, tokens = naive_text(model, clip.token_embedding.weight[ids], int(ids.argmax()))
    scores = []
    for head in range(4):
        condition, _ = naive_text(model, *naive_condition_prompt(model, head))
        logits = []
        for patch in patches:
            pairs = [
                F.cosine_similarity(t, condition, dim=0) * F.cosine_similarity(t, patch, dim=0)
                for t in tokens
            ]
            logits.append(math.fsum(float(pair) for pair in pairs))
        weights = torch.tensor(logits).softmax(dim=0)
        fused = sum(w * patch for w, patch in zip(weights, patches, strict=True)) * end
        scores.append(float(naive_target_network(model, condition, model.fc_quality(fused))))
    return scores


def naive_target_network(model, condition, quality):
    """The hypernetwork's four layers applied to one quality feature [16]."""
    net = model.hypernet
    grid = model.fc_condition(condition).reshape(1, 6, 2, 2)
    pooled = grid.mean(dim=(2, 3))[0]
    weights = [
        F.conv2d(grid, net.fc1w_conv.weight, net.fc1w_conv.bias, padding=1).reshape(8, 16),
        F.conv2d(grid, net.fc2w_conv.weight, net.fc2w_conv.bias, padding=1).reshape(4, 8),
        F.conv2d(grid, net.fc3w_conv.weight, net.fc3w_conv.bias, padding=1).reshape(2, 4),
        net.fc4w_fc(pooled).reshape(1, 2),
    ]
    biases = [net.fc1b_fc(pooled), net.fc2b_fc(pooled), net.fc3b_fc(pooled), net.fc4b_fc(pooled)]
    hidden = quality
    for layer in range(3):
        hidden = torch.relu(weights[layer] @ hidden + biases[layer])
    return weights[3] @ hidden + biases[3]


@torch.no_grad()
def test_scores_are_those_of_the_naive_recomputation():
    model, images = build(), torch.rand(6, 3, 16, 16)
    pixels = (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected = torch.tensor([naive_scores(model, pixels[3 * b : 3 * b + 3], PROMPTS[b]) for b in range(2)])
    result = HyperScoreReward(model, clip_tokenizer(600))(images, PROMPTS)
    assert expected.std(dim=0).min() > 1e-4  # otherwise the comparison would say nothing
    for index, head in enumerate(HEADS):
        assert torch.allclose(result.details[head], expected[:, index], atol=1e-4)
    assert torch.equal(result.scores, result.details["overall"])


@torch.no_grad()
def test_without_view_embeddings_the_views_are_a_set_and_with_them_they_are_not():
    images = torch.rand(3, 3, 16, 16)
    for num_views, is_same in ((0, True), (3, False)):
        reward = HyperScoreReward(build(replace(SIZE, num_views=num_views)), clip_tokenizer(600))
        first, swapped = reward(images, PROMPTS[:1]).scores, reward(images[[1, 0, 2]], PROMPTS[:1]).scores
        assert torch.allclose(first, swapped, atol=1e-5) == is_same


def test_a_batch_of_sets_equals_the_sets_one_by_one(monkeypatch):
    reward = HyperScoreReward(build(replace(SIZE, num_views=3)), clip_tokenizer(600))
    images, prompts = torch.rand(9, 3, 16, 16), [*PROMPTS, "a tree"]
    together = reward(images, prompts).scores
    monkeypatch.setattr("t2mv_core.rewards.inputs.CHUNK_BYTES", 1)
    assert torch.allclose(reward(images, prompts).scores, together, atol=1e-5)
    alone = [reward(images[3 * b : 3 * b + 3], [prompts[b]]).scores for b in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_pictures_are_resized_bilinearly_and_stretched():
    reward, pictures = HyperScoreReward(build(), clip_tokenizer(600)), torch.rand(3, 3, 40, 24)
    small = F.interpolate(pictures, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    assert torch.allclose(reward(pictures, PROMPTS[:1]).scores, reward(small, PROMPTS[:1]).scores, atol=1e-4)


def test_moving_a_scorer_forgets_what_it_kept():
    reward, images = HyperScoreReward(build(), clip_tokenizer(600)), torch.rand(4, 3, 16, 16)
    reward(images, PROMPTS)
    moved = reward.to("cpu", torch.bfloat16)(images, PROMPTS).scores
    fresh = HyperScoreReward(build(), clip_tokenizer(600)).to("cpu", torch.bfloat16)(images, PROMPTS).scores
    assert torch.equal(moved, fresh)


def test_scores_can_take_part_in_a_loss():
    weight = torch.ones(2, requires_grad=True)
    reward = HyperScoreReward(build(), clip_tokenizer(600))
    scores = reward(torch.rand(4, 3, 16, 16), PROMPTS).scores
    (scores * weight).sum().backward()
    assert torch.equal(weight.grad, scores)


def test_another_number_of_views_than_learned_is_refused():
    reward = HyperScoreReward(build(replace(SIZE, num_views=3)), clip_tokenizer(600))
    with pytest.raises(ValueError, match="2 views per prompt; hyperscore scores sets of exactly 3 views"):
        reward(torch.rand(4, 3, 16, 16), PROMPTS)


def test_prompts_and_conditions_are_encoded_once(monkeypatch):
    model = build()
    reward = HyperScoreReward(model, clip_tokenizer(600))
    lengths = []
    encode = model.text_encoder.forward
    monkeypatch.setattr(
        model.text_encoder, "forward", lambda *args: lengths.append(len(args[1])) or encode(*args)
    )
    for _ in range(2):
        reward(torch.rand(4, 3, 16, 16), PROMPTS)
    assert lengths == [4, 2]  # four conditions, two prompts, nothing in the second call


def test_the_state_dict_has_the_published_names():
    names = set(build().state_dict())
    assert {name.split(".")[0] for name in names} == {
        "clip_model", "prompt_learner", "text_encoder", "fc_quality", "fc_condition", "hypernet",
    }  # fmt: skip
    assert {n for n in names if n.startswith("prompt_learner.")} == {
        f"prompt_learner.{part}" for part in ("ctx", "token_prefix", "token_suffix")
    }
    layers = ("fc1w_conv", "fc1b_fc", "fc2w_conv", "fc2b_fc", "fc3w_conv", "fc3b_fc", "fc4w_fc", "fc4b_fc")
    assert {n.rsplit(".", 1)[0] for n in names if n.startswith("hypernet.")} == {
        f"hypernet.{n}" for n in layers
    }


def test_the_published_prompts_have_the_stated_shapes():
    """method.md, section 8: for each of 4 classes 12 context vectors, 1 start token, and the rest of 77."""
    with without_weights():
        learner = HyperScore(HyperScoreSize(), clip_tokenizer()).prompt_learner
    shapes = {name: tuple(tensor.shape) for name, tensor in learner.state_dict().items()}
    assert shapes == {"ctx": (4, 12, 512), "token_prefix": (4, 1, 512), "token_suffix": (4, 64, 512)}


def test_the_published_hypernetwork_has_the_stated_shapes():
    net = HyperNetwork(HyperScoreSize())
    shapes = {name: tuple(t.shape) for name, t in net.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "fc1w_conv.weight": (512, 112, 3, 3), "fc2w_conv.weight": (128, 112, 3, 3),
        "fc3w_conv.weight": (32, 112, 3, 3), "fc4w_fc.weight": (28, 112), "fc1b_fc.weight": (112, 112),
        "fc2b_fc.weight": (56, 112), "fc3b_fc.weight": (28, 112), "fc4b_fc.weight": (1, 112),
    }  # fmt: skip


def test_widths_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match="do not divide into condition_grid² = 9 cells"):
        HyperNetwork(replace(SIZE, condition_grid=3))


def test_a_saved_scorer_loads_and_scores_the_same(tmp_path):
    model, path = build(replace(SIZE, num_views=3)), tmp_path / "hyperscore.safetensors"
    write_safetensors(
        weights_to_save(model), path, {"architecture": ARCHITECTURE, "config": model.size.to_json()}
    )
    loaded = load_hyperscore(path, "toybox_hyperscore")
    images = torch.rand(6, 3, 16, 16)
    expected = HyperScoreReward(model, clip_tokenizer(600))(images, PROMPTS)
    assert torch.equal(loaded(images, PROMPTS).scores, expected.scores)
    assert loaded.model.size == model.size


def test_two_names_with_different_values_are_refused():
    weights = {name: t.clone() for name, t in build().state_dict().items()}
    weights["text_encoder.ln_final.bias"] += 1
    with pytest.raises(
        ValueError, match="'text_encoder.ln_final.bias' differs from 'clip_model.ln_final.bias'"
    ):
        load_hyperscore_weights(build(), weights, "model.pth")


def test_a_config_of_another_version_is_refused():
    config = json.loads(json.dumps(asdict(SIZE)))
    with pytest.raises(ValueError, match="'num_heads' is unknown"):
        HyperScoreSize.from_config({**config, "num_heads": 5}, "file")
    assert HyperScoreSize.from_config(config, "file") == SIZE


def test_the_published_file_loads_and_scores_the_same(tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    loaded = load_published_hyperscore(tmp_path / "model.pth", size=SIZE)
    images = torch.rand(6, 3, 16, 16)
    expected = HyperScoreReward(model, clip_tokenizer(600))(images, PROMPTS)
    result = loaded(images, PROMPTS)
    assert all(torch.equal(result.details[head], expected.details[head]) for head in HEADS)
    assert (loaded.name, loaded.kind) == ("hyperscore", "joint")


def test_half_precision_is_the_clips_alone(tmp_path):
    torch.save(build().state_dict(), tmp_path / "model.pth")
    images = torch.rand(6, 3, 16, 16)
    exact = load_published_hyperscore(tmp_path / "model.pth", size=SIZE)(images, PROMPTS).scores
    for dtype in (torch.bfloat16, torch.float16):
        loaded = load_published_hyperscore(tmp_path / "model.pth", size=SIZE).to("cpu", dtype)
        assert loaded.model.clip_model.visual.proj.dtype == dtype
        assert loaded.model.hypernet.fc1w_conv.weight.dtype == torch.float32
        scores = loaded(images, PROMPTS).scores
        assert scores.dtype == torch.float32
        assert (scores - exact).abs().max() < 0.05 * (1 + exact.abs().max())


def test_a_file_of_something_else_is_refused(tmp_path):
    weights = {name: t.clone() for name, t in build().state_dict().items()}
    weights["fc_quality.bias"][0] = math.nan
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="weight 'fc_quality.bias' holds NaN"):
        load_published_hyperscore(tmp_path / "model.pth", size=SIZE)
    torch.save({**build().state_dict(), "thop.total_ops": torch.zeros(1)}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth does not fit this model: 'thop.total_ops' is not known"):
        load_published_hyperscore(tmp_path / "model.pth", size=SIZE)
    torch.save(build().state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"does not fit this model: .* of another shape"):
        load_published_hyperscore(tmp_path / "model.pth")
