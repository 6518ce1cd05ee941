"""A training iteration against the published recipe's way of writing it, in one process, alternating.

python -m benchmarks.training_iteration --model toybox --micro-batch 2
python -m benchmarks.training_iteration --model sdxl --layers 1 5 --prompts 1 --steps 1 --name sdxl_half

Both ways start from the same weights, noise and advantages; their losses and gradients are compared before
anything is timed. Times are CPU seconds of the process, one thread by default, because the machine that
measured was shared. Memory is the peak of the bytes that live at once and were not there before the phase,
counted in a first turn that is not timed: the LoRA's gradient is among them, the optimizer's averages not.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t2mv_core.bundle import ModelBundle
from t2mv_core.loading import load_bundle
from t2mv_core.lora.adapters import trainable_parameters
from t2mv_core.rewards.base import RewardResult
from t2mv_core.text import TextCondition, encode_text
from training.algorithm.learner import Learner, LearnerSettings
from training.algorithm.objectives import zigal_loss
from training.algorithm.rollout import Batch, Policy, Rollout, RolloutSettings, collect
from training.algorithm.scoring import Rewards
from training.config import TrainConfig, home_path, load_config
from training.evaluation.report import markdown_rows
from training.models.policy import LORA_NAME, iteration_updates, make_policy, sampling_settings

from . import published_recipe as published
from .full_size import create_textless_bundle, draw_condition
from .measuring import measure_live, report

REWARDS = Rewards(
    {"redness": lambda images, prompts: RewardResult(images[:, 0].mean(dim=(1, 2)))},
    {
        "blue": lambda images, prompts: RewardResult(
            images[:, 2].mean(dim=(1, 2)).reshape(len(prompts), -1).std(1)
        )
    },
)
"""Plain arithmetic: reward models are the same in every way of training."""
SDXL_LATENT_PX = 16
TOYBOX_PROMPTS = ("a red mug", "a blue chair", "a green car", "a white house")
WAYS = (
    "published",
    "published, no checkpointing",
    "ours",
    "ours, checkpointing",
    "published, bf16",
    "ours, bf16",
)
"""`published` is the reference of all ratios and must be among the chosen ones."""


@dataclass(frozen=True)
class Size:
    """What is run.

    Attributes:
        model: "toybox" or "sdxl".
        num_prompts: of a device.
        num_steps: denoising steps.
        micro_batch: prompts in a pass of our update, one trajectory of each; the published way has 1.
        layers: transformer layers of SDXL's blocks at widths 640 and 1280.
    """

    model: str
    num_prompts: int
    num_steps: int
    micro_batch: int
    layers: tuple[int, int] = (1, 5)


class KeepingAdamW(torch.optim.AdamW):
    """AdamW at learning rate 0, so that every repeat does the same, which shows the gradient it was given."""

    seen: Tensor | None = None
    keeps = False

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Take the step; remember the gradient when asked to."""
        if self.keeps:
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            self.seen = torch.cat([g.flatten() for g in gradients if g is not None])
        return super().step(closure)


@dataclass
class Way:
    """One way of running the iteration: its two phases, and what was measured of them."""

    roll_out: Callable[[], Any]
    update: Callable[[Any], float]
    optimizer: KeepingAdamW
    made: Any = None
    loss: float = 0.0
    cpu_seconds: dict[str, list[float]] = field(default_factory=lambda: {"rollout": [], "update": []})
    mib: dict[str, float] = field(default_factory=dict)

    def count(self) -> None:
        """Run both phases, counting memory; the update shows its gradient. Later updates start from here."""
        rollout, self.made = measure_live(self.roll_out)
        self.optimizer.keeps = True
        update, self.loss = measure_live(partial(self.update, self.made))
        self.optimizer.keeps = False
        self.mib = {"rollout": rollout / 2**20, "update": update / 2**20}

    def measure(self) -> None:
        """Run both phases, timed."""
        for phase, work in (("rollout", self.roll_out), ("update", partial(self.update, self.made))):
            started = time.process_time()
            work()
            self.cpu_seconds[phase].append(time.process_time() - started)


@dataclass(frozen=True)
class Case:
    """A model with what both ways are given.

    Attributes:
        encode: the text encoders asked about the prompts, where the model has any.
    """

    config: TrainConfig
    policy: Policy
    condition: TextCondition
    encode: published.Encode
    prompts: tuple[str, ...]
    advantages: Tensor
    parameters: list[nn.Parameter]

    def optimizer(self) -> KeepingAdamW:
        """Return a fresh one, its averages made already, as in all iterations but the first."""
        optimizer = KeepingAdamW(self.parameters, lr=0.0, weight_decay=1e-4)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return optimizer


def make_case(size: Size, bundle: ModelBundle, condition: TextCondition, *overrides: str) -> Case:
    """Return a policy with a LoRA that has left its zero, conditions and advantages; all from fixed seeds."""
    num_prompts = size.num_prompts
    words = [
        f"sampling.prompts_per_iteration={num_prompts}", f"sampling.num_steps={size.num_steps}",
        f"sampling.batch_size={num_prompts}", "optim.prompts_per_update=null", "optim.splits_pairs=true",
        f"optim.micro_batch={size.micro_batch}", "model.lora_rank=16", "model.lora_alpha=16", *overrides,
    ]  # fmt: skip
    words_of_toybox = TOYBOX_PROMPTS[:num_prompts]
    encode = partial(encode_text, bundle, words_of_toybox) if size.model == "toybox" else lambda: condition
    return case_of(load_config("demo", words), bundle, condition, encode)


def case_of(
    config: TrainConfig, bundle: ModelBundle, condition: TextCondition, encode: published.Encode
) -> Case:
    """Return the case of a configuration whose iteration has as many prompts as the condition."""
    num_prompts = len(condition)
    policy = make_policy(config, bundle)
    parameters = trainable_parameters(bundle.unet, LORA_NAME)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    advantages = torch.randn(num_prompts, 2, policy.cameras.num_views, generator=generator)
    prompts = tuple(f"prompt {number}" for number in range(num_prompts))
    return Case(config, policy, condition, encode, prompts, advantages, parameters)


def our_way(case: Case, checkpoints: bool = False) -> Way:
    """Return the trainer's rollout and learner; texts and cameras were encoded when the run began."""
    config, optimizer = case.config, case.optimizer()
    sampling = sampling_settings(config.sampling)
    settings = LearnerSettings(
        zigal_loss, sampling, config.optim.clip_range, 1e9, splits_pairs=config.optim.splits_pairs
    )
    accelerator = Accelerator(cpu=case.policy.bundle.device.type == "cpu")
    learner = Learner(case.policy, case.policy, case.parameters, optimizer, accelerator, settings)
    slots, unet = range(len(case.prompts)), case.policy.bundle.unet
    rollouts = RolloutSettings(("standard", "zmv"), sampling, config.sampling.batch_size, 0)

    def roll_out() -> Rollout:
        return collect(case.policy, REWARDS, rollouts, 1, slots, Batch(case.prompts, case.condition))

    def update(rollout: Rollout) -> float:
        updates = iteration_updates(config, slots, 1)
        if checkpoints:
            unet.enable_gradient_checkpointing()
        try:
            return learner.apply(rollout, case.advantages, updates, lambda: None).loss
        finally:
            unet.disable_gradient_checkpointing()

    return Way(roll_out, update, optimizer)


def published_way(case: Case, checkpoints: bool = True) -> Way:
    """Return the yardstick."""
    optimizer, sampling = case.optimizer(), sampling_settings(case.config.sampling)
    clip_range = case.config.optim.clip_range
    (plan,) = iteration_updates(case.config, range(len(case.prompts)), 1)
    orders: list[list[int]] = [[] for _ in case.prompts]
    for micro_step in plan.micro_steps:
        for row, step in zip(micro_step.prompts.tolist(), micro_step.steps.tolist(), strict=True):
            orders[row].append(step)

    def roll_out() -> Any:
        with published.as_published(case.policy):
            return published.rollout(case.policy, REWARDS, case.prompts, case.encode, sampling, 0)

    def update(pairs: Any) -> float:
        with published.as_published(case.policy, checkpoints):
            return published.update(
                case.policy, pairs, case.advantages, orders, sampling, optimizer, case.parameters, clip_range
            )

    return Way(roll_out, update, optimizer)


def load_models(size: Size, has_bfloat16: bool) -> tuple[ModelBundle, ModelBundle | None, TextCondition]:
    """Return the model in float32, in bfloat16 if wished, and the text of the iteration's prompts."""
    if size.model == "sdxl":
        torch.manual_seed(0)
        layers = (1, *size.layers)
        bundle = create_textless_bundle(
            True, "cpu", torch.float32, sample_size=SDXL_LATENT_PX, transformer_layers_per_block=layers
        )
        condition = draw_condition(size.num_prompts, bundle.image_px, "cpu", torch.float32)
        return bundle, in_bfloat16(bundle) if has_bfloat16 else None, condition
    bundle = load_bundle("toybox")
    condition = encode_text(bundle, TOYBOX_PROMPTS[: size.num_prompts])
    return bundle, load_bundle("toybox", dtype=torch.bfloat16) if has_bfloat16 else None, condition


def in_bfloat16(bundle: ModelBundle) -> ModelBundle:
    """Return the same model in bfloat16 beside the given one, without ever a third copy."""
    parts = (bundle.unet, bundle.vae, bundle.camera_encoder)
    rounded = {id(p): nn.Parameter(p.bfloat16(), requires_grad=False) for x in parts for p in x.parameters()}
    # deepcopy takes the rounded weights for copied already.
    unet, vae, camera_encoder = (copy.deepcopy(part, rounded) for part in parts)  # type: ignore[arg-type]
    return replace(bundle, unet=unet, vae=vae, camera_encoder=camera_encoder)


def compare(ours: Way, theirs: Way) -> dict[str, float]:
    """Return the differences of loss and gradient."""
    assert ours.optimizer.seen is not None
    assert theirs.optimizer.seen is not None
    gradient, reference = ours.optimizer.seen.double(), theirs.optimizer.seen.double()
    return {
        "loss": ours.loss,
        "loss_difference": abs(ours.loss - theirs.loss),
        "gradient_relative_difference": float((gradient - reference).norm() / reference.norm()),
        "gradient_cosine": float(torch.cosine_similarity(gradient, reference, dim=0)),
    }


def make_ways(size: Size, names: list[str]) -> tuple[Case, dict[str, Way]]:
    """Return the float32 case and the chosen ways; with the bfloat16 model only if one wants it."""
    full, low, condition = load_models(size, any("bf16" in name for name in names))
    case = make_case(size, full, condition)
    ways = {
        "published": lambda: published_way(case),
        "published, no checkpointing": lambda: published_way(case, checkpoints=False),
        "ours": lambda: our_way(case),
        "ours, checkpointing": lambda: our_way(case, checkpoints=True),
    }
    if low is not None:
        half = make_case(size, low, condition, "optim.mixed_precision=bf16")
        ways["published, bf16"] = lambda: published_way(half)
        ways["ours, bf16"] = lambda: our_way(half)
    return case, {name: ways[name]() for name in names}


def measure(size: Size, repeats: int, names: list[str]) -> dict[str, Any]:
    """Measure the chosen ways of one model, taking turns."""
    _, ways = make_ways(size, names)
    for name, way in ways.items():
        way.count()
        print(name, "counted", {phase: round(mib) for phase, mib in way.mib.items()}, flush=True)  # noqa: T201
    for _ in range(repeats):
        for name, way in ways.items():
            way.measure()
            print(name, {phase: round(times[-1], 2) for phase, times in way.cpu_seconds.items()}, flush=True)  # noqa: T201
    figures = {
        name: {"cpu_seconds": way.cpu_seconds, "mib": way.mib, **compare(way, ways["published"])}
        for name, way in ways.items()
    }
    return {"size": asdict(size), "ways": figures}


def table(ways: dict[str, Any]) -> str:
    """Return Markdown: medians of times; ratios are to the published recipe as configured."""
    rows = {}
    for name, way in ways.items():
        total = [sum(pair) for pair in zip(*way["cpu_seconds"].values(), strict=True)]
        rows[name] = (
            statistics.median(total),
            statistics.median(way["cpu_seconds"]["update"]),
            max(way["mib"].values()),
            way["mib"]["update"],
        )
    first = rows["published"]
    header = ["way"]
    for column in ("iteration, CPU s", "update, CPU s", "memory, MiB", "of update"):
        header += [column, "ratio"]
    cells = []
    for name, row in rows.items():
        ratios = (cell for x, y in zip(row, first, strict=True) for cell in (f"{x:.2f}", f"{x / y:.2f}"))
        cells.append([name, *ratios, f"{ways[name]['gradient_relative_difference']:.1e}"])
    return markdown_rows([*header, "gradient differs by"], cells)


def main() -> int:
    """Measure one model, print, and write its JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_iteration")
    add = parser.add_argument
    add("--model", choices=("toybox", "sdxl"), default="toybox")
    add("--prompts", type=int, default=4, help="the published recipe has 4")
    add("--steps", type=int, default=4, help="denoising steps; the published recipe has 8")
    add("--micro-batch", type=int, default=1, help="of our way; the published one has 1")
    add("--layers", type=int, nargs=2, default=(1, 5), help="transformer layers at 640 and 1280")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=1)
    add("--out", type=home_path, default=Path("docs/results/training_iteration"))
    add("--name", help="of the file written; default: the model's")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    layers = (arguments.layers[0], arguments.layers[1])
    size = Size(arguments.model, arguments.prompts, arguments.steps, arguments.micro_batch, layers)
    found = measure(size, arguments.repeats, arguments.ways)
    path = arguments.out / f"{arguments.name or arguments.model}.json"
    report(path, "benchmarks.training_iteration", table(found["ways"]), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
