"""The node that loads rewards. Files that are in use already are not read again."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .checks import check_choice, first_problem
from .folders import fingerprint
from .memory import load_once
from .sockets import RewardHandle, Rewards, make_schema


def list_rewards() -> list[str]:
    """The names of the core's rewards, view rewards first."""
    from ..t2mv_core.rewards import REWARDS

    return sorted(REWARDS, key=lambda name: (REWARDS[name].kind != "view", name))


class T2MVLoadReward(io.ComfyNode):
    """A name to a reward, added to those that came in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's inputs and outputs."""
        from ..t2mv_core.rewards import REWARDS

        names = list_rewards()
        summaries = " ".join(f"{name}: {REWARDS[name].summary}" for name in names)
        return make_schema(
            node_id="T2MVLoadReward",
            display_name="Load Reward (T2MV)",
            category="T2MV/loaders",
            description="Loads a scorer of views. Connect one after the other to score with several.",
            search_aliases=["reward model", "scorer", "clip score", "hyperscore", "quality"],
            inputs=[
                io.Combo.Input("reward", options=names, default=names[0], tooltip=summaries),
                Rewards.Input(
                    "rewards", optional=True, tooltip="Rewards loaded before; this one is added to them."
                ),
            ],
            outputs=[
                Rewards.Output(
                    "t2mv_rewards", display_name="rewards", tooltip="This reward and those that came in."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, reward: str | None = None) -> bool | str:
        """Refuse names that are no rewards."""
        return first_problem(
            lambda: check_choice("reward", reward, list_rewards(), "Choose one of the list.")
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """The identity of the bundled reward files."""
        return _identity()

    @classmethod
    def execute(cls, reward: str, rewards: tuple[RewardHandle, ...] = ()) -> io.NodeOutput:
        """Load the reward, or take the one in use."""
        from ..t2mv_core.rewards import load_reward

        check_choice("reward", reward, list_rewards(), "Choose one of the list.")

        def load() -> tuple[Any, dict[str, Any]]:
            scorer = load_reward(reward)
            return scorer, {"model": scorer.model}  # type: ignore[attr-defined]

        residency = load_once(("reward", reward, _identity()), load)
        handle = RewardHandle(residency.owner, residency)
        return io.NodeOutput((*(other for other in rewards if other.reward.name != reward), handle))


def _identity() -> str:
    from ..t2mv_core.toybox import TOYBOX_DIR

    return fingerprint(TOYBOX_DIR / "rewards")
