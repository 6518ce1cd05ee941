"""Which settings may differ when a run goes on: everything else would make two runs of one."""

from __future__ import annotations

from pathlib import Path

from ..config import TrainConfig, changed_values, config_from_dict

FREE = {
    "model.device",
    "model.gradient_checkpointing",
    "model.base_loras",  # files may have moved; the weights themselves are compared by base_loras.py
    "sampling.batch_size",
    "sampling.prompts",  # a file may have moved; the prompts themselves are compared by PromptSampler
    "reward.device",
    "reward.folder",
    "reward.allow_download",
    "optim.lr",
    "optim.weight_decay",
    "optim.max_grad_norm",
    "optim.kl_weight",
    "optim.micro_batch",
    "optim.splits_pairs",
    "optim.mixed_precision",
}
"""Settings that cost or steer a run without changing what its saved state means."""
FREE_SECTIONS = {"preset", "run", "evaluation"}
BOUND = {"run.seed", "run.iterations_per_epoch"}
"""Settings of these sections that are not free."""


def refuse_another_run(config_path: Path, config: TrainConfig) -> None:
    """Compare a run's saved configuration with the one it is to go on with.

    Args:
        config_path: the run folder's config.yaml; a folder without one is not refused.
        config: the new one.

    Raises:
        ValueError: a setting differs that must not, or the file is damaged.
    """
    import yaml

    if not config_path.is_file():
        return
    try:
        saved = config_from_dict(yaml.safe_load(config_path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{config_path} cannot be read ({error}); train into another run.out_dir."
        ) from error
    before, now = flat(saved), flat(config)
    for key in sorted(before.keys() | now.keys()):
        is_free = key in FREE or (key.partition(".")[0] in FREE_SECTIONS and key not in BOUND)
        if not is_free and before.get(key) != now.get(key):
            raise ValueError(
                f"The run in {config_path.parent} was started with {key}={before.get(key, 'its default')}, "
                f"now it is {now.get(key, 'its default')}; use the old value, or another run.out_dir."
            )


def flat(config: TrainConfig) -> dict[str, object]:
    """Settings that differ from their defaults, by "section.key"."""
    return {
        f"{section}.{key}" if key else section: value
        for section, values in changed_values(config).items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
