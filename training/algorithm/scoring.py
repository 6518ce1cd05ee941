"""The scores of sets of views under the reward models of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from t2mv_core.rewards.base import RewardResult

Scorer = Callable[..., RewardResult]
"""Takes views [n, 3, H, W] and prompts, some the sets' pictures; see `t2mv_core.rewards.base.Reward`."""


class NonFiniteError(FloatingPointError):
    """A reward, a loss or a gradient is not a finite number; training must stop."""


@dataclass(frozen=True)
class Scores:
    """Rewards of B sets of views, float32, on the CPU.

    Attributes:
        view: single-view rewards by name, [B, V] each.
        joint: joint-view rewards by name, [B] each; empty without joint rewards.
        details: named parts of the joint rewards, "reward.part", [B] each.
    """

    view: dict[str, Tensor]
    joint: dict[str, Tensor]
    details: dict[str, Tensor]


@dataclass(frozen=True)
class Rewards:
    """The reward models of a run, by name.

    Attributes:
        view: each gives n scores of n pictures and n prompts (fidelity).
        joint: each gives B scores of B·V pictures and B prompts (consistency of the set); may be empty.
    """

    view: Mapping[str, Scorer]
    joint: Mapping[str, Scorer]

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """Return those of both roles."""
        return *self.view.values(), *self.joint.values()

    def select(self, view: Iterable[str], joint: Iterable[str]) -> Rewards:
        """Return the reward models of these names."""
        return Rewards({name: self.view[name] for name in view}, {name: self.joint[name] for name in joint})

    def score(self, images: Tensor, prompts: Sequence[str], pictures: Tensor | None = None) -> Scores:
        """Score sets of views.

        Args:
            images: [B, V, 3, H, W] in [0, 1].
            prompts: B sentences.
            pictures: what the sets were drawn from, [B, 3, h, w] in [0, 1]; None for text to multiview.

        Raises:
            NonFiniteError: a reward is NaN or infinite.
            ValueError: a reward compares with pictures, and there are none.
        """
        num_views, flat = images.shape[1], images.flatten(0, 1)
        per_view = [prompt for prompt in prompts for _ in range(num_views)]
        view = {
            name: scorer(flat, per_view, pictures) if takes_pictures(scorer) else scorer(flat, per_view)
            for name, scorer in self.view.items()
        }
        joint = {name: scorer(flat, list(prompts)) for name, scorer in self.joint.items()}
        for name, result in (*view.items(), *joint.items()):
            _check_finite(name, result.scores, prompts)
        parts = {f"{name}.{part}": x for name, result in joint.items() for part, x in result.details.items()}
        return Scores(
            {name: _on_cpu(result.scores).reshape(-1, num_views) for name, result in view.items()},
            {name: _on_cpu(result.scores) for name, result in joint.items()},
            {name: _on_cpu(values) for name, values in parts.items()},
        )


def takes_pictures(scorer: Scorer) -> bool:
    """Return whether a reward compares views with the picture they were drawn from."""
    return getattr(scorer, "takes_pictures", False)


def _check_finite(name: str, scores: Tensor, prompts: Sequence[str]) -> None:
    is_finite = scores.isfinite().reshape(len(prompts), -1).all(dim=1).tolist()
    if not all(is_finite):
        prompt = prompts[is_finite.index(False)]
        raise NonFiniteError(
            f"The reward {name} of {prompt!r} is not a finite number. Set reward.dtype=fp32, or "
            "model.dtype=bf16 where it is fp16."
        )


def _on_cpu(values: Tensor) -> Tensor:
    return values.float().cpu()
