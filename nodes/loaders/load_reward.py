"""The node that loads rewards. Files that are in use already are not read again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..common.checks import Field, first_problem
from ..common.folders import fingerprint, reward_folders
from ..common.memory import compute_device, load_once
from ..common.progress import show_notes
from ..sockets import RewardHandle, Rewards, make_schema, output

if TYPE_CHECKING:
    import torch

    from ...t2mv_core.rewards.sources import RewardPlaces


def list_rewards() -> list[str]:
    """Return the core's rewards, bundled ones first, view rewards before joint ones; then their parts."""
    from ...t2mv_core.rewards.registry import REWARDS

    specs = sorted(REWARDS.items(), key=lambda item: (item[1].weights is not None, item[1].kind != "view"))
    parts = [f"{name}.{part}" for name, spec in specs for part in spec.all_parts]
    return [name for name, _ in specs] + parts


REWARD = Field("reward", None, "", choices=list_rewards)
DOWNLOAD = Field(
    "download", False,
    "May fetch PickScore, HPSv2 and HPSv2.1. Fetch the files of the others by hand. Off: nothing touches the "
    "network.",
    is_optional=True, is_advanced=True,
)  # fmt: skip


class T2MVLoadReward(io.ComfyNode):
    """A name to a reward, added to those that came in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ...t2mv_core.rewards.registry import REWARDS

        summaries = " ".join(f"{name}: {spec.summary}" for name, spec in REWARDS.items())
        return make_schema(
            node_id="T2MVLoadReward",
            display_name="Load Reward (T2MV)",
            category="T2MV/loaders",
            description="Loads a scorer of views. Connect one after the other to score with several.",
            search_aliases=[
                "reward model",
                "scorer",
                "pickscore",
                "hpsv2",
                "imagereward",
                "clip score",
                "hyperscore",
            ],
            inputs=[
                replace(REWARD, default=list_rewards()[0], tooltip=summaries).widget(),
                Rewards.Input("rewards", optional=True, tooltip="Rewards to which this one is added."),
                DOWNLOAD.widget(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[output(Rewards, "t2mv_rewards", "This reward and those that came in.", "rewards")],
        )

    @classmethod
    def validate_inputs(cls, reward: str | None = None, download: bool | None = False) -> bool | str:
        """Refuse names that are no rewards, and rewards whose weights are missing, before the run."""
        return first_problem(lambda: check_reward(reward, download))

    @classmethod
    def fingerprint_inputs(cls, reward: str | None = None, **others: Any) -> str:
        """Return the identity of the reward's files: the node runs again exactly when they change."""
        return "" if reward is None else _identity(reward, _places(False))

    @classmethod
    def execute(
        cls, reward: str, rewards: tuple[RewardHandle, ...] = (), download: bool = False
    ) -> io.NodeOutput:
        """Load the reward, or take the one in use."""
        handle = load_reward_handle(reward, download)
        handles = (*(other for other in rewards if other.reward.name != reward), handle)
        show_notes(cls, getattr(handle.residency.owner, "notices", ()), is_logged=True)
        return io.NodeOutput(handles)


def load_reward_handle(reward: str, download: bool, device: torch.device | str | None = None) -> RewardHandle:
    """Load a reward, or take the one in use; parts of one reward share its weights.

    Args:
        reward: its name, or that of a part.
        download: whether files may be fetched.
        device: what will compute it, which decides the precision; None is ComfyUI's compute device.

    Raises:
        ValueError: there is no such reward, or its weights are missing, with what to fetch.
    """
    from ...t2mv_core.rewards.registry import load_reward, reward_dtype, take_part

    check_reward(reward, download)
    places, (model, _, part) = _places(download), reward.partition(".")
    dtype = reward_dtype(model, device or compute_device())

    def load() -> tuple[Any, dict[str, Any]]:
        scorer = load_reward(model, dtype=dtype, places=places)
        return scorer, {"model": scorer.model}

    residency = load_once(("reward", model, str(dtype), _identity(model, places)), load)
    return RewardHandle(take_part(residency.owner, part), residency)


def _places(download: bool) -> RewardPlaces:
    from ...t2mv_core.rewards.sources import RewardPlaces

    return RewardPlaces(folders=reward_folders(), allow_download=download)


def check_reward(reward: str | None, download: bool | None) -> None:
    """Refuse what is not a reward, or one without its weights: where to get them and where to put them."""
    from ...t2mv_core.rewards.registry import check_rewards

    REWARD.check(reward)
    DOWNLOAD.check(download)
    if reward is None or download is None:
        return
    try:
        check_rewards([reward], _places(download))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _identity(reward: str, places: RewardPlaces) -> str:
    """Return the identity of the files behind a reward; of the bundled ones while they are missing."""
    from ...t2mv_core.rewards.registry import REWARDS
    from ...t2mv_core.rewards.sources import find_local_weights, reward_files
    from ...t2mv_core.toybox import TOYBOX_DIR

    model = reward.partition(".")[0]
    weights = REWARDS[model].weights if model in REWARDS else None
    try:
        local = find_local_weights(model, weights, places) if weights is not None else None
    except FileNotFoundError:  # incomplete: the run says so
        local = None
    if weights is None or local is None:
        return fingerprint(TOYBOX_DIR / "rewards")
    return "|".join(map(fingerprint, reward_files(weights, local)))
