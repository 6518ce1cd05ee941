"""Where the parts of a model come from (`ModelSources`), as files and folders, before any big one is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..toybox import toybox_path
from .hub import hub_file

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
LCM_UNET = "latent-consistency/lcm-sdxl"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
ADAPTER_REPO = "huanngzh/mv-adapter"
ADAPTER_FILE = "mvadapter_t2mv_sdxl.safetensors"
TOYBOX_PRESETS = ("toybox", "toybox-teacher")
PUBLISHED_UNETS = {"lcm-sdxl": LCM_UNET, "sdxl": None}
"""The presets of published weights, and the UNet each takes in place of SDXL's own."""
PRESETS = (*TOYBOX_PRESETS, *PUBLISHED_UNETS)
WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors", "model.fp16.safetensors",
)  # fmt: skip
_FILE = ".safetensors"
_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSources:
    """Where the parts of a model come from.

    Attributes:
        model: a preset ("toybox", "toybox-teacher", "lcm-sdxl", "sdxl"), a local folder in diffusers' layout,
            a single-file SDXL checkpoint (.safetensors, original layout), or a Hub id such as
            "stabilityai/stable-diffusion-xl-base-1.0".
        adapter: MV-Adapter: a file, a Hub id, or one with a file's name behind it; None takes
            `mvadapter.safetensors` or `mvadapter_t2mv_sdxl.safetensors` beside or inside the model.
        unet: another UNet (LCM-SDXL, say) than the model's own: folder, file in either layout, or Hub id.
        scheduler: folder or Hub id of another scheduler configuration than the model's own.
        allow_download: whether a Hub id may be downloaded; without, only the local cache is looked at.
        vae: another VAE than the model's own: folder, file in either layout, or Hub id.
        solver: how the model is sampled, a word of `schedule.SOLVERS`; None: as its files say.
    """

    model: str = "toybox"
    adapter: str | None = None
    unet: str | None = None
    scheduler: str | None = None
    allow_download: bool = False
    vae: str | None = None
    solver: str | None = None


@dataclass(frozen=True)
class ModelFiles:
    """What is read: each a folder with configuration and weights, or a single file.

    Attributes:
        unet: the UNet.
        own_unet: the model's own UNet, when `unet` is another one's folder that may hold only what differs.
        vae: the VAE.
        text_encoder: the first text encoder.
        text_encoder_2: the second.
        scheduler: folder of the scheduler's configuration; None for SDXL's.
        adapter: the MV-Adapter's file.
    """

    unet: Path
    own_unet: Path | None
    vae: Path
    text_encoder: Path
    text_encoder_2: Path
    scheduler: Path | None
    adapter: Path


def resolve_sources(sources: ModelSources) -> ModelFiles:
    """Find all files of a model, without reading one.

    Raises:
        FileNotFoundError: a folder or file is missing, or a Hub id is not cached and may not be downloaded.
    """
    if sources.model in TOYBOX_PRESETS:
        model = str(toybox_path("model"))
        own = str(toybox_path("teacher")) if sources.model == "toybox-teacher" else model
        adapter = toybox_path("mvadapter.safetensors")
    else:
        if sources.model in PUBLISHED_UNETS:
            sources = published_sources(sources)
        model = own = sources.model
        adapter = _find_adapter(sources)
    allow = sources.allow_download
    is_replaced = bool(sources.unet) or own != model
    return ModelFiles(
        unet=_find_alone(sources.unet, "unet", allow) if sources.unet else _find_part(own, "unet", allow),
        own_unet=Path(model) / "unet" if is_replaced and Path(model).is_dir() else None,
        vae=_find_alone(sources.vae, "vae", allow) if sources.vae else _find_part(model, "vae", allow),
        text_encoder=_find_part(model, "text_encoder", allow),
        text_encoder_2=_find_part(model, "text_encoder_2", allow),
        scheduler=_find_scheduler(sources.scheduler, own, allow),
        adapter=adapter,
    )


def published_sources(sources: ModelSources) -> ModelSources:
    """A preset of published weights as Hub ids; what the sources name themselves stays."""
    return replace(
        sources,
        model=SDXL,
        unet=sources.unet or PUBLISHED_UNETS[sources.model],
        vae=sources.vae or FP16_VAE,
        adapter=sources.adapter or f"{ADAPTER_REPO}/{ADAPTER_FILE}",
    )


def missing_parts(sources: ModelSources) -> dict[str, str]:
    """What of a model is not on this machine: name of the field -> why, in a sentence; nothing is fetched."""
    if sources.model in TOYBOX_PRESETS:
        return {}
    if sources.model in PUBLISHED_UNETS:
        sources = published_sources(sources)
    own = ["text_encoder", "text_encoder_2"]
    own += [part for part, other in (("unet", sources.unet), ("vae", sources.vae)) if not other]
    searches: dict[str, list[Callable[[], object]]] = {
        "model": [partial(_find_part, sources.model, part, False) for part in own],
        "unet": [partial(_find_alone, sources.unet, "unet", False)] if sources.unet else [],
        "vae": [partial(_find_alone, sources.vae, "vae", False)] if sources.vae else [],
        "adapter": [partial(_find_adapter, replace(sources, allow_download=False))],
    }
    searches["model"].append(partial(_find_scheduler, sources.scheduler, sources.model, False))
    missing = {}
    for name, finders in searches.items():
        try:
            for find in finders:
                find()
        except FileNotFoundError as error:
            missing[name] = str(error)
    return missing


def weights_file(folder: Path) -> Path:
    """The weights in a part's folder.

    Raises:
        FileNotFoundError: there are none in safetensors format.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no safetensors weights (looked for {', '.join(WEIGHT_NAMES)}).")


def _find_part(model: str, part: str, allow_download: bool) -> Path:
    """A part of a model: its folder there, or the checkpoint that holds all of them."""
    path = Path(model)
    if path.is_file() and path.suffix == _FILE:
        return path
    if path.is_dir():
        return path / part
    _refuse_unless_hub_id(model)
    return _hub_folder(model, f"{part}/", allow_download)


def _find_alone(name: str, part: str, allow_download: bool) -> Path:
    """A part that is named alone: its own folder or file or repository, or a model that has it."""
    path = Path(name)
    if (path.is_file() and path.suffix == _FILE) or (path / _CONFIG).is_file():
        return path
    if path.is_dir():
        return path / part if (path / part).is_dir() else path
    _refuse_unless_hub_id(name)
    return _hub_folder(name, "", allow_download)


def _find_scheduler(named: str | None, model: str, allow_download: bool) -> Path | None:
    name = named or model
    if Path(name).is_dir():
        return Path(name) if named else Path(name) / "scheduler"
    if Path(name).is_file():
        return None  # a checkpoint says nothing of it
    _refuse_unless_hub_id(name)
    folder = "" if named else "scheduler/"
    return hub_file(name, f"{folder}scheduler_config.json", allow_download).parent


def _hub_folder(repo_id: str, folder: str, allow_download: bool) -> Path:
    """The cached folder of a part, downloaded if it may be; half precision halves the download."""
    local = hub_file(repo_id, f"{folder}{_CONFIG}", allow_download).parent
    if any((local / name).is_file() for name in WEIGHT_NAMES):
        return local
    stem = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
    try:
        return hub_file(repo_id, f"{folder}{stem}.fp16{_FILE}", allow_download).parent
    except FileNotFoundError:
        return hub_file(repo_id, f"{folder}{stem}{_FILE}", allow_download).parent


def _refuse_unless_hub_id(name: str) -> None:
    if Path(name).suffix == _FILE:
        raise FileNotFoundError(f"There is no weights file {name!r}; check the name and the folder.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"There is no model folder {name!r}; use one of {', '.join(PRESETS)}, a local folder in "
            "diffusers' layout, a single-file SDXL checkpoint (.safetensors), or a Hub id such as "
            f"'{SDXL}'."
        )


def _find_adapter(sources: ModelSources) -> Path:
    if sources.adapter is None:
        return _adapter_beside(sources)
    path = Path(sources.adapter)
    if path.is_file():
        return path
    owner, *rest = sources.adapter.split("/")
    is_hub_id = owner not in ("", ".", "..", "~") and len(rest) in (1, 2)
    if not is_hub_id or (len(rest) == 1 and path.suffix == _FILE):
        raise FileNotFoundError(f"{path} is missing; the adapter's name is wrong, or the file is elsewhere.")
    filename = rest[1] if len(rest) == 2 else ADAPTER_FILE
    return hub_file(f"{owner}/{rest[0]}", filename, sources.allow_download)


def _adapter_beside(sources: ModelSources) -> Path:
    model = Path(sources.model)
    for folder in (model, model.parent):
        for name in ("mvadapter.safetensors", ADAPTER_FILE):
            if (folder / name).is_file():
                return folder / name
    if not model.exists():
        _refuse_unless_hub_id(sources.model)
        hub_file(sources.model, "model_index.json", sources.allow_download)  # is there such a model at all?
    raise FileNotFoundError(
        f"No MV-Adapter was named and there is no mvadapter.safetensors in or beside {model}; name the "
        f"adapter's file (for SDXL: {ADAPTER_FILE} of {ADAPTER_REPO})."
    )
