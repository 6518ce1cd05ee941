"""What the image adapter can do on held-out objects: is the picture's object drawn, from every side?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from t2mv_core.bundle import ModelBundle
from t2mv_core.cameras import DEFAULT_RIG
from t2mv_core.defaults import DEFAULTS
from t2mv_core.formats.sources import ModelSources
from t2mv_core.images import contact_sheet
from t2mv_core.loading import load_bundle
from t2mv_core.reference_picture import GENERIC_PROMPT
from t2mv_core.samplers import SamplingSettings
from t2mv_core.toybox.prompt_lists import PromptSpec

from ...evaluation.intervals import bootstrap
from ...evaluation.measure import Measurement, Questions, Variant, measure
from ..data.captions import phrase, phrase_family
from ..data.dataset import load_dataset
from ..data.references import draw_light, render_reference
from ..data.scenes import COLOURS, Scene
from .evaluate import load_models
from .export import write_json
from .lcm_lora_report import find_instruments
from .stage import StageConfig

logger = logging.getLogger(__name__)

REPORT_NAME = "image_mvadapter.json"
NUM_OBJECTS, NUM_TEACHER_OBJECTS, NUM_DEV = 200, 100, 60
SEED = 5
GUIDANCE_SWEEP = (1.0, 2.0, 3.0)
REF_SCALE_SWEEP = (1.25, 1.5, 2.0)
STRONGER = 1.5
"""`ref_scale` that keeps more of the student's colours: its guidance is of the text alone."""
TEACHER, STUDENT = "toybox-image-teacher", "toybox-image"
ASK = ("judge_family", "judge_colour", "judge_part", "judge_relation")
_MATERIALS = ("wooden", "metal")


@dataclass(frozen=True)
class Objects:
    """Held-out scenes with a picture of each, and the truth.

    Attributes:
        scenes: P of them.
        pictures: framed, from one of the rig's sides under other light, [P, 3, H, W] in [0, 1].
        sides: which of the rig's views each picture shows, [P].
        truth: their renders, [P, V, 3, H, W] in [0, 1].
    """

    scenes: tuple[Scene, ...]
    pictures: Tensor
    sides: Tensor
    truth: Tensor

    def ask(self, prompts: Sequence[str], has_pictures: bool) -> Questions:
        """Ask for the views of all objects; the judge compares with the truth."""
        specs = tuple(true_spec(scene) for scene in self.scenes)
        pictures = self.pictures if has_pictures else None
        return Questions(tuple(prompts), (SEED,), specs=specs, pictures=pictures)


def measure_image_model(config: StageConfig) -> None:
    """Judge both models; write `export/image_mvadapter.json` and a sheet of each."""
    report = measure_one(config, STUDENT) | measure_one(config, TEACHER)
    write_json(report, config.export_dir / REPORT_NAME)


def measure_one(config: StageConfig, name: str) -> dict[str, object]:
    """Judge a model, the student with other prompts and guidance, too, and beside the one of text.

    The teacher is thirteen times as slow, and judged on fewer objects with the generic prompt alone.
    """
    is_student = name == STUDENT
    held_out, dev = (NUM_OBJECTS if is_student else NUM_TEACHER_OBJECTS), NUM_DEV
    if config.quick:
        held_out, dev = 4, 2
    number = 0 if is_student else 1
    of_picture = load_image_models(config)[number]
    instruments, objects = find_instruments(config), draw_objects(config, 0, held_out)
    words = prompts_of(objects.scenes)
    report: dict[str, object] = {}

    def look(
        title: str, model: ModelBundle, asked: Objects, prompts: Sequence[str], settings: SamplingSettings
    ) -> Measurement:
        questions = asked.ask(prompts, "image-to-multiview" in model.tasks)
        measurement = measure(model, instruments, Variant(title, "standard", settings), questions)
        report[title] = figures(measurement, asked)
        logger.info("%s: %s", title, _means(report[title]))
        return measurement

    own = own_settings(of_picture)
    write_sheet(config, objects, look(f"{name}, generic", of_picture, objects, words["generic"], own))
    if is_student:
        of_text, _ = load_models(config.export_dir, config.device)
        look(f"{name}, text alone", of_text, objects, words["caption"], own)
        for kind in ("family", "caption", "contradiction"):
            look(f"{name}, {kind}", of_picture, objects, words[kind], own)
        others = draw_objects(config, NUM_OBJECTS if not config.quick else held_out, dev)
        title, settings = f"{name}, generic, ref_scale {STRONGER:g}", replace(own, ref_scale=STRONGER)
        look(title, of_picture, objects, words["generic"], settings)
        sweep = {f"w = {w:g}": replace(own, guidance_scale=w) for w in GUIDANCE_SWEEP}
        sweep |= {f"ref_scale {scale:g}": replace(own, ref_scale=scale) for scale in REF_SCALE_SWEEP}
        for what, settings in sweep.items():
            look(f"dev, {name}, {what}", of_picture, others, [GENERIC_PROMPT] * dev, settings)
    return report


def own_settings(model: ModelBundle) -> SamplingSettings:
    """The settings of `t2mv_core/defaults.py` that fit a model, whatever its folder is called."""
    name = "toybox" if model.defaults.has_guidance_embedding else "toybox-teacher"
    return SamplingSettings(**DEFAULTS[name].numbers())


def load_image_models(config: StageConfig) -> tuple[ModelBundle, ModelBundle]:
    """Student and teacher with the image adapter of an export folder."""
    folder = config.export_dir
    adapter, own = str(folder / REPORT_NAME.replace(".json", ".safetensors")), folder / "teacher"
    student = ModelSources(str(folder / "model"), adapter)
    teacher = replace(student, unet=str(own / "unet"), scheduler=str(own / "scheduler"))
    return load_bundle(student, config.device), load_bundle(teacher, config.device)


def draw_objects(config: StageConfig, start: int, count: int) -> Objects:
    """Take held-out scenes and draw a picture of each, from one of the rig's sides."""
    dataset = load_dataset(config.test_data_dir, start + count)
    scenes, pictures, sides = dataset.scenes[start:], list[Tensor](), list[int]()
    for number, scene in enumerate(scenes, start):
        rng = np.random.default_rng([config.seed, SEED, number])
        side = int(rng.integers(len(DEFAULT_RIG.azimuths_deg)))
        picture = render_reference(scene, DEFAULT_RIG.azimuths_deg[side], draw_light(rng))
        pictures.append(torch.from_numpy(picture).movedim(-1, 0).float() / 255)
        sides.append(side)
    truth = torch.from_numpy(dataset.images[start:]).movedim(-1, 2).float() / 255
    return Objects(tuple(scenes), torch.stack(pictures), torch.tensor(sides), truth)


def true_spec(scene: Scene) -> PromptSpec:
    """What a scene shows, as far as the judge has classes for it."""
    part = None if scene.part_colour in _MATERIALS else scene.part_colour
    prompt = phrase(scene.family, scene.colour, scene.part_colour, 0, scene.companion_colour)
    return PromptSpec(prompt, scene.family, scene.colour, part, scene.companion_colour, "")


def prompts_of(scenes: Sequence[Scene]) -> dict[str, list[str]]:
    """Prompts that say nothing, the family, everything, and a colour that is not the picture's."""
    return {
        "generic": [GENERIC_PROMPT for _ in scenes],
        "family": [phrase_family(scene.family) for scene in scenes],
        "caption": [true_spec(scene).prompt for scene in scenes],
        "contradiction": [phrase(scene.family, contradicting(scene)) for scene in scenes],
    }


def contradicting(scene: Scene) -> str:
    """A colour that the scene does not have."""
    named = (scene.colour, scene.part_colour, scene.companion_colour)
    others = [name for name in COLOURS if name not in named]
    return others[scene.seed % len(others)]


def figures(found: Measurement, objects: Objects) -> dict[str, object]:
    """Every measure with its interval; `kept` is family and all colours, PSNR is in decibels."""
    values = {name: table[:, 0].double() for name, table in found.values.items()}
    asked = torch.stack([values[name] for name in ASK])
    values["kept"] = torch.where(asked.isnan(), 1.0, asked).amin(dim=0)
    error = (found.images.float() / 255 - objects.truth).square().mean(dim=(2, 3, 4)).double()
    own_side = error[torch.arange(len(error)), objects.sides]
    values |= {"psnr": -10 * error.mean(dim=1).log10(), "psnr_own_side": -10 * own_side.log10()}
    settings = found.variant.settings
    intervals = {n: asdict(bootstrap(x[:, None])) for n, x in values.items() if not x.isnan().all()}
    return {"steps": settings.num_steps, "guidance": settings.guidance_scale, **intervals}


def _means(entry: object) -> dict[str, str]:
    assert isinstance(entry, dict)
    return {name: f"{x['mean']:.3f}" for name, x in entry.items() if isinstance(x, dict)}


def write_sheet(config: StageConfig, objects: Objects, found: Measurement, count: int = 16) -> None:
    """Draw the first objects, a row each: the picture, then the views made of it."""
    pictures = torch.cat([objects.pictures[:count, None], found.images[:count] / 255], dim=1)
    labels = ["picture", *(f"{azimuth:g} deg" for azimuth in DEFAULT_RIG.azimuths_deg)]
    rows = [true_spec(scene).prompt for scene in objects.scenes[:count]]
    name = found.variant.name.partition(",")[0]
    contact_sheet(pictures, rows, labels, cell_px=64).save(config.out_dir / f"{name}.png")
