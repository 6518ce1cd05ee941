"""Rewards by name. Adding one: its file in this folder, one entry in REWARDS, its test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .sources import PublishedWeights, RewardPlaces, find_local_weights, find_weights

if TYPE_CHECKING:
    import torch

    from ..cameras import CameraRig
    from .base import Reward

    Load = Callable[[Path | None, torch.device | str, torch.dtype | None], Reward]


@dataclass(frozen=True)
class RewardSpec:
    """An entry of REWARDS.

    Attributes:
        kind: "view" (one score per picture) or "joint" (one score per set of views).
        load: (path of the weights, device, precision) -> the scorer; imports what it needs only when called.
            Bundled rewards know their path and ignore the argument.
        summary: one line for lists and tooltips.
        weights: where the weights of a published reward are; none for bundled rewards.
        parts: names of its details, each a reward of its own as "<reward>.<part>".
        takes_pictures: it compares views with the picture they were drawn from; such a reward has no parts.
    """

    kind: Literal["view", "joint"]
    load: Load
    summary: str
    weights: PublishedWeights | None = None
    parts: tuple[str, ...] = ()
    takes_pictures: bool = False

    @property
    def all_parts(self) -> tuple[str, ...]:
        """Its own parts, and those over views."""
        has_over_views = self.kind == "view" and not self.takes_pictures
        return (*self.parts, *(OVER_VIEWS if has_over_views else ()))


def _lazily(function: str, bundled: str = "", **options: Any) -> Load:
    """Return a loader that imports "<file of this folder>.<function>" when somebody calls it."""

    def load(path: Path | None, device: torch.device | str, dtype: torch.dtype | None) -> Reward:
        from ..toybox import toybox_path

        module, _, attribute = function.partition(".")
        load_scorer = getattr(import_module(f".{module}", __package__), attribute)
        reward: Reward = load_scorer(toybox_path(bundled) if bundled else path, **options)
        return reward.to(device, dtype)

    return load


QUALITIES = ("alignment", "geometry", "texture", "overall")
"""HyperScore's heads."""
OVER_VIEWS = ("min", "mean")
"""Parts that every view reward has: a set's worst view and its mean, as a joint reward."""
GEOMETRY = "geometry"
_HPSV2 = {"architecture": "ViT-H-14", "fit": "pad"}

REWARDS: dict[str, RewardSpec] = {
    "toybox_clip": RewardSpec(
        "view",
        _lazily("clip_score.load_clip_score", "rewards/clip.safetensors"),
        "Bundled CLIP: does one picture show what the prompt says?",
    ),
    "toybox_hyperscore": RewardSpec(
        "joint",
        _lazily("hyperscore.load_hyperscore", "rewards/hyperscore.safetensors"),
        "Bundled HyperScore: alignment, geometry and texture of a set of six views.",
        parts=QUALITIES,
    ),
    "toybox_picture": RewardSpec(
        "view",
        _lazily("picture_similarity.load_toybox_similarity", "rewards/clip.safetensors"),
        "Bundled CLIP: does each view look like the picture that the set was drawn from?",
        takes_pictures=True,
    ),
    GEOMETRY: RewardSpec(
        "joint",
        _lazily("geometry.load_geometry"),
        "Without a model: do silhouettes and colours of the views fit one solid? Plain backgrounds only.",
        parts=("silhouettes", "colours"),
    ),
    "pickscore": RewardSpec(
        "view",
        _lazily("pickscore.load_pickscore"),
        "PickScore: which picture people would choose for the prompt.",
        PublishedWeights(
            ("PickScore_v1",),
            "https://huggingface.co/yuvalkirstain/PickScore_v1",
            ("config.json", "model.safetensors"),
            needs=(("config.json",), ("model.safetensors", "pytorch_model.bin")),
            remark="It is a folder with config.json and model.safetensors (3.9 GB).",
        ),
    ),
    "hpsv2": RewardSpec(
        "view",
        _lazily("open_clip_score.load_open_clip_score", name="hpsv2", **_HPSV2),
        "HPSv2: how people would rank the picture for the prompt.",
        PublishedWeights(
            ("HPS_v2_compressed.pt", "HPS_v2_compressed.safetensors"),
            "https://huggingface.co/xswu/HPSv2",
            ("HPS_v2_compressed.pt",),
        ),
    ),
    "hpsv2_1": RewardSpec(
        "view",
        _lazily("open_clip_score.load_open_clip_score", name="hpsv2_1", **_HPSV2),
        "HPSv2.1: the same, trained on more recent pictures; not comparable with HPSv2.",
        PublishedWeights(
            ("HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.safetensors"),
            "https://huggingface.co/xswu/HPSv2",
            ("HPS_v2.1_compressed.pt",),
        ),
    ),
    "image_reward": RewardSpec(
        "view",
        _lazily("image_reward.load_image_reward"),
        "ImageReward: how people would rate picture and prompt together; below zero is common.",
        PublishedWeights(
            ("ImageReward/ImageReward.pt", "ImageReward/ImageReward.safetensors"),
            "https://huggingface.co/zai-org/ImageReward",
            needs=(("med_config.json",), ("vocab.txt",)),
            remark="Beside it go med_config.json from the same page and vocab.txt from "
            "https://huggingface.co/google-bert/bert-base-uncased.",
        ),
    ),
    "clip_score": RewardSpec(
        "view",
        _lazily("open_clip_score.load_open_clip_score"),
        "CLIP score by any model of open_clip: does the picture show what the prompt says?",
        PublishedWeights(
            ("clip_score",),
            "https://huggingface.co/models?library=open_clip",
            remark="It is a folder with one checkpoint named after its architecture in open_clip, such as "
            "ViT-L-14-quickgelu.safetensors for OpenAI's.",
        ),
    ),
    "picture_similarity": RewardSpec(
        "view",
        _lazily("picture_similarity.load_picture_similarity"),
        "Image to multiview: does each view look like the picture? By any model of open_clip.",
        PublishedWeights(
            ("clip_score",),
            "https://huggingface.co/models?library=open_clip",
            remark="It reads the same folder as clip_score.",
        ),
        takes_pictures=True,
    ),
    "hyperscore": RewardSpec(
        "joint",
        _lazily("hyperscore.load_published_hyperscore"),
        "HyperScore: alignment, geometry, texture and overall quality of a set of views.",
        PublishedWeights(
            ("HyperScore/model.pth", "HyperScore/model.safetensors", "hyperscore.pth"),
            "https://github.com/zhangyujie-1998/MATE-3D",
            remark="The page links to the file, named model.pth, on OneDrive.",
        ),
        QUALITIES,
    ),
}


def reward_dtype(name: str, device: torch.device | str) -> torch.dtype | None:
    """Return the default precision of a reward on a device; None leaves its weights as they are.

    HyperScore is in float32 everywhere: it is small, and its softmax over patches blows rounding up
    (docs/rewards.md).

    Raises:
        ValueError: no reward has this name.
    """
    import torch

    spec = _spec(name.partition(".")[0])
    if spec.weights is None:
        return None
    is_gpu = torch.device(device).type not in ("cpu", "mps")
    return torch.float16 if is_gpu and spec.kind == "view" else torch.float32


def reward_kind(name: str) -> Literal["view", "joint"]:
    """Return whether a reward, or a part of one such as "pickscore.min", scores single views or sets.

    Raises:
        ValueError: no reward has this name, or the reward no such part.
    """
    model, _, part = name.partition(".")
    spec = _spec(model)
    if part and part not in spec.all_parts:
        raise ValueError(no_such_part(model, part, spec.all_parts))
    return "joint" if spec.kind == "view" and part in OVER_VIEWS else spec.kind


def no_such_part(name: str, part: str, parts: Iterable[str]) -> str:
    """Return the sentence about a part that a reward does not have."""
    return f"The reward {name} has no part {part!r}; it has {', '.join(parts) or 'none'}."


def check_rewards(names: Iterable[str], places: RewardPlaces) -> None:
    """Raise unless all weights are on this machine, or on the Hub where downloading is allowed.

    Raises:
        ValueError: no reward has such a name.
        FileNotFoundError: weights are missing; says for each of them where to get it and where to put it.
    """
    missing = []
    for model in dict.fromkeys(name.partition(".")[0] for name in names):
        weights = _spec(model).weights
        try:
            if weights is None or find_local_weights(model, weights, places) is not None:
                continue
            if not weights.hub_files or not places.allow_download:
                find_weights(model, weights, places)
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError("\n".join(missing))


def load_reward(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    places: RewardPlaces | None = None,
) -> Reward:
    """Load a reward of REWARDS, or a part of one such as "hyperscore.geometry" or "pickscore.min".

    Args:
        name: of the reward.
        device: where to.
        dtype: precision of its networks; None: see `reward_dtype`.
        places: where its weights may be.

    Raises:
        ValueError: no reward has this name, or a weights file is not what it should be.
        FileNotFoundError: its weights are not on this machine.
    """
    return load_rewards([name], device, dtype, places)[name]


def load_rewards(
    names: Iterable[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    places: RewardPlaces | None = None,
    rig: CameraRig | None = None,
) -> dict[str, Reward]:
    """Load several rewards, each model once however many of its parts are named; see `load_reward`.

    `rig` is that of the views, for rewards that look at cameras; None is the default rig.
    """
    from .composite import ScoredOnce
    from .geometry import with_cameras

    names, places, models = list(dict.fromkeys(names)), places or RewardPlaces(), {}
    uses = Counter(name.partition(".")[0] for name in names)
    for name in names:
        reward_kind(name)  # refuses names before anything is read
    for model in uses:
        spec = _spec(model)
        path = find_weights(model, spec.weights, places) if spec.weights is not None else None
        reward = spec.load(path, device, dtype or reward_dtype(model, device))
        reward = reward if rig is None else with_cameras(reward, rig)
        models[model] = ScoredOnce(reward) if uses[model] > 1 else reward
    return {name: take_part(models[name.partition(".")[0]], name.partition(".")[2]) for name in names}


def take_part(reward: Reward, part: str) -> Reward:
    """Return a part of a loaded reward as a reward over the same weights; the reward itself for ""."""
    from .composite import OverViews, PartOfReward

    if not part:
        return reward
    is_over_views = reward.kind == "view" and part in OVER_VIEWS
    return OverViews(reward, part) if is_over_views else PartOfReward(reward, part)


def _spec(model: str) -> RewardSpec:
    if model not in REWARDS:
        raise ValueError(f"There is no reward named {model!r}; choose one of: {', '.join(sorted(REWARDS))}.")
    return REWARDS[model]
