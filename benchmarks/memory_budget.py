"""How much GPU memory sampling and training of full-size SDXL take: estimated here, measured on a GPU.

python -m benchmarks.memory_budget                                                   # estimated, without GPU
python -m benchmarks.memory_budget --out runs/budget --device cuda --plans "staged"  # measured, on yours

The estimate runs the real model on the meta device, where tensors have sizes but no content, and counts what
lives at once; kernels' own workspaces, CUDA's context and fragmentation are an allowance of 1 GiB. On a GPU
the same plans run with random weights and `torch.cuda.max_memory_allocated` is read.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from t2mv_core.bundle import LoraHandle, ModelBundle
from t2mv_core.denoiser import predict_noise
from t2mv_core.loading import with_float8_storage
from t2mv_core.lora.adapters import add_lora, trainable_parameters
from t2mv_core.policy import denoise_step, log_prob
from t2mv_core.text import encode_tokens
from training.config import home_path
from training.evaluation.report import markdown_rows

from .full_size import NUM_TOKENS, camera_features, create_bundle, draw_condition
from .measuring import flash_attention_on_meta, measure_live, report

IMAGE_PX, LATENT_PX, NUM_VIEWS = 768, 96, 6
CARDS_GB = (8, 12, 16, 24, 48)
ALLOWANCE_GIB = 1.0
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Plan:
    """One way of using the model.

    Attributes:
        is_lcm: one pass with a guidance embedding, else two-pass guidance.
        is_staged: each part is on the device only while it works.
        decode_views: views decoded at once.
        has_sequential_guidance: of the bundle.
        float8: whether the UNet's weights are stored in 8 bits.
        trained_sets: sets of six views per micro-step of training; 0 is sampling.
        checkpoints: gradient checkpointing.
    """

    is_lcm: bool = True
    is_staged: bool = False
    decode_views: int = 1
    has_sequential_guidance: bool = False
    float8: bool = False
    trained_sets: int = 0
    checkpoints: bool = True


PLANS = {
    "LCM-SDXL, all on the device, six views decoded at once": Plan(decode_views=6),
    "LCM-SDXL, all on the device": Plan(),
    "LCM-SDXL, staged": Plan(is_staged=True),
    "LCM-SDXL, staged, 8-bit storage": Plan(is_staged=True, float8=True),
    "SDXL with guidance, all on the device, six views decoded at once": Plan(is_lcm=False, decode_views=6),
    "SDXL with guidance, all on the device": Plan(is_lcm=False),
    "SDXL with guidance, staged": Plan(is_lcm=False, is_staged=True),
    "SDXL with guidance, staged, two passes": Plan(
        is_lcm=False, is_staged=True, has_sequential_guidance=True
    ),
    "training, pair of sets per micro-step, no checkpointing": Plan(trained_sets=2, checkpoints=False),
    "training, one set (splits_pairs), no checkpointing": Plan(trained_sets=1, checkpoints=False),
    "training, pair of sets per micro-step, checkpointing": Plan(trained_sets=2),
    "training, one set (splits_pairs), checkpointing": Plan(trained_sets=1),
}
Stage = tuple[str, list[nn.Module], Callable[[], Any]]


@contextmanager
def placed(device: str, *modules: nn.Module) -> Iterator[None]:
    """Keep modules on a device for the length of a block; they return where they were afterwards."""
    homes = [next(module.parameters()).device for module in modules]
    for module in modules:
        nn.Module.to(module, device)
    yield
    for module, home in zip(modules, homes, strict=True):
        nn.Module.to(module, home)


def sampling_stages(bundle: ModelBundle, plan: Plan, device: str) -> Iterator[Stage]:
    """Yield name, parts and work of each stage of sampling; one UNet evaluation stands for all."""
    encoders = [bundle.text_encoder, bundle.text_encoder_2]
    ids = torch.ones(2, NUM_TOKENS, dtype=torch.long, device=device)
    yield "text", encoders, lambda: [encode_tokens(encoder, ids) for encoder in encoders]
    yield "cameras", [bundle.camera_encoder], lambda: camera_features(bundle, NUM_VIEWS, IMAGE_PX)
    condition = draw_condition(1, IMAGE_PX, device, DTYPE)
    with placed(device, bundle.camera_encoder):
        cameras = camera_features(bundle, NUM_VIEWS, IMAGE_PX)
    x = torch.randn(1, NUM_VIEWS, 4, LATENT_PX, LATENT_PX, device=device)
    yield "unet", [bundle.unet], lambda: predict_noise(bundle, x, 500, condition, cameras, 7.0)

    def decode() -> list[Tensor]:
        return [
            bundle.vae.decode(part, return_dict=False)[0] for part in x[0].to(DTYPE).split(plan.decode_views)
        ]

    yield "vae", [bundle.vae], decode


def training_stage(bundle: ModelBundle, plan: Plan, device: str) -> Stage:
    """Return one micro-step of the LoRA's training with its optimizer step."""
    parameters = trainable_parameters(bundle.unet)
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    condition = draw_condition(plan.trained_sets, IMAGE_PX, device, DTYPE)
    with placed(device, bundle.camera_encoder), torch.no_grad():
        cameras = camera_features(bundle, NUM_VIEWS, IMAGE_PX)
    x = torch.randn(plan.trained_sets, NUM_VIEWS, 4, LATENT_PX, LATENT_PX, device=device)

    def work() -> None:
        with torch.enable_grad(), torch.autocast("cuda", DTYPE, enabled=device == "cuda"):
            noise = predict_noise(bundle, x, 500, condition, cameras, 7.0)
            log_prob(denoise_step(bundle.schedule, noise, x, 500, 250), x).mean().backward()
        optimizer.step()

    return "micro-step", training_modules(bundle), work


def training_modules(bundle: ModelBundle) -> list[nn.Module]:
    """Return what stays on the card in training; text encoders are there only while they encode."""
    return [bundle.unet, bundle.vae, bundle.camera_encoder]


def prepare(plan: Plan, device: str) -> ModelBundle:
    """Return the model of a plan; on the CPU when it is to be measured on a GPU."""
    bundle = create_bundle(plan.is_lcm, device, DTYPE)
    bundle = replace(bundle, has_sequential_guidance=plan.has_sequential_guidance)
    if plan.trained_sets:
        add_lora(bundle.unet, 16, 16.0)
        for parameter in trainable_parameters(bundle.unet):
            parameter.data = parameter.data.float()  # as the trainer does; peft made them as the base is
        bundle = replace(bundle, loras=(LoraHandle("default"),))
        if plan.checkpoints:
            bundle.unet.enable_gradient_checkpointing()
        bundle.unet.train()
    return with_float8_storage(bundle) if plan.float8 else bundle


def estimate(plan: Plan) -> dict[str, float]:
    """Return stage -> GiB, by counting on the meta device."""
    bundle, found = prepare(plan, "meta"), {}
    # The meta device has no autocast: say yes for it, so that LoRAs compute in the base's precision.
    as_under_autocast = mock.patch("t2mv_core.lora.adapters.has_autocast", return_value=True)
    with flash_attention_on_meta(), as_under_autocast, torch.set_grad_enabled(bool(plan.trained_sets)):
        stages = [training_stage(bundle, plan, "meta")] if plan.trained_sets else None
        for name, parts, work in stages or sampling_stages(bundle, plan, "meta"):
            everything = not plan.is_staged and not plan.trained_sets
            resident = list(bundle.modules().values()) if everything else parts
            found[name] = measure_live(work, *resident)[0] / 2**30
    return found


@dataclass(frozen=True)
class Meter:
    """How the peak of a device's memory is forgotten, and read in bytes."""

    forget: Callable[[], None] = lambda: torch.cuda.reset_peak_memory_stats()
    read: Callable[[], int] = lambda: torch.cuda.max_memory_allocated()


def measure(plan: Plan, device: str = "cuda", meter: Meter = Meter()) -> dict[str, float]:
    """Return stage -> GiB that PyTorch had allocated at once on the device."""
    bundle, found = prepare(plan, "cpu"), {}
    with ExitStack() as stack:
        if not plan.is_staged:
            modules = training_modules(bundle) if plan.trained_sets else bundle.modules().values()
            for module in modules:
                nn.Module.to(module, device)
        stack.enter_context(torch.set_grad_enabled(bool(plan.trained_sets)))
        stages = [training_stage(bundle, plan, device)] if plan.trained_sets else None
        for name, parts, work in stages or sampling_stages(bundle, plan, device):
            gc.collect()
            meter.forget()
            with placed(device, *(parts if plan.is_staged else ())):
                work()
            found[name] = meter.read() / 2**30
    return found


def table_row(name: str, stages: dict[str, float]) -> list[str]:
    """Return a row of the table: the most of all stages, which stage that is, and the smallest card."""
    worst = max(stages, key=stages.__getitem__)
    need = stages[worst] + ALLOWANCE_GIB
    card = next((f"{card} GB" for card in CARDS_GB if need <= card), f"more than {CARDS_GB[-1]} GB")
    return [name, f"{stages[worst]:.1f}", worst, card]


def main() -> int:
    """Estimate or measure, print, and write report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_budget", description=__doc__)
    parser.add_argument("--out", type=home_path, default=Path("docs/results/size/memory_budget"))
    parser.add_argument("--device", choices=("meta", "cuda"), default="meta")
    parser.add_argument("--plans", default="", help="only plans whose name contains this")
    arguments = parser.parse_args()
    find = measure if arguments.device == "cuda" else estimate
    chosen = {name: plan for name, plan in PLANS.items() if arguments.plans in name}
    found = {name: find(plan) for name, plan in chosen.items()}
    how = "**Measured** on this GPU" if arguments.device == "cuda" else "**Estimated**, not measured on a GPU"
    text = (
        f"{how}: one set of {NUM_VIEWS} views of {IMAGE_PX} px, {DTYPE} weights, a float32 LoRA of rank 16 "
        "with AdamW. GiB are what lives at once in the stage that needs most; the card has "
        f"{ALLOWANCE_GIB:.0f} GiB more. Training counts UNet, VAE and camera encoder. The estimate lets "
        "LoRAs compute in the base's precision, as under autocast."
    )
    header = ["", "GiB", "in stage", "smallest card"]
    table = markdown_rows(header, [table_row(name, stages) for name, stages in found.items()])
    report(arguments.out / "report.json", "benchmarks.memory_budget", f"{text}\n\n{table}", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
