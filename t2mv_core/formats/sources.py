"""Where the parts of a model come from (`ModelSources`), as files and folders, before any big one is read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..toybox import toybox_path
from .checkpoint import PICKLED
from .safetensors_io import ENDINGS, is_safetensors
from .shards import has_weights, pickle_refusal, places_of

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
LCM_UNET = "latent-consistency/lcm-sdxl"
FP16_VAE = "madebyollin/sdxl-vae-fp16-fix"
ADAPTER_REPO = "huanngzh/mv-adapter"
ADAPTER_FILE = "mvadapter_t2mv_sdxl.safetensors"
IMAGE_ADAPTER_FILE = "mvadapter_i2mv_sdxl.safetensors"
TOYBOX_PRESETS = ("toybox", "toybox-teacher", "toybox-image", "toybox-image-teacher")
PUBLISHED_UNETS = {"lcm-sdxl": LCM_UNET, "sdxl": None}
"""The presets of published weights, and the UNet each takes in place of SDXL's own."""
PRESETS = (*TOYBOX_PRESETS, *PUBLISHED_UNETS)
_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSources:
    """Where the parts of a model come from.

    Attributes:
        model: a preset ("toybox", "toybox-teacher", "toybox-image", "toybox-image-teacher", "lcm-sdxl",
            "sdxl"), a local folder in diffusers' layout, a single-file SDXL checkpoint (.safetensors, in the
            original layout), or a Hub id such as "stabilityai/stable-diffusion-xl-base-1.0".
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
    """The files of a model: each a folder with configuration and weights, or a single file."""

    adapter: Path
    unet: Path
    own_unet: Path | None
    """The model's own UNet, where `unet` is another folder, which may hold only what differs."""
    vae: Path
    text_encoder: Path
    text_encoder_2: Path
    scheduler: Path | None
    """None stands for SDXL's configuration."""


def resolve_sources(sources: ModelSources) -> ModelFiles:
    """Find all files of a model, without reading one.

    Raises:
        FileNotFoundError: a folder or file is missing, or a Hub id is not cached and may not be downloaded.
        ValueError: a named file is no safetensors file.
    """
    return ModelFiles(**{part: find() for part, find in _finders(sources).items()})  # type: ignore[arg-type]


def missing_parts(sources: ModelSources) -> dict[str, str]:
    """Return what of a model is not on this machine: name of the field -> why; nothing is fetched."""
    sources = published_sources(replace(sources, allow_download=False))
    missing: dict[str, str] = {}
    for part, find in _finders(sources).items():
        try:
            find()
        except FileNotFoundError as error:
            is_named = part == "adapter" or (part in ("unet", "vae") and getattr(sources, part))
            missing.setdefault(part if is_named else "model", str(error))
    return {field: missing[field] for field in ("model", "unet", "vae", "adapter") if field in missing}


def published_sources(sources: ModelSources) -> ModelSources:
    """Replace a preset of published weights by Hub ids; what the sources name themselves stays."""
    if sources.model not in PUBLISHED_UNETS:
        return sources
    return replace(
        sources,
        model=SDXL,
        unet=sources.unet or PUBLISHED_UNETS[sources.model],
        vae=sources.vae or FP16_VAE,
        adapter=sources.adapter or f"{ADAPTER_REPO}/{ADAPTER_FILE}",
    )


def current_snapshot(repository: Path) -> Path | None:
    """Return the current snapshot of a repository in a Hub's cache (models--owner--name), else None."""
    main = repository / "refs" / "main"
    return repository / "snapshots" / main.read_text("utf-8").strip() if main.is_file() else None


def _in_snapshots(sources: ModelSources) -> ModelSources:
    """Replace folders that are a whole repository in a Hub's cache by their snapshot."""
    named = {field: getattr(sources, field) for field in ("model", "unet", "vae", "scheduler")}
    snapshots = {field: current_snapshot(Path(place)) for field, place in named.items() if place}
    return replace(sources, **{field: str(path) for field, path in snapshots.items() if path})  # type: ignore[arg-type]


def _finders(sources: ModelSources) -> dict[str, Callable[[], Path | None]]:
    """Return for each of the `ModelFiles` how to find it."""
    sources, allow = _in_snapshots(published_sources(sources)), sources.allow_download
    model = unet_model = sources.model
    find_adapter: Callable[[], Path] = partial(_find_adapter, sources)
    if sources.model in TOYBOX_PRESETS:
        model = str(toybox_path("model"))
        unet_model = str(toybox_path("teacher")) if sources.model.endswith("-teacher") else model
        if sources.adapter is None:
            is_of_picture = sources.model.startswith("toybox-image")
            find_adapter = partial(toybox_path, f"{'image_' * is_of_picture}mvadapter.safetensors")
    is_replaced = bool(sources.unet) or unet_model != model

    def part(name: str, other: str | None = None, of: str = model) -> Callable[[], Path]:
        return partial(_find_part, other or of, name, allow, is_alone=bool(other))

    return {
        "adapter": find_adapter,
        "unet": part("unet", sources.unet, unet_model),
        "own_unet": lambda: Path(model) / "unet" if is_replaced and Path(model).is_dir() else None,
        "vae": part("vae", sources.vae),
        "text_encoder": part("text_encoder"),
        "text_encoder_2": part("text_encoder_2"),
        "scheduler": partial(_find_scheduler, sources.scheduler, unet_model, allow),
    }


def hub_file(repo_id: str, filename: str, allow_download: bool) -> Path:
    """Return a file of a repository on the Hugging Face Hub, from the local cache or downloaded.

    Raises:
        FileNotFoundError: it is not in the cache and may not, or could not, be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, filename, local_files_only=not allow_download))
    except LocalEntryNotFoundError as error:
        cure = "check name and network" if allow_download else "allow downloads, or give a local path"
        raise FileNotFoundError(f"{repo_id!r} is not in the Hub's local cache; {cure}.") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{repo_id!r} is not a Hub id; check the spelling.") from error
    # Before it has an answer the client's own errors get through; they share a base with the Hub's.
    except (HfHubHTTPError.__bases__[0], OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{repo_id!r} could not be downloaded ({reason}); check name, network and disk."
        ) from error


def _find_part(model: str, part: str, allow_download: bool, is_alone: bool) -> Path:
    """Find a part's folder, or the file that holds it.

    Args:
        model: the model the part belongs to, or, `is_alone`, also the part's own folder, file or repository.
        part: its name.
        allow_download: whether a Hub id may be downloaded.
        is_alone: whether the part was named alone.
    """
    path = Path(model)
    if path.is_file():
        _refuse_other_files(path)
        return path
    if path.is_dir():
        is_part = is_alone and ((path / _CONFIG).is_file() or not (path / part).is_dir())
        return path if is_part else path / part
    _refuse_unless_hub_id(model)
    return _hub_folder(model, "" if is_alone else f"{part}/", allow_download)


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
    """Find a part in the cache, or download it where that is allowed: in half precision if there is one."""
    local = hub_file(repo_id, f"{folder}{_CONFIG}", allow_download).parent
    if has_weights(local):
        return local
    stem = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
    fetch = partial(hub_file, repo_id, allow_download=allow_download)
    for name in (f"{stem}.fp16.safetensors", f"{stem}.safetensors"):
        with suppress(FileNotFoundError):
            return fetch(f"{folder}{name}").parent
    index = fetch(f"{folder}{stem}.safetensors.index.json")
    for name in sorted(set(places_of(index).values())):
        fetch(f"{folder}{name}")
    return index.parent


def _refuse_other_files(path: Path) -> None:
    if path.suffix.lower() in PICKLED:
        raise ValueError(pickle_refusal(path))
    if not is_safetensors(path) and path.suffix.lower() != ".gguf":  # that one is refused by its content
        raise ValueError(f"{path} is no safetensors file; choose one that ends in {' or '.join(ENDINGS)}.")


def _refuse_unless_hub_id(name: str) -> None:
    if is_safetensors(name):
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
    if not is_hub_id or (len(rest) == 1 and is_safetensors(path)):
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
