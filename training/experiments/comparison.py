"""The paper's comparison: every method trained and measured alike, one result file per method and seed.

A result file holds what was measured prompt by prompt, so that intervals and differences can be computed from
the files alone. A run whose file is there already, made by the same configuration, is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from t2mv_core.formats.atomic import replaced
from t2mv_core.toybox import toybox_path
from t2mv_core.trajectory import derive_seed

from ..config import (
    ModelConfig,
    TrainConfig,
    change_settings,
    changed_values,
    config_from_dict,
    config_to_dict,
    flat_settings,
)
from ..evaluation.measure import (
    Measurement,
    Variant,
    load_instruments,
    make_questions,
    measure,
)
from ..models.base_loras import hash_file, load_base_model
from ..models.policy import sampling_settings
from ..run.environment import REPOSITORY, describe_commit, describe_environment
from ..run.folder import RunFolder
from ..run.metrics import read_metrics
from ..run.stop import stopping_on_signals
from ..run.trainer import Trainer
from .methods import METHODS, TEACHER_SETTINGS

FIRST_NOISE_SEED = 1000
NUM_PICTURES = 6
BATCH_SIZE = 10
"""Of measuring: results do not depend on it but for rounding."""
CURVES = ("lambda", "threshold", "joint_gap", "clip_fraction")
"""Metrics of an iteration that are kept, beside the mean rewards."""
ADDED_LATER = ("lcm_lora.safetensors", "image_mvadapter.safetensors")
"""Bundled weights that came after the first results, and that no method here takes without naming them."""

COMMIT = describe_commit(REPOSITORY)
"""Of the code that this process runs; the folder may be at a later one when a training ends."""


@dataclass(frozen=True)
class Task:
    """One method with one seed.

    Attributes:
        method: a name of METHODS.
        seed: of the training; the measurement's noise is FIRST_NOISE_SEED + seed, equal for all methods.
        config: the training configuration shared by all methods; objective, seed and folder are filled in.
        prompts: held-out prompts to measure on.
        results_dir: where the result file goes.
        work_dir: where the training run lies while it is going on.
    """

    method: str
    seed: int
    config: TrainConfig
    prompts: tuple[str, ...]
    results_dir: Path
    work_dir: Path

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.method}_seed{self.seed}"

    @property
    def result_path(self) -> Path:
        """The result file."""
        return self.results_dir / f"{self.name}.json"

    @property
    def pictures_path(self) -> Path:
        """The first measured pictures."""
        return self.work_dir / f"{self.name}.pictures.pt"

    @property
    def own_config(self) -> TrainConfig:
        """The configuration of this method's training run."""
        method = METHODS[self.method]
        run = replace(self.config.run, seed=self.seed, out_dir="unnamed")
        objective = method.objective or self.config.objective
        config = replace(self.config, objective=objective, run=run)  # type: ignore[arg-type]
        config = change_settings(config, method.settings)
        # A folder per configuration: a run of another one must not be taken for this one's.
        run = replace(run, out_dir=str(self.work_dir / f"{self.name}_{self._key(config)[:8]}"))
        return replace(config, run=run)

    def key(self) -> str:
        """A hash of what the result depends on: settings, prompts, bundled weights, base LoRAs.

        The code is not in it, and other files count by the name that the settings give them.
        """
        return self._key(self.own_config)

    def _key(self, config: TrainConfig) -> str:
        values = changed_values(config)  # so that a setting added later leaves older results valid
        values.get("run", {}).pop("out_dir", None)
        parts = [self.method, str(self.seed), json.dumps(values, sort_keys=True), *self.prompts]
        parts += [hash_file(Path(lora.path)) for lora in config.model.base_loras]
        return hashlib.blake2b("\n".join([*parts, _weights_hash()]).encode(), digest_size=12).hexdigest()

    def read_result(self) -> dict[str, Any] | None:
        """The result, if it is there and was made by this configuration."""
        if not self.result_path.is_file():
            return None
        result = json.loads(self.result_path.read_text(encoding="utf-8"))
        return result if result["key"] == self.key() and self._has_settings(result["config"]) else None

    def _has_settings(self, saved: dict[str, Any]) -> bool:
        """Whether a result's settings are this task's: the key leaves out those that were default then."""
        try:
            before = flat_settings(config_from_dict(saved))
        except ValueError:  # a setting that is no more
            return False
        now = flat_settings(self.own_config)
        return {**before, "run.out_dir": None} == {**now, "run.out_dir": None}


def make_tasks(
    methods: Sequence[str],
    seeds: Sequence[int],
    config: TrainConfig,
    prompts: Sequence[str],
    results_dir: Path,
    work_dir: Path,
) -> list[Task]:
    """Return all tasks, seed by seed, so that a comparison broken off has whole seeds.

    Raises:
        ValueError: a method that is not in METHODS.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"There is no method {unknown[0]!r}; choose from {', '.join(METHODS)}.")
    return [
        Task(method, seed, config, tuple(prompts), results_dir, work_dir)
        for number, seed in enumerate(seeds)
        for method in methods
        if number < (METHODS[method].num_seeds or len(seeds))
    ]


def run_task(task: Task) -> bool:
    """Train, measure and write the result file; return False when interrupted (the same call goes on)."""
    if task.read_result() is not None:
        return True
    method, config = METHODS[task.method], task.own_config
    model = config.model if method.model is None else ModelConfig(method.model)
    bundle = load_base_model(model)
    reward, azimuths = config.reward, config.sampling.used_azimuths_deg
    instruments = load_instruments(reward.view, reward.joint, bundle.device, True, reward, azimuths)
    lora, training = None, None
    if method.objective is not None:
        trainer = Trainer(config, bundle, instruments.rewards, resume=True)
        with stopping_on_signals(trainer.request_stop):
            if not trainer.run():
                return False
        lora = chosen_lora(config, trainer.folder)
        training = training_record(read_metrics(trainer.folder.metrics_path))
        bundle = load_base_model(model)
    settings = sampling_settings(config.sampling) if method.model is None else TEACHER_SETTINGS
    noise_seed = FIRST_NOISE_SEED + task.seed
    questions = replace(
        make_questions(config.sampling, task.prompts, candidate_seeds(noise_seed, method.candidates)),
        batch_size=BATCH_SIZE,
        num_kept=NUM_PICTURES,
    )
    variant = Variant(task.name, method.sampler, settings, lora)
    measurement = keep_best(measure(bundle, instruments, variant, questions))
    write_result(task, measurement, training)
    return True


def chosen_lora(config: TrainConfig, folder: RunFolder) -> Path | None:
    """Return the LoRA that a training chose; None where held-out evaluation found none that helps."""
    if config.evaluation.stop_measure is None:
        return folder.newest_lora()
    return folder.best_lora_path if folder.best_lora_path.is_file() else None


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """Return a seed per candidate of every prompt: the given one, then others drawn from it."""
    return (seed, *(derive_seed(seed, "candidate", number) for number in range(1, count)))


def keep_best(found: Measurement) -> Measurement:
    """Return the measures [P, 1] of each prompt's best candidate, by the sum of both rewards' z-scores.

    z-scores are over the prompt's candidates, as in the node Sample Best Views: over all prompts, the reward
    that varies more within a prompt would decide. The chosen rewards are a maximum, so they say less than
    those of the other methods; the judge does not choose. Pictures are those of the first candidate.
    """
    scores = torch.zeros_like(found.values["view_reward"])
    for name in ("view_reward", "joint_reward"):
        if name in found.values and found.values[name].shape[1] > 1:
            values = found.values[name]
            gaps = values - values.mean(dim=1, keepdim=True)
            scores += gaps / values.std(dim=1, keepdim=True).clamp(min=1e-8)
    best = scores.argmax(dim=1, keepdim=True)
    count = scores.shape[1]
    return replace(
        found,
        values={name: values.gather(1, best) for name, values in found.values.items()},
        seconds_per_set=found.seconds_per_set * count,
        evaluations_per_set=found.evaluations_per_set * count,
    )


def training_record(records: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return how a training went: iterations, seconds without its held-out evaluations, curves."""
    return {
        "iterations": len(records),
        "seconds": sum(r["rollout_seconds"] + r["update_seconds"] for r in records),
        "curves": {
            name: [record[name] for record in records]
            for name in records[0]
            if name in CURVES or re.fullmatch("(view|joint)_reward_[a-z]+", name)
        },
    }


def write_result(task: Task, found: Measurement, training: dict[str, Any] | None) -> None:
    """Write the result file atomically, and the first pictures into the work folder."""
    environment, config = describe_environment(), config_to_dict(task.own_config)
    del config["run"]["out_dir"]  # says where, not what; and the file gets published
    result = {
        "method": task.method,
        "seed": task.seed,
        "key": task.key(),
        "config": config,
        "commit": COMMIT,
        "packages": environment["packages"],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "evaluations_per_set": found.evaluations_per_set,
        "seconds_per_set": round(found.seconds_per_set, 4),
        "training": training,
        "prompts": list(task.prompts),
        "values": {
            name: [None if math.isnan(value) else round(value, 6) for value in values[:, 0].tolist()]
            for name, values in found.values.items()
        },
    }
    task.work_dir.mkdir(parents=True, exist_ok=True)
    torch.save(found.images, task.pictures_path)
    with replaced(task.result_path) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


@lru_cache(maxsize=1)
def _weights_hash() -> str:
    """Of the bundled models: results of other weights are other results."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(toybox_path(".").rglob("*.safetensors")):
        if path.name not in ADDED_LATER:
            digest.update(path.read_bytes())
    return digest.hexdigest()
