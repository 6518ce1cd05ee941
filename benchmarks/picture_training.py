"""Does training raise identity and consistency of the few-step model that draws views of a picture?

python -m benchmarks.picture_training --out docs/results/pictures

Pictures of toybox scenes that the image adapter was not trained on, from random sides under other light:
176 to train on, 100 others to measure on, of which some show combinations of colours that no training had.
Prompts name the family alone ("a mug"), so that colours come from the picture. Several trainings of the
preset `pictures`, each measured on the same objects and noise as the model without training and ZMV. The
judge, HyperScore (not learned from) and PSNR against the truth say what a gain in the rewards is worth.
Trainings that exist are not repeated, and an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.images import contact_sheet
from t2mv_core.loading import load_bundle
from training.config import TrainConfig, home_path, load_config, settings_first
from training.evaluation.intervals import bootstrap_two_way, student_interval
from training.evaluation.measure import (
    Instruments,
    Measurement,
    Questions,
    Variant,
    load_instruments,
    measure,
)
from training.evaluation.report import markdown_rows
from training.models.policy import sampling_settings
from training.models.subjects import Subjects
from training.mvczigal import train
from training.toybox.data.captions import phrase_family
from training.toybox.data.dataset import dataset_scene
from training.toybox.data.references import DRAWN_PX, draw_light
from training.toybox.data.renderer import render_views
from training.toybox.data.scenes import Scene
from training.toybox.stages.image_report import ASK, true_spec

from .measuring import report

logger = logging.getLogger(__name__)

PRESET = "pictures"
TRAIN_SEED, HELD_OUT_SEED = 5000, 5001
NUM_TRAIN, NUM_HELD_OUT = 176, 100
NOISE_SEED = 1000
ONLY_MEASURED = "toybox_hyperscore"
COLUMNS = {
    "kept": "family and colours",
    **{"judge_colour": "colour", "judge_part": "part colour", "judge_azimuth": "azimuth"},
    **{"psnr": "PSNR, dB", "view_reward": "likeness", "joint_reward": "geometry"},
    f"joint_reward/{ONLY_MEASURED}": "HyperScore",
}


def write_references(folder: Path, num_train: int, num_held_out: int) -> tuple[Path, list[Scene]]:
    """Write pictures with transparency and their list; return it and the held-out scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, held_out = [], list[Scene]()
    parts = (("train", TRAIN_SEED, num_train), ("heldout", HELD_OUT_SEED, num_held_out))
    for split, seed, count in parts:
        for number in range(count):
            scene = dataset_scene(seed, number, allow_held_out=split == "heldout")
            rng = np.random.default_rng([seed, number])
            azimuth = float(rng.uniform(0, 360))
            images, silhouettes = render_views(scene, [azimuth], DRAWN_PX, draw_light(rng))
            alpha = 255 * silhouettes[0, ..., None].astype(np.uint8)
            name = f"{split}_{number:03d}.png"
            Image.fromarray(np.concatenate([images[0], alpha], axis=-1)).save(folder / name)
            lines.append({"picture": name, "prompt": phrase_family(scene.family), "split": split})
            held_out += [scene] * (split == "heldout")
    path = folder / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path, held_out


def configuration(pictures: Path, out_dir: Path, seed: int, words: Sequence[str]) -> TrainConfig:
    """Return the preset with these pictures."""
    own = [f"sampling.references={pictures}", f"run.out_dir={out_dir}", f"run.seed={seed}"]
    return load_config(PRESET, [*own, *words])


def trained_lora(config: TrainConfig) -> Path:
    """Train unless that was done, and return the LoRA of the last epoch."""
    path = Path(config.run.out_dir) / "lora" / f"epoch_{config.run.epochs:04d}.safetensors"
    if not path.is_file() and not train(config, resume=True):
        raise KeyboardInterrupt
    return path


def values_of(found: Measurement, truth: Tensor) -> dict[str, Tensor]:
    """Return every measure per object, [P]; `kept` is family and all colours, PSNR is against the truth."""
    values = {name: table[:, 0].double() for name, table in found.values.items()}
    asked = torch.stack([values[name] for name in ASK])
    error = (found.images.float() / 255 - truth).square().mean(dim=(1, 2, 3, 4)).double()
    return {**values, "kept": torch.where(asked.isnan(), 1.0, asked).amin(dim=0), "psnr": -10 * error.log10()}


def gains(found: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return gains over the base: over objects and trainings, of each training, and Student's of these."""
    entries = {}
    for name in base:
        table = torch.stack([one[name] - base[name] for one in found], dim=1)
        if not table.isnan().all():
            each = table.nanmean(dim=0).tolist()
            student = student_interval(each) if len(each) > 1 else None
            entries[name] = {**asdict(bootstrap_two_way(table)), "by_training": each, "student": student}
    return entries


def run(out: Path, work: Path, seeds: Sequence[int], sizes: tuple[int, int], words: Sequence[str]) -> None:
    """Train, measure, and write report.json, report.md and a picture."""
    pictures, scenes = write_references(work / "pictures", *sizes)
    config = configuration(pictures, work / "none", 0, words)
    bundle = load_bundle(config.model.name)
    subjects = Subjects(bundle, config.sampling)
    names = subjects.split.held_out
    questions = Questions(
        subjects.prompts(names),
        (NOISE_SEED,),
        specs=tuple(true_spec(scene) for scene in scenes),
        pictures=subjects.pictures(names),
    )
    loaded = load_instruments(
        config.reward.view, [*config.reward.joint, ONLY_MEASURED], "cpu", has_judge=True
    )
    instruments: Instruments = replace(loaded, only_measuring=frozenset([ONLY_MEASURED]))
    images = [render_views(scene)[0] for scene in scenes]
    truth = torch.from_numpy(np.stack(images)).movedim(-1, 2).float() / 255
    settings = sampling_settings(config.sampling)

    def look(name: str, sampler: str, lora: Path | None = None) -> Measurement:
        logger.info("Measuring %s ...", name)
        return measure(bundle, instruments, Variant(name, sampler, settings, lora), questions)

    before, zmv = look("no training", "standard"), look("ZMV, no training", "zmv")
    # Other pictures or settings are other trainings.
    key = hashlib.sha256(repr((pictures.read_text("utf-8"), list(words))).encode()).hexdigest()[:8]
    loras = [trained_lora(configuration(pictures, work / f"seed{seed}_{key}", seed, words)) for seed in seeds]
    after = [
        look(f"mvc_zigal, seed {seed}", "standard", lora) for seed, lora in zip(seeds, loras, strict=True)
    ]
    base = values_of(before, truth)
    figures = {
        "no training": {name: asdict(bootstrap_two_way(x[:, None])) for name, x in base.items()
                        if not x.isnan().all()},
        "ZMV: gain": gains([values_of(zmv, truth)], base),
        "mvc_zigal: gain": gains([values_of(found, truth) for found in after], base),
    }  # fmt: skip
    known = {**figures, "seeds": list(seeds), "objects": len(scenes), "words": list(words)}
    report(out / "report.json", "benchmarks.picture_training", table(figures), known)
    (out / "report.md").write_text(table(figures) + "\n", encoding="utf-8")
    write_sheet(
        questions, {"truth": truth, "before": before.images / 255, "after": after[0].images / 255}, out
    )


def table(figures: Mapping[str, Any]) -> str:
    """Return Markdown, a row per variant."""
    rows = []
    for name, entry in figures.items():
        sign = "+" if "gain" in name else ""
        cells = []
        for key in COLUMNS:
            x = entry[key]
            cells.append(f"{x['mean']:{sign}.3f} [{x['low']:{sign}.3f}, {x['high']:{sign}.3f}]")
        rows.append([name, *cells])
    return markdown_rows(["", *COLUMNS.values()], rows)


def write_sheet(questions: Questions, rows: Mapping[str, Tensor], out: Path, count: int = 6) -> None:
    """Draw three rows for each of the first objects: truth, before and after; the picture in front."""
    assert questions.pictures is not None
    blank = torch.full_like(questions.pictures[:count, None], 0.5)
    fronts = {"truth": questions.pictures[:count, None]}
    drawn = [torch.cat([fronts.get(name, blank), views[:count]], dim=1) for name, views in rows.items()]
    pictures = torch.stack(drawn, dim=1).flatten(0, 1)
    labels = [f"{questions.prompts[n]}: {name}" for n in range(count) for name in rows]
    titles = ["picture", *(f"{azimuth:g} deg" for azimuth in DEFAULT_RIG.azimuths_deg)]
    contact_sheet(pictures, labels, titles, cell_px=64).save(out / "pictures.png")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_training")
    parser.add_argument("--out", type=home_path, default=Path("docs/results/pictures"))
    parser.add_argument("--work", type=home_path, default=Path("runs/picture_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objects", type=int, nargs=2, default=[NUM_TRAIN, NUM_HELD_OUT], help="two numbers")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args(settings_first(sys.argv[1:]))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sizes = (arguments.objects[0], arguments.objects[1])
    run(arguments.out, arguments.work, arguments.seeds, sizes, arguments.overrides)
    return 0


if __name__ == "__main__":
    sys.exit(main())
