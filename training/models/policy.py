"""From a configuration to the parts of a run: policy with LoRA, optimizer, dual variable, updates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from t2mv_core.bundle import LoraHandle, ModelBundle
from t2mv_core.cameras import CameraRig
from t2mv_core.denoiser import encode_cameras
from t2mv_core.formats.sources import ModelSources
from t2mv_core.formats.strict import check_fit, shapes_of
from t2mv_core.lora.adapters import add_lora, remove_lora, trainable_parameters
from t2mv_core.lora.files import lora_state_dict
from t2mv_core.samplers import SamplingSettings
from t2mv_core.trajectory import derive_seed

from ..algorithm.constraint import DualVariable
from ..algorithm.learner import Learner, LearnerSettings
from ..algorithm.objectives import OBJECTIVES
from ..algorithm.rollout import Policy
from ..algorithm.updates import Update, plan_updates
from ..config import ModelConfig, OptimConfig, SamplingConfig, TrainConfig

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

logger = logging.getLogger(__name__)

LORA_NAME = "trained"
"""The name of the LoRA in training on its UNet."""
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Words of `model.dtype`."""


def check_device(setting: str, device: torch.device | str) -> None:
    """Raise where there is no such CUDA device, before a model is read, not when it is moved.

    Args:
        setting: the name of the setting, for the message.
        device: its value; "auto" passes.

    Raises:
        ValueError: says how many there are.
    """
    kind, _, index = str(device).partition(":")
    if kind == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(
            f"{setting}={device}: PyTorch sees {count} CUDA devices; use auto, cpu or another number, or "
            "install PyTorch for your card."
        )


def model_sources(config: ModelConfig) -> ModelSources:
    """Where the parts of a run's model come from."""
    return ModelSources(
        config.name,
        config.adapter,
        unet=config.unet,
        scheduler=config.scheduler,
        allow_download=config.allow_download,
        vae=config.vae,
        solver=config.solver,
    )


def sampling_settings(config: SamplingConfig) -> SamplingSettings:
    """The samplers' settings of a run."""
    return SamplingSettings(
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        view_scale=config.view_scale,
        zigzag_steps=config.zigzag_steps,
        zigzag_repeats=config.zigzag_repeats,
        inverse_guidance_scale=config.inverse_guidance_scale,
        inverse_view_scale=config.inverse_view_scale,
        ref_scale=config.ref_scale,
        inverse_ref_scale=config.inverse_ref_scale,
        state_dtype=TORCH_DTYPES[config.state_dtype],
    )


def camera_rig(azimuths_deg: Sequence[float]) -> CameraRig:
    """A ring of cameras at elevation 0."""
    return CameraRig(tuple(azimuths_deg), (0.0,) * len(azimuths_deg))


def make_policy(config: TrainConfig, bundle: ModelBundle) -> Policy:
    """Add a LoRA whose initial values derive from the seed, let it act, and encode the cameras once.

    The model's own weights are frozen already (`load_bundle` does that).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.run.seed, "lora"))
        num_modules = add_lora(bundle.unet, config.model.lora_rank, config.model.lora_alpha, LORA_NAME)
    for parameter in trainable_parameters(bundle.unet, LORA_NAME):
        # docs/method.md, section 7: the LoRA is fp32 over a half-precision base
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    policy_bundle = replace(bundle, loras=(*bundle.loras, LoraHandle(LORA_NAME, num_matched=num_modules)))
    if config.model.gradient_checkpointing:
        bundle.unet.enable_gradient_checkpointing()
        bundle.unet.train()  # older diffusers checkpoint in this mode only; there is no dropout
    cameras = encode_cameras(bundle, camera_rig(config.sampling.used_azimuths_deg))
    return Policy(policy_bundle, cameras, config.optim.mixed_precision == "bf16")


def undo_policy(bundle: ModelBundle) -> None:
    """Take the LoRA and the settings of `make_policy` off a model that others use, too."""
    remove_lora(bundle.unet, LORA_NAME)
    bundle.unet.disable_gradient_checkpointing()
    bundle.unet.eval()


def reference_policy(policy: Policy) -> Policy:
    """The policy as it was before training: base LoRAs and cameras as they are, no LoRA in training."""
    others = tuple(handle for handle in policy.bundle.loras if handle.name != LORA_NAME)
    return replace(policy, bundle=replace(policy.bundle, loras=others))


def restore_lora(policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved values into the policy's LoRA.

    Raises:
        ValueError: they are of another model, or of a LoRA of another rank.
    """
    weights = lora_state_dict(policy.bundle.unet, LORA_NAME)
    cure = "Resume with the model.name and model.lora_rank the run was started with."
    check_fit(shapes_of(weights), shapes_of(tensors), "The saved LoRA", "this model", cure)
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(tensors[name])


def make_optimizer(config: OptimConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the LoRA."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def make_average(decay: float, parameters: Sequence[nn.Parameter]) -> EMAModel:
    """Return the moving average s of the parameters p; call its `step` after each optimizer step.

        s ← d·s + (1 - d)·p,   d = 0 in step 1, min(decay, n / (9 + n)) in step n

    d grows from 0, so that the average soon forgets where training began.
    """
    from diffusers.training_utils import EMAModel  # takes a second, which a run without it need not wait

    return EMAModel(parameters, decay, foreach=True)


@contextmanager
def averaged(average: EMAModel | None, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put the average into the parameters, and the trained values back at the end, bit for bit."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)


def available_trackers(names: Sequence[str]) -> list[str]:
    """The trackers that can be used; a missing tensorboard is done without, any other is asked for by name.

    Raises:
        ValueError: accelerate does not know the tracker, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(
                f"run.trackers names {name!r}, which accelerate does not know; it knows {known}."
            )
        if name not in installed and name != "tensorboard":
            raise ValueError(f"run.trackers names {name!r}, which is not installed; pip install {name}.")
    if "tensorboard" in names and "tensorboard" not in installed:
        logger.info(
            "TensorBoard is not installed: metrics are in metrics.jsonl only (pip install tensorboard)."
        )
    return [name for name in names if name in installed]


def make_dual(config: TrainConfig) -> DualVariable | None:
    """Return the dual variable before the first iteration; None where nothing constrains the view reward.

    That is so without a joint reward, and for objectives that weigh it by a fixed number.
    """
    objective, constraint = OBJECTIVES[config.objective], config.constraint
    if not (objective.uses_dual and config.reward.joint):
        return None
    return DualVariable(
        violated_lr=constraint.violated_lr,
        satisfied_lr=constraint.violated_lr if objective.has_equal_rates else constraint.satisfied_lr,
        maximum=constraint.lambda_max,
        threshold_decay=1.0 if objective.has_fixed_threshold else constraint.threshold_decay,
        initial_lambda=constraint.lambda_init,
        initial_threshold=constraint.threshold_init,
        unit=constraint.unit,
    )


def make_learner(
    config: TrainConfig,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    average: EMAModel | None,
) -> Learner:
    """Return the learner of a policy's LoRA, which the average follows."""
    optim, objective = config.optim, OBJECTIVES[config.objective]
    settings = LearnerSettings(
        objective.loss,
        sampling_settings(config.sampling),
        optim.clip_range,
        optim.max_grad_norm,
        optim.kl_weight,
        optim.splits_pairs,
        optim.dpo_beta if objective.uses_reference else None,
    )
    parameters = trainable_parameters(policy.bundle.unet, LORA_NAME)
    on_step = (lambda: None) if average is None else (lambda: average.step(parameters))
    reference = reference_policy(policy)
    return Learner(policy, reference, parameters, optimizer, accelerator, settings, on_step)


def iteration_updates(config: TrainConfig, slots: Sequence[int], iteration: int) -> list[Update]:
    """The optimizer steps of an iteration: `inner_epochs` passes, each with its own random order of steps.

    Args:
        config: the run's configuration.
        slots: places in the iteration whose prompts this process sampled.
        iteration: its number; with the seed it fixes the orders.
    """
    optim, sampling = config.optim, config.sampling
    num_steps = optim.trained_steps or sampling.num_steps
    return [
        update
        for epoch in range(optim.inner_epochs)
        for update in plan_updates(
            sampling.prompts_per_iteration,
            sampling.num_steps,
            num_steps,
            optim.prompts_per_update or sampling.prompts_per_iteration,
            min(optim.steps_per_update or num_steps, num_steps),
            optim.micro_batch,
            slots,
            derive_seed(config.run.seed, "update", iteration, epoch),
        )
    ]
