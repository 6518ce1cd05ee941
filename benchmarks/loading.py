"""How long a real-size model takes to load, and how much memory, from every layout of its files.

python -m benchmarks.loading

Full-size SDXL files with random bfloat16 weights are written to a temporary folder (about 31 GB on disk, 10
GB of memory), each way of loading runs in a fresh process, and the folder is deleted. The peak is the
process's resident set, mapped files included, above what it was before loading; it is compared with the bytes
of the tensors that are used, as they lie in the files and as they are wanted. diffusers' own loaders leave
weights of the wanted type in the mapped file, to be read at their first use, hence the growth of nothing in
the first row; seconds depend on the disk and on what else runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import report, status_bytes
from benchmarks.sdxl_files import (
    FULL,
    TINY,
    Size,
    State,
    create_modules,
    original_checkpoint,
    original_unet,
    original_vae,
    save_folder,
)
from training.config import home_path

ROOT = Path(__file__).parents[1]
GUIDANCE_WIDTH = 256
REFERENCE = "reference: "
CASES: dict[str, dict[str, str]] = {  # name -> arguments of ModelSources, files of the folder; dtype apart
    "reference: diffusers' from_pretrained, the folder's parts, no MV-Adapter": {"model": "folder"},
    "diffusers folder, bf16": {"model": "folder"},
    "single file, bf16": {"model": "checkpoint.safetensors"},
    "single file, bf16 wanted as fp16": {"model": "checkpoint.safetensors", "dtype": "float16"},
    "single file, fp8 wanted as bf16": {"model": "checkpoint_fp8.safetensors"},
    "single file + LCM UNet (diffusers layout) + VAE file": {
        "model": "checkpoint.safetensors",
        "unet": "lcm.safetensors",
        "vae": "vae.safetensors",
    },
    "folder + LCM UNet (original layout, prefixed) + VAE file": {
        "model": "folder",
        "unet": "lcm_original.safetensors",
        "vae": "vae.safetensors",
    },
}


def random_state(module: torch.nn.Module, part: str = "") -> State:
    """Return random bfloat16 values for an empty module's weights (`part` in their names), quickly made."""
    block = 0.02 * torch.randn(2**22 + 1, generator=torch.Generator().manual_seed(0)).bfloat16()
    state = {}
    for name, tensor in module.state_dict().items():
        if part not in name:
            continue
        repeats = tensor.numel() // len(block) + 1
        state[name] = block.repeat(repeats)[: tensor.numel()].clone().view(tensor.shape)
    return state


def write_files(folder: Path, size: Size = FULL) -> None:
    """Write every layout of a model of that size."""
    from safetensors.torch import save_file

    from t2mv_core.unet.adapter import create_camera_encoder
    from t2mv_core.unet.attention import install_multiview_attention

    def save(name: str, tensors: State) -> None:
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors"
        )

    modules = create_modules(size, is_empty=True)
    states = {part: random_state(module) for part, module in modules.items()}
    save_folder(states, size, folder / "folder")
    save("checkpoint", checkpoint := original_checkpoint(states, size))
    save("vae", original_vae(states["vae"], size))
    del states
    for key, tensor in checkpoint.items():
        if tensor.dtype == torch.bfloat16:
            checkpoint[key] = tensor.to(torch.float8_e4m3fn)
    save("checkpoint_fp8", checkpoint)
    del checkpoint
    lcm = create_modules(replace(size, guidance=GUIDANCE_WIDTH), is_empty=True)["unet"]
    state = random_state(lcm)
    save("lcm", state)
    save("lcm_original", {f"model.diffusion_model.{k}": x for k, x in original_unet(state, size).items()})
    del state
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        install_multiview_attention(lcm)
        camera_encoder = create_camera_encoder(lcm, 2 ** (len(size.vae_widths) - 1))
    save("mvadapter", {**random_state(lcm, ".processor."), **random_state(camera_encoder)})


def load_case(folder: Path, case: str) -> dict[str, Any]:
    """Load one case in this process, where nothing was loaded before; return what it took."""
    import diffusers  # noqa: F401
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel  # noqa: F401  (lazy packages)
    from transformers import CLIPTextModelWithProjection  # noqa: F401

    from t2mv_core.formats.sources import ModelSources
    from t2mv_core.loading import load_bundle

    torch.set_num_threads(1)
    named = {key: str(folder / value) for key, value in CASES[case].items() if key != "dtype"}
    dtype = getattr(torch, CASES[case].get("dtype", "bfloat16"))
    before, start = status_bytes("VmRSS"), time.perf_counter()
    if case.startswith(REFERENCE):
        modules = _load_with_diffusers(folder / "folder", dtype)
    else:
        modules = load_bundle(ModelSources(**named), dtype=dtype).modules()
    seconds = time.perf_counter() - start
    num_weights = sum(x.numel() for module in modules.values() for x in module.parameters())
    wanted = num_weights * dtype.itemsize
    stored = num_weights * (1 if "fp8" in named["model"] else 2)
    if "fp8" in named["model"]:  # the adapter's file is bf16
        adapter = [x for name, x in modules["unet"].named_parameters() if ".processor." in name]
        stored += sum(x.numel() for x in (*adapter, *modules["camera_encoder"].parameters()))
    peak = status_bytes("VmHWM")
    return {
        "case": case,
        "seconds": seconds,
        "stored_bytes": stored,
        "wanted_bytes": wanted,
        "before_bytes": before,
        "peak_bytes": peak,
        "growth_to_stored": (peak - before) / stored,
        "growth_to_larger": (peak - before) / max(stored, wanted),
    }


def _load_with_diffusers(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Load the same weights by the libraries' own loaders."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    return {
        part: loader.from_pretrained(folder / part, torch_dtype=dtype) for part, loader in classes.items()
    }


def to_table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown; sizes in GB (10⁹ bytes)."""
    from training.evaluation.report import markdown_rows  # here: not part of what is measured

    header = ["files", "in files, GB", "wanted, GB", "peak, GB", "growth / files", "growth / the larger"]
    sizes, ratios = ("stored_bytes", "wanted_bytes", "peak_bytes"), ("growth_to_stored", "growth_to_larger")
    return markdown_rows(
        [*header, "seconds"],
        (
            [
                row["case"],
                *(f"{row[key] / 1e9:.2f}" for key in sizes),
                *(f"{row[key]:.2f}" for key in ratios),
                f"{row['seconds']:.1f}",
            ]
            for row in rows
        ),
    )


def run_in_fresh_process(folder: Path, case: str) -> dict[str, Any]:
    """Call `load_case` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.loading", "--folder", str(folder), "--case", case]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Write files, load each layout, print, and write report.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=home_path, default=Path("docs/results/loading"))
    parser.add_argument("--temporary", type=home_path, help="where to write the files; none: the system's")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to try the script")
    parser.add_argument("--folder", type=home_path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(load_case(arguments.folder, arguments.case)))  # noqa: T201
        return
    if arguments.folder:
        write_files(arguments.folder, TINY if arguments.tiny else FULL)
        return
    with tempfile.TemporaryDirectory(dir=arguments.temporary) as name:
        # In a process of its own, which gives its memory back before anything is measured.
        command = [sys.executable, "-m", "benchmarks.loading", "--folder", name]
        subprocess.run([*command, *(["--tiny"] if arguments.tiny else [])], cwd=ROOT, check=True)
        rows = [run_in_fresh_process(Path(name), case) for case in CASES]
    report(arguments.out / "report.json", "benchmarks.loading", to_table(rows), rows)


if __name__ == "__main__":
    main()
