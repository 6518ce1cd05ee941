"""Every published scorer at its full size with random weights: saved as published, loaded strictly, scored.

Weights are half precision on disk and in memory, so that the largest (a billion numbers) fits any machine.
"""

from __future__ import annotations

import gc
import json

import open_clip
import pytest
import torch

from t2mv_core.formats.strict import without_weights
from t2mv_core.rewards.hyperscore import load_published_hyperscore
from t2mv_core.rewards.hyperscore_network import HyperScore, HyperScoreSize
from t2mv_core.rewards.image_reward import load_image_reward
from t2mv_core.rewards.image_reward_network import BlipSize, ImageRewardNetwork, published_name
from t2mv_core.rewards.open_clip_score import load_open_clip_score
from t2mv_core.rewards.pickscore import load_pickscore
from t2mv_core.text import clip_tokenizer

PROMPTS = ["a red mug", "a blue car"]
IMAGES = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
# The published configuration of CLIP ViT-H/14 in transformers.
PICKSCORE = {
    "model_type": "clip", "projection_dim": 1024,
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                    "num_hidden_layers": 24, "hidden_act": "gelu", "projection_dim": 1024},
    "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16,
                      "num_hidden_layers": 32, "hidden_act": "gelu", "patch_size": 14,
                      "projection_dim": 1024},
}  # fmt: skip
MED_CONFIG = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
              "num_attention_heads": 12, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
              "hidden_act": "gelu"}  # fmt: skip


def random_weights(shapes, scale=0.02):
    """Half-precision random numbers of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (scale * torch.randn(shape, generator=generator)).half() + (1.0 if is_norm(name) else 0.0)
        for name, shape in shapes.items()
    }


def is_norm(name):
    return ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")


def shapes_of(module):
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def clip_h_shapes():
    from open_clip.model import CLIP

    with without_weights():
        return shapes_of(CLIP(**open_clip.get_model_config("ViT-H-14")))


def pickscore_model():
    from transformers import CLIPConfig, CLIPModel

    with without_weights():
        return CLIPModel(CLIPConfig.from_dict(PICKSCORE))


def image_reward_shapes():
    with without_weights():
        network = ImageRewardNetwork(BlipSize(MED_CONFIG))
    return {published_name(name): shape for name, shape in shapes_of(network).items()}


def count(shapes):
    return sum(shape.numel() for shape in shapes.values())


def test_full_sizes_are_those_of_the_published_models():
    """Number of weights as stated by the models' pages: 986 million for CLIP ViT-H/14, and so on."""
    assert count(clip_h_shapes()) == 986_109_441
    assert count(shapes_of(pickscore_model())) == 986_109_441
    # BLIP large's image encoder (303 million), BERT base with attention to pictures and no pooler, the MLP.
    shapes = image_reward_shapes()
    assert count({n: s for n, s in shapes.items() if n.startswith("blip.visual_encoder")}) == 303_301_632
    assert shapes["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["mlp.layers.7.weight"] == (1, 16)
    with without_weights():
        clip = HyperScoreSize().clip.build()
    assert count(shapes_of(clip)) == 149_620_737  # OpenAI's CLIP ViT-B/16


def assert_scores_are_finite(scorer):
    scores = scorer(IMAGES, PROMPTS).scores
    assert scores.shape == (2,)
    assert scores.isfinite().all()
    del scorer
    gc.collect()


@pytest.mark.slow
def test_pickscore(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(PICKSCORE))
    save_file(random_weights(shapes_of(pickscore_model())), tmp_path / "model.safetensors")
    assert_scores_are_finite(load_pickscore(tmp_path).to("cpu", torch.bfloat16))


@pytest.mark.slow
def test_hpsv2(tmp_path):
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": random_weights(clip_h_shapes())}, path)
    assert_scores_are_finite(load_open_clip_score(path, "hpsv2", "ViT-H-14", "pad").to("cpu", torch.bfloat16))


@pytest.mark.slow
def test_image_reward(tmp_path):
    weights = random_weights(image_reward_shapes())
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for side, width in (
        ("vision", 1024),
        ("text", 768),
    ):  # the contrastive heads that ImageReward does not use
        weights[f"blip.{side}_proj.weight"] = torch.zeros(256, width)
        weights[f"blip.{side}_proj.bias"] = torch.zeros(256)
    torch.save(weights, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_text(json.dumps(MED_CONFIG))
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{i}" for i in range(30522 - len(words))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    assert_scores_are_finite(load_image_reward(tmp_path).to("cpu", torch.bfloat16))


@pytest.mark.slow
def test_clip_score(tmp_path):
    from open_clip.model import CLIP

    with without_weights():
        shapes = shapes_of(CLIP(**open_clip.get_model_config("ViT-L-14")))
    torch.save(random_weights(shapes), tmp_path / "ViT-L-14.pt")
    assert_scores_are_finite(load_open_clip_score(tmp_path / "ViT-L-14.pt").to("cpu", torch.bfloat16))


@pytest.mark.slow
def test_hyperscore(tmp_path):
    torch.manual_seed(0)
    model = HyperScore(HyperScoreSize(), clip_tokenizer())
    torch.save(model.state_dict(), tmp_path / "model.pth")
    scorer = load_published_hyperscore(tmp_path / "model.pth")
    result = scorer(IMAGES.repeat(6, 1, 1, 1), PROMPTS)  # two sets of six views
    assert {name: part.shape for name, part in result.details.items()} == {
        name: (2,) for name in ("alignment", "geometry", "texture", "overall")
    }
    assert all(part.isfinite().all() for part in result.details.values())
