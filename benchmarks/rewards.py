"""Images per second and peak memory of every reward at full size, against scoring one image at a time.

python -m benchmarks.rewards

The published rewards have random weights of the published sizes, as none can be downloaded here; what they
cost does not depend on that. One image at a time is what a plain loop does: resize, image encoder and text
encoder for every picture anew. Both ways score the same pictures in the same process.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from t2mv_core.rewards.base import Reward
from t2mv_core.rewards.clip_score import ClipScore, Preprocessing
from t2mv_core.rewards.hyperscore import HyperScoreReward
from t2mv_core.rewards.hyperscore_network import HyperScore, HyperScoreSize
from t2mv_core.rewards.image_reward import ImageReward
from t2mv_core.rewards.image_reward_network import BlipSize, ImageRewardNetwork
from t2mv_core.rewards.open_clip_score import _preprocessing
from t2mv_core.rewards.pickscore import TransformersClip
from t2mv_core.rewards.registry import load_reward
from t2mv_core.text import clip_tokenizer
from training.config import home_path
from training.evaluation.report import markdown_rows

from .measuring import report, timed

NUM_VIEWS = 6
REPEATS = 3
MED_SIZES = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
             "num_attention_heads": 12, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
             "hidden_act": "gelu"}  # fmt: skip


def make_open_clip(architecture: str) -> Reward:
    """Return a CLIP score of an architecture with open_clip's own random weights."""
    model = open_clip.create_model(architecture)
    preprocessing = _preprocessing(open_clip.get_model_config(architecture), model, None)
    return ClipScore(model, clip_tokenizer(), preprocessing, architecture)


def make_pickscore() -> Reward:
    """Return PickScore's network on transformers."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                     "num_hidden_layers": 24, "hidden_act": "gelu"},
        vision_config={"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16,
                       "num_hidden_layers": 32, "hidden_act": "gelu", "patch_size": 14},
        projection_dim=1024,
    )  # fmt: skip
    model = TransformersClip(CLIPModel(config))
    return ClipScore(model, clip_tokenizer(), Preprocessing(224, 257, 1280), "pickscore")


def make_image_reward() -> Reward:
    """Return ImageReward's network; its tokens are letters, which costs what words cost."""

    def tokenize(prompts: list[str], max_length: int) -> torch.Tensor:
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        for row, prompt in zip(ids, prompts, strict=True):
            letters = [1000 + ord(letter) for letter in prompt[: max_length - 2]]
            row[: len(letters) + 2] = torch.tensor([101, *letters, 102])
        return ids

    size = BlipSize(MED_SIZES)
    return ImageReward(ImageRewardNetwork(size), tokenize, size)


def make_hyperscore() -> Reward:
    """Return HyperScore at its published size."""
    return HyperScoreReward(HyperScore(HyperScoreSize(), clip_tokenizer()), clip_tokenizer())


SCORERS: dict[str, Callable[[], Reward]] = {
    "toybox_clip": lambda: load_reward("toybox_clip"),
    "toybox_hyperscore": lambda: load_reward("toybox_hyperscore"),
    "hyperscore (CLIP ViT-B/16)": make_hyperscore,
    "clip_score (ViT-L-14)": lambda: make_open_clip("ViT-L-14"),
    "image_reward (BLIP large)": make_image_reward,
    "hpsv2 (ViT-H-14)": lambda: make_open_clip("ViT-H-14"),
    "pickscore (ViT-H/14)": make_pickscore,
}


def score_together(reward: Reward, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Score as this project does it; nothing is known beforehand."""
    forget(reward)
    if reward.kind == "view":
        prompts = [prompt for prompt in prompts for _ in range(NUM_VIEWS)]
    return reward(images, prompts).scores


def score_singly(reward: Reward, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Score one picture (a joint reward: one set) after the other, its prompt read anew each time."""
    per_call = 1 if reward.kind == "view" else NUM_VIEWS
    scores = []
    for place, pictures in enumerate(images.split(per_call)):
        forget(reward)
        scores.append(reward(pictures, [prompts[place * per_call // NUM_VIEWS]]).scores)
    return torch.cat(scores)


def forget(reward: Any) -> None:
    """Drop what a scorer keeps between calls."""
    if hasattr(reward, "cache"):
        reward.cache.clear()
    if hasattr(reward, "_conditions"):
        reward._conditions = None


def measure(reward: Reward, images: torch.Tensor, prompts: list[str], device: str) -> dict[str, float]:
    """Return images per second and peak memory above the weights, of both ways; and how far scores differ."""
    score_together(reward, images[:NUM_VIEWS], prompts[:1])  # the first call pays for libraries
    ways = {"together": score_together, "singly": score_singly}
    seconds, memory, scores = {name: math.inf for name in ways}, dict.fromkeys(ways, 0.0), {}
    for _ in range(REPEATS):  # in turn, so that a machine that is slow for a while is slow for both
        for name, way in ways.items():
            took, peak, scores[name] = timed(partial(way, reward, images, prompts), device)
            seconds[name], memory[name] = min(seconds[name], took), max(memory[name], peak)
    weights: nn.Module = reward.model
    return {
        "weights_mib": sum(p.nbytes for p in weights.parameters()) / 2**20,
        "images_per_second": len(images) / seconds["together"],
        "images_per_second_singly": len(images) / seconds["singly"],
        "peak_mib": memory["together"],
        "peak_mib_singly": memory["singly"],
        "largest_difference": float((scores["together"] - scores["singly"]).abs().max()),
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """Return Markdown, a row per reward."""
    header = ["reward", "weights MiB", "images/s", "one at a time", "ratio", "peak MiB", "one at a time"]
    rows = []
    for name, f in found.items():
        together, singly = f["images_per_second"], f["images_per_second_singly"]
        speeds = [f"{together:.2f}", f"{singly:.2f}", f"{together / singly:.2f}"]
        sizes = [f"{f['peak_mib']:.0f}", f"{f['peak_mib_singly']:.0f}", f"{f['largest_difference']:.1e}"]
        rows.append([name, f"{f['weights_mib']:.0f}", *speeds, *sizes])
    return markdown_rows([*header, "difference"], rows)


def main() -> int:
    """Measure, print, and write report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=home_path, default=Path("docs/results/rewards"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--sets", type=int, default=4, help="sets of six views, each with a prompt")
    parser.add_argument("--only", nargs="+", choices=sorted(SCORERS), default=list(SCORERS))
    parser.add_argument("--image-px", type=int, default=768)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(arguments.sets * NUM_VIEWS, 3, arguments.image_px, arguments.image_px)
    prompts = [f"a photo of a red mug with {k} handles on a wooden table" for k in range(arguments.sets)]
    found = {}
    for name in arguments.only:
        reward = SCORERS[name]().to(arguments.device, getattr(torch, arguments.dtype))
        pictures = images[:, :, :64, :64] if name.startswith("toybox") else images
        found[name] = measure(reward, pictures, prompts, arguments.device)
        print(name, found[name], file=sys.stderr)  # noqa: T201 - a command line
        del reward
    text = (
        f"{arguments.device}, {torch.get_num_threads()} threads, {arguments.dtype}. {len(images)} pictures "
        f"of {arguments.image_px} px (the toybox's: 64 px), {arguments.sets} prompts, random weights of the "
        f"published sizes; the best of {REPEATS} repeats. Peak memory is above the weights and the pictures. "
        'A joint reward\'s "one at a time" is one set of six.'
    )
    report(arguments.out / "report.json", "benchmarks.rewards", f"{text}\n\n{table(found)}", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
