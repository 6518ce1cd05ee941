"""The prompts by which a run chooses its best LoRA: on them it looks better than elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from t2mv_core.formats.safetensors_io import open_safetensors

from ..config import TrainConfig
from ..data.prompts import PromptSplit, load_held_out, shared_prompts
from .measure import spread

PREFIX = "evaluation_"
"""In the metadata of best.safetensors, before the measure that chose it and before the settings below."""

SHARE = "sampling_held_out_share"
"""There, too, where the prompts are the held-out ones of the training's."""


def watched_prompts(config: TrainConfig, split: PromptSplit) -> Sequence[str]:
    """Return the prompts, or names of pictures, on which a run chooses its best LoRA; none if it does not."""
    evaluation = config.evaluation
    if not evaluation.every or evaluation.stop_measure is None:
        return ()
    source = evaluation.prompts
    held_out = split.held_out if source is None else load_held_out(source, split.train)
    return spread(held_out, evaluation.num_prompts)


def refuse_watched(prompts: Sequence[str], config: TrainConfig, split: PromptSplit) -> None:
    """Raise ValueError where prompts to measure on are watched."""
    if shared := shared_prompts(prompts, watched_prompts(config, split)):
        raise ValueError(
            f"evaluation.stop_measure={config.evaluation.stop_measure} chooses the LoRA by {len(shared)} of "
            f"the {len(prompts)} prompts to measure on, where it then looks better than elsewhere; set "
            "evaluation.prompts to others, or measure on others."
        )


def choice_facts(config: TrainConfig) -> dict[str, str]:
    """Return what best.safetensors says of the prompts that chose it; nothing where a run chooses none."""
    evaluation, sampling = config.evaluation, config.sampling
    if evaluation.stop_measure is None:
        return {}
    source = evaluation.prompts or sampling.references or sampling.prompts
    facts = {f"{PREFIX}prompts": Path(source).name, f"{PREFIX}num_prompts": str(evaluation.num_prompts)}
    if evaluation.prompts is None:
        facts[SHARE] = str(sampling.held_out_share)
    return facts


def remark_on_choice(loras: Mapping[Path, str], config: TrainConfig) -> list[str]:
    """Return a sentence for each LoRA that was chosen by prompts which these settings do not watch.

    Args:
        loras: files and what the report calls them; those without facts on a choice pass.
        config: of the evaluation. A run's may have changed since its best LoRA was written.
    """
    now, remarks = choice_facts(config), []
    for path, name in loras.items():
        facts = open_safetensors(path).metadata() or {}
        keys = f"{PREFIX}prompts", f"{PREFIX}num_prompts", SHARE
        before = {key: facts[key] for key in keys if key in facts}
        was_chosen = any(key.startswith(PREFIX) for key in facts)
        if was_chosen and (before != now if before else not now):
            words = " ".join(f"{key.replace('_', '.', 1)}={value}" for key, value in before.items())
            remarks.append(
                f"**Chosen on other settings' prompts**: {name} was chosen by its results on prompts "
                f"({words or 'its file does not say which'}) that this evaluation does not leave out; on "
                "them it looks better than elsewhere."
            )
    return remarks
