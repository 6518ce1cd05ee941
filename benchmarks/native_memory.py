"""Memory of the native path (ComfyUI's SDXL, patched) against the diffusers path, with the same weights.

COMFYUI_DIR=~/comfy/ComfyUI ~/comfy/.venv/bin/python -m benchmarks.native_memory

Runs in ComfyUI's Python. Full-size SDXL files with random bfloat16 weights are written to a temporary folder
(8 GB); each way loads them, encodes a prompt, samples six views under two-pass guidance and decodes them, in
a process of its own, whose anonymous memory (weights, activations, libraries; no mapped files) is watched.
Both compute in bfloat16, as on a card. The UNet's evaluation at 768 px is counted on the meta device besides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .live_memory import flash_attention_on_meta, measure_live
from .sdxl_files import FULL, create_modules, original_checkpoint, original_unet
from .written_results import markdown_table, write_results

ROOT = Path(__file__).parents[1]
NUM_VIEWS, COUNTED_PX, GUIDANCE = 6, 768, 5.0
PROMPT, NEGATIVE = "a red mug", "blurry"
WAYS = ("diffusers", "native", "native and a plain branch")
_SAFETENSORS_TYPES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}


def write_files(folder: Path) -> None:
    """A single-file checkpoint and an MV-Adapter of SDXL's size, written without ever being in memory."""
    from accelerate import init_empty_weights

    from t2mv_core.adapter import adapter_state_dict, create_camera_encoder
    from t2mv_core.attention import install_multiview_attention

    modules = create_modules(FULL, is_empty=True)
    states = {part: dict(module.state_dict()) for part, module in modules.items()}
    _write_random(original_checkpoint(states, FULL), folder / "checkpoint.safetensors")
    with init_empty_weights(include_buffers=False):
        install_multiview_attention(modules["unet"])
        encoder = create_camera_encoder(modules["unet"], 8)
    _write_random(adapter_state_dict(modules["unet"], encoder), folder / "mvadapter.safetensors")


def _write_random(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file; tensors without content become random bfloat16."""
    header, position = {}, 0
    for name, tensor in tensors.items():
        dtype = torch.bfloat16 if tensor.is_meta else tensor.dtype
        end = position + tensor.numel() * dtype.itemsize
        shape = list(tensor.shape)
        header[name] = {"dtype": _SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    block = 0.02 * torch.randn(2**22 + 1, generator=torch.Generator().manual_seed(0))
    content = block.bfloat16().view(torch.uint8).numpy().tobytes()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            if not tensor.is_meta:
                file.write(tensor.numpy().tobytes())
                continue
            size = 2 * tensor.numel()
            for start in range(0, size, len(content)):
                file.write(content[: size - start])


class Anonymous:
    """The most anonymous memory this process held, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.peak_bytes, self._ends = 0, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ends.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, self.now())

    @staticmethod
    def now() -> int:
        """Of this moment."""
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    def end_stage(self) -> int:
        """The peak since the last call."""
        found, self.peak_bytes = max(self.peak_bytes, self.now()), 0
        return found


def start_comfyui(folder: Path) -> None:
    """ComfyUI's modules, and this pack under the name `pack`, as in a server on a card with bfloat16."""
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = args.bf16_unet = args.use_pytorch_cross_attention = True
    import comfy.model_management

    comfy.model_management.unet_manual_cast = lambda *_, **__: None
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


def evenly_spaced_rig(kind: Any) -> Any:
    """Six cameras, of the class `kind`."""
    return kind(tuple(360.0 * view / NUM_VIEWS for view in range(NUM_VIEWS)), (0.0,) * NUM_VIEWS)


def run_diffusers(folder: Path, image_px: int, steps: int, tell: Callable[[str], None]) -> Tensor:
    """The diffusers path; pictures [V, 3, H, W]."""
    from t2mv_core.bundle import ModelSources, load_bundle
    from t2mv_core.cameras import CameraRig
    from t2mv_core.denoiser import encode_cameras
    from t2mv_core.images import decode_latents
    from t2mv_core.samplers.settings import SamplingSettings
    from t2mv_core.samplers.standard import sample_standard
    from t2mv_core.text import encode_text

    tell("libraries")
    sources = ModelSources(
        str(folder / "checkpoint.safetensors"), adapter=str(folder / "mvadapter.safetensors")
    )
    bundle = load_bundle(sources, dtype=torch.bfloat16)
    bundle.unet.register_to_config(sample_size=image_px // 8)
    tell("loading")
    condition = encode_text(bundle, [PROMPT], NEGATIVE)
    cameras = encode_cameras(bundle, evenly_spaced_rig(CameraRig), image_px, image_px)
    tell("text")
    record = sample_standard(
        bundle, condition, cameras, lambda size: torch.randn(size), SamplingSettings(steps, GUIDANCE)
    )
    tell("sampling")
    return decode_latents(bundle.vae, record.denoised, chunk_size=1)[0]


def run_native(
    folder: Path, image_px: int, steps: int, has_plain_branch: bool, tell: Callable[[str], None]
) -> Tensor:
    """ComfyUI's own model with the adapter; the plain branch samples it without."""
    import comfy.sample
    import comfy.sd
    from pack.nodes.native_loading import load_native_adapter
    from pack.nodes.native_patch import AdapterSettings, apply_adapter
    from pack.t2mv_core.cameras import CameraRig

    tell("libraries")
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(folder / "checkpoint.safetensors"))
    adapter = load_native_adapter(model, folder / "mvadapter.safetensors")
    views = apply_adapter(model, adapter, evenly_spaced_rig(CameraRig), AdapterSettings())
    tell("loading")
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, NEGATIVE)]
    tell("text")
    noise = torch.randn(NUM_VIEWS, 4, image_px // 8, image_px // 8)
    for sampled in (model, views) if has_plain_branch else (views,):
        latents = comfy.sample.sample(
            sampled, noise, steps, GUIDANCE, "euler", "simple", *texts, torch.zeros_like(noise),
            disable_pbar=True,
        )  # fmt: skip
    tell("sampling")
    return torch.cat([vae.decode(latents[view : view + 1]) for view in range(NUM_VIEWS)])


def measure(way: str, folder: Path, comfyui: Path, image_px: int, steps: int) -> dict[str, int]:
    """Stage -> peak of anonymous bytes. To be called once per process."""
    start_comfyui(comfyui)  # for both: the diffusers path, too, runs in ComfyUI's process
    import comfy.sample  # noqa: F401
    import comfy.sd  # noqa: F401
    import diffusers  # noqa: F401

    watch, found = Anonymous(), {}

    def tell(stage: str) -> None:
        found[stage] = watch.end_stage()

    with torch.inference_mode():
        if way == "diffusers":
            pictures = run_diffusers(folder, image_px, steps, tell)
        else:
            pictures = run_native(folder, image_px, steps, way != "native", tell)
    tell("decoding")
    found["pictures"] = len(pictures)
    return found


def count(comfyui: Path) -> dict[str, dict[str, int]]:
    """Bytes of the UNet's evaluation at 768 px, two passes at once, on the meta device."""
    start_comfyui(comfyui)
    latent = (NUM_VIEWS, 4, COUNTED_PX // 8, COUNTED_PX // 8)
    with torch.no_grad(), flash_attention_on_meta():
        return {"diffusers": _count_diffusers(latent), "native": _count_native(latent)}


def _count_diffusers(latent: tuple[int, ...]) -> dict[str, int]:
    from t2mv_core.denoiser import call_unet

    from .full_size import camera_features, create_textless_bundle, draw_condition

    bundle = create_textless_bundle(False, "meta", torch.bfloat16)
    condition = draw_condition(1, COUNTED_PX, "meta", torch.bfloat16)
    cameras = camera_features(bundle, NUM_VIEWS, COUNTED_PX)
    both = condition.with_negative()
    x, timesteps = torch.empty(2, *latent, device="meta"), torch.empty(2, device="meta")
    parts = bundle.unet, bundle.camera_encoder
    weights = sum(w.nbytes for part in parts for w in part.parameters())
    peak, _ = measure_live(lambda: call_unet(bundle.unet, x, timesteps, both, cameras), *parts)
    return {"weights": weights, "peak": peak}


def _count_native(latent: tuple[int, ...]) -> dict[str, int]:
    import comfy.model_detection
    from comfy.model_patcher import ModelPatcher
    from pack.nodes.native_blocks import find_attentions, level_widths
    from pack.nodes.native_modules import NativeAdapter
    from pack.nodes.native_patch import AdapterSettings, apply_adapter
    from pack.t2mv_core.cameras import CameraRig

    weights = original_unet(create_modules(FULL, is_empty=True)["unet"].to(torch.bfloat16).state_dict(), FULL)
    config = comfy.model_detection.model_config_from_unet(weights, "")
    config.set_inference_dtype(torch.bfloat16, None)
    model = ModelPatcher(
        config.get_model(weights, "", device="meta"), torch.device("meta"), torch.device("meta")
    )
    unet = model.model.diffusion_model
    module = NativeAdapter(find_attentions(unet), level_widths(unet)).to(torch.bfloat16)
    adapter = ModelPatcher(module, torch.device("meta"), torch.device("meta"))
    views = apply_adapter(model, adapter, evenly_spaced_rig(CameraRig), AdapterSettings())

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    x, text, pooled = (
        draw(2 * NUM_VIEWS, *latent[1:]),
        draw(2 * NUM_VIEWS, 77, 2048),
        draw(2 * NUM_VIEWS, 2816),
    )
    options = {**views.model_options["transformer_options"], "cond_or_uncond": [0, 1]}
    timesteps = torch.empty(2 * NUM_VIEWS, device="meta")
    peak, _ = measure_live(
        lambda: unet(x, timesteps, context=text, y=pooled, transformer_options=options), unet, module
    )
    resident = sum(w.nbytes for part in (unet, module) for w in part.parameters())
    return {"weights": resident, "peak": peak}


def main() -> int:
    """Write files, run each way in a fresh process, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native_memory", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/size/native_memory"))
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    # From the environment, as the tests take it: a page of results names no folder of one machine.
    comfyui = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI").expanduser()
    if given.way:
        found = (
            count(comfyui)
            if given.way == "count"
            else measure(given.way, given.folder, comfyui, given.image_px, given.steps)
        )
        print(json.dumps(found))  # noqa: T201
        return 0
    counted = _in_fresh_process(["--way", "count"])
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        measured = {way: _in_fresh_process(["--way", way, "--folder", name]) for way in WAYS}
    text = _to_text(measured, counted, given.image_px, given.steps)
    figures = {"measured": measured, "counted": counted}
    write_results(given.out, "benchmarks.native_memory", "Memory of the native path", text, figures)
    return 0


def _in_fresh_process(more: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.native_memory", *sys.argv[1:], *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{more}: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _to_text(measured: Any, counted: Any, image_px: int, steps: int) -> str:
    stages = ("libraries", "loading", "text", "sampling", "decoding")
    rows = [[way, *(f"{found[stage] / 1e9:.2f}" for stage in stages)] for way, found in measured.items()]
    table = markdown_table(["GB", *stages], rows)
    rows = [
        [way, *(f"{found[part] / 1e9:.2f}" for part in ("weights", "peak")),
         f"{(found['peak'] - found['weights']) / 1e9:.2f}"]
        for way, found in counted.items()
    ]  # fmt: skip
    second = markdown_table(["GB", "weights of UNet and adapter", "most at once", "above the weights"], rows)
    return (
        f"SDXL's size, random bfloat16 weights from one file, {NUM_VIEWS} views of {image_px} px, steps: "
        f"{steps}, two-pass\nguidance. Most anonymous memory of the process (GB, 10⁹) in each stage, "
        f"libraries included:\n\n{table}\n\nOne evaluation of {NUM_VIEWS} views of {COUNTED_PX} px, both "
        f"passes at once, counted on the meta device (no allocator, no\nworkspaces):\n\n{second}"
    )


if __name__ == "__main__":
    sys.exit(main())
