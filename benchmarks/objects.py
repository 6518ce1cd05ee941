"""How good the objects are that views become: solids, surfaces and colours against the truth.

python -m benchmarks.objects --out docs/results/objects
python -m benchmarks.objects --lora runs/demo/lora/epoch_0006.safetensors --out ...

True views: 100 scenes of the toybox, drawn as the model draws them (six views, 64 px), become objects by
`t2mv_core.objects.reconstruct`. IoU is with the scene's solid, known from its formulas; the hull that six
perfect silhouettes allow stands beside it. PSNR is of the coloured surface, drawn again from the six cameras
and from six that lie between them; the last also of the true solid's own mesh, painted with the six views
(`t2mv_core.objects.painting`). Sampled views have no true solid: how far their silhouettes agree, and how
well the object drawn again is what was sampled, with and without a LoRA, on the same prompts and noise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from t2mv_core.cameras import DEFAULT_RIG, CameraRig
from t2mv_core.formats.atomic import replaced
from t2mv_core.images import contact_sheet
from t2mv_core.loading import load_bundle
from t2mv_core.objects.carving import carve_hull
from t2mv_core.objects.painting import paint_surface
from t2mv_core.objects.reconstruction import Reconstruction, reconstruct
from t2mv_core.objects.rendering import render_surface
from t2mv_core.objects.silhouettes import object_masks
from t2mv_core.objects.surface import extract_surface
from t2mv_core.objects.viewing import Views
from t2mv_core.objects.volume import INSIDE, Volume, voxel_centres
from t2mv_core.samplers import SamplingSettings
from training.config import RewardConfig, home_path
from training.data.prompts import load_prompts
from training.evaluation.intervals import bootstrap
from training.evaluation.measure import Questions, Variant, load_instruments, measure, spread
from training.evaluation.report import markdown_rows
from training.toybox.data.dataset import dataset_scene
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import Scene, build_parts
from training.toybox.data.shapes import distance

from .measuring import report

RESOLUTION, TRUE_PX = 128, 256
SCENE_SEED = 4000
BETWEEN = CameraRig(tuple(azimuth + 22.5 for azimuth in DEFAULT_RIG.azimuths_deg), (0.0,) * 6)
"""Cameras that nothing was drawn from."""
NOISE_SEED = 1000
OWN_SMOOTHING = 0.7
NUM_PICTURES = 6


def true_solid(scene: Scene, resolution: int = RESOLUTION) -> Tensor:
    """Return where a scene is solid, bool [N, N, N] over x, y, z at the voxels' centres."""
    centres = voxel_centres(resolution, DEFAULT_RIG.frustum).numpy()
    world = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"))
    solid = np.zeros(world.shape[1:], dtype=bool)
    for part in build_parts(scene):
        offset = world - np.asarray(part.at, dtype=np.float32)[:, None, None, None]
        local = [np.einsum("k,kxyz->xyz", np.asarray(axis, dtype=np.float32), offset) for axis in part.axes]
        solid |= distance(part.shape, part.size, *local) < 0
    return torch.from_numpy(solid)


def views_of(scene: Scene, rig: CameraRig, picture_px: int) -> Tensor:
    """Return a scene's pictures, [V, 3, P, P] in [0, 1]."""
    images, _ = render_views(scene, rig.azimuths_deg, picture_px)
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def solid_iou(volume: Volume, solid: Tensor) -> float:
    """Return the IoU of a volume with a true solid on the same grid."""
    inside = volume.occupancy > INSIDE
    return float((inside & solid).sum() / (inside | solid).sum())


def psnr(drawn: Tensor, true: Tensor) -> float:
    """Return 10 lg(1 / mean squared error) over all pixels of all views, dB."""
    return float(-10 * (drawn - true).square().mean().log10())


def measure_scene(scene: Scene) -> tuple[dict[str, float], Tensor]:
    """Return a scene's figures, and its true views with those of the object, [2V, 3, P, P]."""
    images, solid = views_of(scene, DEFAULT_RIG, 64), true_solid(scene)
    started = time.process_time()
    made = reconstruct(Views(images, object_masks(images), DEFAULT_RIG), RESOLUTION)
    seconds = time.process_time() - started
    _, silhouettes = render_views(scene, DEFAULT_RIG.azimuths_deg, TRUE_PX)
    allowed = carve_hull(torch.from_numpy(silhouettes).float(), DEFAULT_RIG, RESOLUTION)
    drawn, between = (_draw(made, rig) for rig in (DEFAULT_RIG, BETWEEN))
    figures = {
        "iou": solid_iou(made.volume, solid),
        "allowed_iou": solid_iou(allowed, solid),
        "psnr_db": psnr(drawn, images),
        "psnr_between_db": psnr(between, views_of(scene, BETWEEN, 64)),
        "cpu_seconds": seconds,
    }
    own = extract_surface(Volume(solid.float(), DEFAULT_RIG.frustum), OWN_SMOOTHING)
    painted = paint_surface(own, Views(images, object_masks(images), DEFAULT_RIG))
    again = render_surface(
        Volume(solid.float(), DEFAULT_RIG.frustum), painted.surface, painted.colours, BETWEEN, 64
    )
    figures["own_mesh_psnr_between_db"] = psnr(again, views_of(scene, BETWEEN, 64))
    figures["iou_of_allowed"] = figures["iou"] / figures["allowed_iou"]
    return figures, torch.cat([images, drawn])


def measure_sampled(prompts: Sequence[str], loras: Mapping[str, Path | None]) -> Iterator[tuple[str, Any]]:
    """Yield name and figures by prompt of objects of sampled views, without and with a LoRA."""
    bundle = load_bundle("toybox")
    settings = SamplingSettings(**bundle.defaults.numbers())
    instruments = load_instruments(["toybox_clip"], ["geometry"], "cpu", False, RewardConfig())
    for name, lora in loras.items():
        found = measure(
            bundle,
            instruments,
            Variant(name, "standard", settings, lora),
            Questions(tuple(prompts), (NOISE_SEED,)),
        )
        rows = [measure_set(images / 255) for images in tqdm(found.images, f"objects, {name}")]
        yield name, rows


def measure_set(images: Tensor) -> dict[str, float]:
    """Return the figures of one set of sampled views; NaN where they make no object."""
    try:
        made = reconstruct(Views(images, object_masks(images), DEFAULT_RIG), RESOLUTION)
    except ValueError:
        return {"makes_object": 0.0, "agreement": float("nan"), "left_out": 6.0, "psnr_db": float("nan")}
    return {
        "makes_object": 1.0,
        "agreement": sum(made.agreement.iou) / len(made.agreement.iou),
        "left_out": float(len(made.agreement.disagreeing)),
        "psnr_db": psnr(_draw(made, DEFAULT_RIG), images),
    }


def _draw(made: Reconstruction, rig: CameraRig) -> Tensor:
    return render_surface(made.volume, made.surface, made.colours, rig, 64)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the mean of every figure with its interval."""
    return {name: bootstrap(torch.tensor([[row[name]] for row in rows])) for name in rows[0]}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return Markdown, a row per figure and kind of views."""
    rows = [
        [kind, name, interval.in_words(), str(interval.count)]
        for kind, figures in found.items()
        for name, interval in figures.items()
    ]
    return markdown_rows(["views", "figure", "mean and 95 % interval", "objects"], rows)


def main() -> int:
    """Measure, print, and write report.json and objects.png."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objects", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=home_path, default=Path("docs/results/objects"))
    add("--lora", type=home_path, help="LoRA whose objects stand beside the model's own")
    add("--num", type=int, default=100, help="scenes, and prompts")
    arguments = parser.parse_args()
    scenes = [dataset_scene(SCENE_SEED, index, allow_held_out=True) for index in range(arguments.num)]
    measured = [measure_scene(scene) for scene in tqdm(scenes, "true views")]
    found = {"true": summary([figures for figures, _ in measured])}
    loras = {"sampled": None} | ({"sampled with the LoRA": arguments.lora} if arguments.lora else {})
    for name, rows in measure_sampled(spread(load_prompts("heldout"), arguments.num), loras):
        found[name] = summary(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = torch.stack([views for _, views in measured[:: max(1, len(measured) // NUM_PICTURES)]])
    sheet = contact_sheet(pictures, cell_px=64)
    with replaced(arguments.out / "objects.png") as temporary:
        sheet.save(temporary, format="PNG")
    figures = {kind: {name: asdict(x) for name, x in one.items()} for kind, one in found.items()}
    report(arguments.out / "report.json", "benchmarks.objects", table(found), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
