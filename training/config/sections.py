"""The sections of a training configuration: one frozen record per concern, each field with its sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from .parsing import FilePath, check_record

Count = Annotated[int, "[1, inf)"]
CountOrZero = Annotated[int, "[0, inf)"]
Finite = Annotated[float, "(-inf, inf)"]
NotNegative = Annotated[float, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
Share = Annotated[float, "[0, 1)"]
Objective = Literal[
    "mvc_zigal",
    "mvc_zigal_fixed_threshold",
    "mvc_zigal_equal_rates",
    "zigal_view",
    "zigal_joint",
    "zigal_weighted",
    "reward_difference",
    "reward_difference_own_noise",
    "mvc_zigal_redraw",
    "ppo",
    "mv_pg",
    "mv_zigpg",
    "mv_dpo",
]
OBJECTIVE_NAMES: tuple[str, ...] = get_args(Objective)
DEVICES = r"auto|cpu|mps|cuda(:\d+)?"
NEED_NO_JOINT_REWARD = ("zigal_view", "reward_difference", "reward_difference_own_noise", "ppo")


def require(condition: bool, sentence: str) -> None:
    """Raise ValueError with the sentence unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


@dataclass(frozen=True)
class BaseLoraConfig:
    """A frozen LoRA below the trained one."""

    path: FilePath = ""
    """Its file (.safetensors or .sft), in any layout of Load LoRA, from where the trainer is started."""
    strength: Finite = 1.0
    """Factor on its effect."""

    def __post_init__(self) -> None:
        check_record(self, "model.base_loras.")
        require(
            self.path.lower().endswith((".safetensors", ".sft")),
            f"model.base_loras: path={self.path!r} must be a LoRA file (.safetensors or .sft).",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The base model and the LoRA that is trained on it."""

    name: FilePath = "toybox"
    """A bundled model (toybox, toybox-teacher, toybox-image, toybox-image-teacher), lcm-sdxl, sdxl, a
    diffusers folder, a .safetensors checkpoint or a Hub id."""
    unet: FilePath | None = None
    """UNet of another folder, file or Hub id in place of the model's own, such as LCM-SDXL's; null: the
    model's own."""
    vae: FilePath | None = None
    """VAE of another folder, file or Hub id; null: the model's own."""
    scheduler: FilePath | None = None
    """Scheduler configuration of another folder or Hub id, likewise."""
    solver: Literal["lcm", "ddim", "ddim-trailing"] | None = None
    """How the model is sampled: "lcm" (LCM-LoRA), "ddim-trailing" (Turbo, Lightning, Hyper-SD) or "ddim";
    null: as its files say. A few-step LoRA needs one, because its file does not name it."""
    base_loras: tuple[BaseLoraConfig, ...] = ()
    """Frozen LoRAs below the trained one. With a few-step LoRA, SDXL is the student that is trained."""
    adapter: FilePath | None = None
    """MV-Adapter file or Hub id; null when the model brings its own (the toybox does)."""
    allow_download: bool = False
    """Whether a Hub id may be fetched over the network."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the frozen base weights. The LoRA is always fp32."""
    device: str = "auto"
    """"auto" takes a GPU when there is one; otherwise "cpu", "mps", "cuda", "cuda:1", ..."""
    lora_rank: Count = 16
    """Rank of every LoRA pair."""
    lora_alpha: Positive = 16.0
    """The LoRA is scaled by alpha / rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time per update."""

    def __post_init__(self) -> None:
        check_record(self, "model.")
        require(
            re.fullmatch(DEVICES, self.device) is not None,
            f"model.device={self.device!r} is not known; use auto, cpu, mps, cuda or cuda:1.",
        )


@dataclass(frozen=True)
class SamplingConfig:
    """How the trajectories of an iteration are drawn."""

    prompts: FilePath = "toybox"
    """A built-in prompt set (see training/data/prompts.py) or the path of a .txt or .jsonl file."""
    references: FilePath | None = None
    """Image to multiview: a folder of pictures, or a .jsonl file of pictures and prompts, in place of
    `prompts`; see docs/training.md. null: text to multiview."""
    held_out_share: Share = 0.0
    """Share of the prompts that is never trained on: evaluation uses them; chosen by hash."""
    prompts_per_iteration: Count = 16
    """Prompts of one iteration over all processes; each gives two trajectories."""
    batch_size: Count = 8
    """Prompts in one forward pass while sampling, per process; a matter of memory only."""
    azimuths_deg: tuple[Finite, ...] = (0.0, 45.0, 90.0, 180.0, 270.0, 315.0)
    """Camera azimuths in degrees, one per view; elevation 0. A single one trains plain text-to-image."""
    num_views: Count | None = None
    """Number of azimuths_deg to use, from the first; null: all."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 rounds latents as they are made and keeps them in half the memory."""
    negative_prompt: str | None = None
    """For models with classifier-free guidance; null is the empty prompt."""
    num_steps: Count = 4
    """Denoising steps. Not stated: the model's own."""
    guidance_scale: NotNegative = 7.0
    """Text guidance w. Not stated: the model's own."""
    view_scale: NotNegative = 1.0
    """Factor s of the camera features."""
    zigzag_steps: CountOrZero = 1
    """ZMV: how many of the first steps zigzag. Not stated: the model's own."""
    zigzag_repeats: Annotated[int, "[1, 2]"] = 1
    """ZMV: zigzags per zigzag step."""
    inverse_guidance_scale: NotNegative = 1.0
    """ZMV: guidance of the zag. Not stated: the model's own."""
    inverse_view_scale: NotNegative = 1.0
    """ZMV: view scale of the zag; 0 drops the cameras there. Not stated: the model's own."""
    ref_scale: NotNegative = 1.0
    """Factor on the reference attention, for image to multiview. Not stated: the model's own."""
    inverse_ref_scale: NotNegative = 1.0
    """ZMV: ref_scale of the zag; 0 drops the picture there."""

    @property
    def used_azimuths_deg(self) -> tuple[float, ...]:
        """Return the azimuths of the views that are drawn."""
        return self.azimuths_deg[: self.num_views]

    def __post_init__(self) -> None:
        check_record(self, "sampling.")
        num_angles = len(self.azimuths_deg)
        require(num_angles > 0, "sampling.azimuths_deg is empty; give at least one angle in degrees.")
        require(
            (self.num_views or 1) <= num_angles,
            f"sampling.num_views={self.num_views} exceeds the {num_angles} angles of sampling.azimuths_deg.",
        )
        require(
            self.zigzag_steps <= self.num_steps,
            f"sampling.zigzag_steps={self.zigzag_steps} exceeds sampling.num_steps={self.num_steps}.",
        )


@dataclass(frozen=True)
class OwnRewardConfig:
    """A Python function as a reward; its file is executed, so trust it."""

    file: FilePath = ""
    """Path of the Python file, from where the trainer is started."""
    function: str = "reward"
    """Name of the function: (images [n, 3, H, W] in [0, 1], prompts) -> scores."""
    kind: Literal["view", "joint"] = "view"
    """"view": one prompt and one score per picture; "joint": one prompt and one score per set of views."""

    def __post_init__(self) -> None:
        check_record(self, "reward.own.")
        require(self.file.endswith(".py"), f"reward.own: file={self.file!r} must be a Python file (.py).")
        require(
            self.function.isidentifier(),
            f"reward.own: function={self.function!r} is not the name of a Python function.",
        )


@dataclass(frozen=True)
class RewardConfig:
    """The reward models."""

    view: dict[str, Positive] = field(default_factory=lambda: {"toybox_clip": 1.0})
    """Scorers of single views (fidelity): names of t2mv_core.rewards.registry with weights, or one name."""
    joint: dict[str, Positive] = field(default_factory=lambda: {"toybox_hyperscore": 1.0})
    """Scorers of a set of views (consistency), likewise; null: no joint reward, so no constraint."""
    own: dict[str, OwnRewardConfig] = field(default_factory=dict)
    """Python functions as rewards, by the name under which view and joint use them."""
    normalization: Literal["iteration", "prompt"] = "iteration"
    """Trajectories over which rewards are normalised: of one "iteration" (the paper) or one "prompt"."""
    device: str = "auto"
    """Where the reward models run: "auto" is the model's device; "cpu" or "cuda:1" frees it for the UNet."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the reward models; "auto": the big ones fp16 on a GPU, else fp32."""
    folder: FilePath | None = None
    """Folder with the published rewards' weights; null: models/t2mv_rewards (docs/rewards.md)."""
    paths: dict[str, FilePath] = field(default_factory=dict)
    """Weights of single rewards that lie elsewhere: reward name -> file or folder."""
    allow_download: bool = False
    """May fetch PickScore, HPSv2 and HPSv2.1. Fetch the files of the others by hand."""

    def __post_init__(self) -> None:
        check_record(self, "reward.")
        require(
            re.fullmatch(DEVICES, self.device) is not None,
            f"reward.device={self.device!r} is not known; use auto, cpu, mps, cuda or cuda:1.",
        )
        require(len(self.view) > 0, "reward.view names no reward; give at least one, such as toybox_clip.")
        for name in self.own:
            require(
                re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) is not None,
                f"reward.own.{name} must be named by letters, digits, - and _ alone.",
            )


@dataclass(frozen=True)
class ConstraintConfig:
    """The dual variable of the joint-view constraint (docs/method.md, section 6)."""

    lambda_init: NotNegative = 0.0
    """Multiplier before the first iteration."""
    lambda_max: Positive = 5.0
    """Upper bound of the multiplier."""
    unit: Literal["spread", "raw"] = "spread"
    """Unit of the multiplier's steps: "spread" is the joint reward's standard deviation over trajectories, so
    that steps mean the same for every reward; "raw" is published, for HyperScore's range of 0 to 10."""
    violated_lr: Positive = 0.1
    """Step size of the multiplier per `unit` that the joint reward lies below the threshold."""
    satisfied_lr: NotNegative = 0.01
    """Step size per `unit` above it. The objective mvc_zigal_equal_rates uses violated_lr instead."""
    threshold_decay: Annotated[float, "[0, 1]"] = 0.99
    """Decay of the threshold's exponential mean per iteration; 1 keeps it fixed."""
    threshold_init: Finite | None = None
    """Threshold before the first iteration, in joint reward; null: the untrained policy's mean."""
    threshold_prompts: CountOrZero = 64
    """Prompts over which that mean is taken, once, by standard sampling; those of a shorter list repeat, with
    other noise. 0: the mean of the first iteration, as published."""

    def __post_init__(self) -> None:
        check_record(self, "constraint.")
        require(
            self.lambda_init <= self.lambda_max,
            f"constraint.lambda_init={self.lambda_init} exceeds constraint.lambda_max={self.lambda_max}.",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The policy update."""

    lr: Positive = 1e-4
    """Learning rate of AdamW."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW's decay rates."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay: NotNegative = 1e-4
    """AdamW's weight decay."""
    max_grad_norm: Positive = 5.0
    """The gradient is scaled down to at most this norm."""
    clip_range: Positive = 1e-4
    """Bound on the log ratio of a step, nats per latent element."""
    dpo_beta: Positive = 0.1
    """Objective mv_dpo: β, strength of the tie to the model without the LoRA, per nat of a set's log ratio.
    DPO's value; Diffusion-DPO's 5000 for means over a latent is 0.08 at 1024 px."""
    prompts_per_update: Count | None = None
    """Prompts of one optimizer step over all processes; null: all of the iteration."""
    micro_batch: Count = 1
    """Prompts (two trajectories each) in one forward and backward pass, per process: it affects
    memory only, except in bfloat16: there, in a batch of another size than sampling.batch_size, the first log
    ratios are not quite 0.
    Gradients accumulate over prompts_per_update / (processes x micro_batch) of them."""
    steps_per_update: Count | None = None
    """Denoising steps of each prompt in one optimizer step, in random order; null: all."""
    trained_steps: Count | None = None
    """Denoising steps of a prompt that are learned from, drawn anew in each pass; null: all."""
    splits_pairs: bool = False
    """One trajectory of a prompt at a time: half the activations; one forward pass more, except in the first
    update of an iteration."""
    kl_weight: NotNegative = 0.0
    """Factor of the KL to the model without the LoRA, nats per latent element; 0 does not compute it."""
    ema_decay: Annotated[float, "(0, 1)"] | None = None
    """Decay of the LoRA's moving average per optimizer step; with it LoRA files hold the average."""
    inner_epochs: Count = 1
    """Passes over the trajectories of an iteration."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """"bf16" runs the networks under autocast; log-probabilities and the LoRA stay fp32."""

    def __post_init__(self) -> None:
        check_record(self, "optim.")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out evaluation while training, and when it ends the run."""

    every: CountOrZero = 0
    """Iterations between two evaluations; 0 never evaluates."""
    prompts: FilePath | None = None
    """Prompt set or file; null: the held-out part of sampling.prompts."""
    num_prompts: Count = 16
    """Number of these prompts, evenly spaced in the list."""
    view: tuple[str, ...] = ()
    """Scorers of single views that measure beside reward.view and that nothing learns from."""
    joint: tuple[str, ...] = ()
    """Scorers of sets that measure beside reward.joint and that nothing learns from."""
    stop_measure: str | None = None
    """Measure whose best LoRA is kept as lora/best.safetensors, such as view_reward or judge_colour."""
    patience: CountOrZero = 0
    """Evaluations in a row without a new best that end the run; 0 never ends it."""

    def __post_init__(self) -> None:
        check_record(self, "evaluation.")
        require(
            self.stop_measure is None or self.every > 0,
            f"evaluation.stop_measure={self.stop_measure} is never measured; set evaluation.every.",
        )
        require(
            not self.patience or self.stop_measure is not None,
            f"evaluation.patience={self.patience} needs evaluation.every and evaluation.stop_measure.",
        )


@dataclass(frozen=True)
class RunConfig:
    """Length, place and record of the run."""

    out_dir: FilePath = "runs/mvczigal"
    """Run folder."""
    seed: int = 0
    """Every random draw derives from it."""
    epochs: Count = 5
    """Length of the run; every epoch leaves a LoRA file."""
    iterations_per_epoch: Count = 10
    """Iterations (rollout and update) of an epoch."""
    save_every: Count = 1
    """Iterations between two saves of the full state."""
    sheet_prompts: CountOrZero = 4
    """Rows of the sample sheet written at every epoch; 0 writes none."""
    keep_loras: Count | None = None
    """How many of the newest lora/epoch_*.safetensors to keep; null: all. lora/best stays."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl: accelerate's trackers, such as tensorboard or wandb."""

    def __post_init__(self) -> None:
        check_record(self, "run.")
        require(bool(self.out_dir.strip()), "run.out_dir is empty; name a folder.")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    objective: Objective = "mvc_zigal"
    """What is optimised: a name of training.algorithm.objectives.OBJECTIVES."""
    preset: str = "custom"
    """Name of the preset this configuration began with; recorded in the LoRA files."""
    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check_record(self, "")
        optim, sampling, evaluation = self.optim, self.sampling, self.evaluation
        per_update, per_iteration = optim.prompts_per_update or 1, sampling.prompts_per_iteration
        require(
            per_update <= per_iteration,
            f"optim.prompts_per_update={per_update} exceeds sampling.prompts_per_iteration={per_iteration}; "
            "an update cannot use more prompts than were sampled.",
        )
        for name in ("steps_per_update", "trained_steps"):
            steps = getattr(optim, name) or 1
            require(
                steps <= sampling.num_steps,
                f"optim.{name}={steps} exceeds sampling.num_steps={sampling.num_steps}.",
            )
        require(
            bool(self.reward.joint) or self.objective in NEED_NO_JOINT_REWARD,
            f"objective={self.objective} needs a joint reward; set reward.joint, or use one of "
            f"{', '.join(NEED_NO_JOINT_REWARD)}.",
        )
        source = sampling.references or sampling.prompts
        has_held_out = sampling.held_out_share > 0 or source.lower().endswith(".jsonl")
        require(
            sampling.references is None or evaluation.prompts is None,
            "evaluation.prompts cannot be measured on with sampling.references; hold pictures out with "
            'sampling.held_out_share, or with "split" in a .jsonl file.',
        )
        require(
            not evaluation.every or evaluation.prompts is not None or has_held_out,
            f"evaluation.every={evaluation.every} needs prompts: set evaluation.prompts (such as dev), or "
            "sampling.held_out_share.",
        )
