"""From what Load Model's inputs name to files: presets, folders, checkpoints, separate UNets and VAEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...t2mv_core.formats.sources import IMAGE_ADAPTER_FILE, TOYBOX_PRESETS
from ..common.checks import Field, check_choice, check_fields, find_choice
from ..common.folders import (
    ADAPTER_FOLDER,
    digest,
    find_file,
    fingerprint,
    folders_with,
    is_safetensors,
    list_diffusers_folders,
    list_files,
    list_unet_folders,
    refuse_pickle,
)

if TYPE_CHECKING:
    from ...t2mv_core.formats.sources import ModelSources

BUNDLED = {name.replace("-", " "): name for name in TOYBOX_PRESETS}  # as shown -> as the core knows it
PUBLISHED = {"LCM-SDXL": "lcm-sdxl", "SDXL": "sdxl"}
DIFFUSERS_PREFIX, CHECKPOINT_PREFIX = "diffusers/", "checkpoints/"
OWN = "the model's own"
UNET_FOLDER, VAE_FOLDER, CHECKPOINT_FOLDER = "diffusion_models", "vae", "checkpoints"
# Names under which people keep the published files: of the file or of a folder above it, "-" as "_".
_BASE_NAMES = (
    "stable_diffusion_xl_base_1.0", "sd_xl_base_1.0", "sd_xl_base_1.0_0.9vae", "sdxl_base_1.0", "sdxl_base",
)  # fmt: skip
_LCM_NAMES = ("lcm_sdxl", "lcm_sdxl_unet", "lcm_sdxl_fp16")
_VAE_NAMES = ("sdxl_vae_fp16_fix", "sdxl.vae", "sdxl_vae_fp16fix", "sdxl_fp16_vae")
_ADAPTER_NAMES = ("mvadapter_t2mv_sdxl",)
_WHERE = {  # part -> what to fetch and where to put it
    "model": "SDXL base 1.0 (huggingface.co/stabilityai/stable-diffusion-xl-base-1.0: "
    "sd_xl_base_1.0.safetensors into models/checkpoints, or the folder in diffusers' format as "
    "models/diffusers/stable-diffusion-xl-base-1.0)",
    "unet": "the few-step UNet (huggingface.co/latent-consistency/lcm-sdxl: "
    "diffusion_pytorch_model.fp16.safetensors as models/diffusion_models/lcm-sdxl.safetensors)",
    "vae": "the VAE (huggingface.co/madebyollin/sdxl-vae-fp16-fix: sdxl.vae.safetensors as "
    "models/vae/sdxl-vae-fp16-fix.safetensors)",
    "adapter": "the MV-Adapter (huggingface.co/huanngzh/mv-adapter: mvadapter_t2mv_sdxl.safetensors into "
    "models/mvadapter)",
}


@dataclass(frozen=True)
class ModelChoice:
    """What the node's inputs say; None where an input is linked and not known yet."""

    model: str | None = None
    adapter: str | None = OWN
    unet: str | None = OWN
    vae: str | None = OWN
    download: bool | None = False


def list_models() -> list[str]:
    """Return everything Load Model offers."""
    folders = [DIFFUSERS_PREFIX + name for name in sorted(list_diffusers_folders())]
    checkpoints = [CHECKPOINT_PREFIX + name for name in list_files(CHECKPOINT_FOLDER)]
    return [*BUNDLED, *PUBLISHED, *folders, *checkpoints]


def _part(name: str, folder: str, tooltip: str, is_optional: bool = True) -> Field:
    """Offer the model's own part and the files of a folder."""
    return Field(
        name, OWN, tooltip, choices=lambda: [OWN, *list_files(folder)], remedy=_REMEDY,
        is_optional=is_optional, is_advanced=True,
    )  # fmt: skip


_REMEDY = "Choose one of the list, or put the file into ComfyUI's folder and refresh."
FILES = {
    each.name: each
    for each in (
        Field(
            "model", "toybox",
            "'toybox' is the bundled few-step model (4 steps), 'toybox teacher' the one it was distilled "
            "from (25 steps); 'toybox image' and its teacher draw views of a picture. 'LCM-SDXL' (8 steps) "
            "and 'SDXL' are the published weights, looked for in ComfyUI's folders. 'diffusers/…' are models "
            "in diffusers' folder format in models/diffusers, 'checkpoints/…' single-file SDXL checkpoints "
            "in models/checkpoints.",
            choices=list_models, remedy=_REMEDY,
        ),
        _part(
            "adapter", ADAPTER_FOLDER,
            "MV-Adapter weights: those that lie with the model, for SDXL models "
            "mvadapter_t2mv_sdxl.safetensors, or another file from models/mvadapter: "
            f"{IMAGE_ADAPTER_FILE} draws views of a picture. Has no effect on the toybox models.",
            is_optional=False,
        ),
        _part(
            "unet", UNET_FOLDER,
            "Another UNet than the model's, from models/diffusion_models, in diffusers' or the original "
            "layout: LCM-SDXL's, for example, which needs few steps.",
        ),
        _part(
            "vae", VAE_FOLDER,
            "Another VAE than the model's, from models/vae: for SDXL in float16 choose sdxl-vae-fp16-fix, "
            "the original one gives black pictures there.",
        ),
        Field(
            "download", False,
            "Whether files of LCM-SDXL and SDXL that are neither in ComfyUI's folders nor in the Hugging "
            "Face cache may be fetched (8 GB). Off: nothing touches the network.",
            is_optional=True, is_advanced=True,
        ),
    )
}  # fmt: skip


def check_model_choice(choice: ModelChoice) -> None:
    """Refuse what is not there, before anything is loaded.

    Raises:
        ValueError: an unknown name, parts for a bundled model, or missing files with what to fetch.
    """
    for name in (choice.model, choice.adapter, choice.unet, choice.vae):
        refuse_pickle(name)
    check_fields(FILES.values(), vars(choice))
    if choice.model in BUNDLED:
        for name in ("unet", "vae"):
            if getattr(choice, name) not in (OWN, None):
                raise ValueError(f"{choice.model} works with its own {name} only; set {name} to {OWN!r}.")
    if None not in (choice.model, choice.adapter, choice.unet, choice.vae, choice.download):
        _check_files(choice)


def find_sources(choice: ModelChoice) -> ModelSources:
    """Say where the core finds the parts: ComfyUI's folders first, then the published Hub ids."""
    from ...t2mv_core.formats.sources import ModelSources, published_sources

    if choice.model in BUNDLED:
        return ModelSources(BUNDLED[choice.model])
    adapter = _named(ADAPTER_FOLDER, choice.adapter)
    unet, vae = _named(UNET_FOLDER, choice.unet), _named(VAE_FOLDER, choice.vae)
    if choice.model not in PUBLISHED:
        path = _model_path(choice.model or "")
        has_adapter = any((folder / "mvadapter.safetensors").is_file() for folder in (path, path.parent))
        if not has_adapter:
            adapter = adapter or _known_file(ADAPTER_FOLDER, _ADAPTER_NAMES)
        return ModelSources(str(path), adapter=adapter, unet=unet, vae=vae)
    adapter = adapter or _known_file(ADAPTER_FOLDER, _ADAPTER_NAMES)
    adapter = adapter or _known_adapter()
    parts = list_unet_folders()
    vae = vae or _known_file(VAE_FOLDER, _VAE_NAMES) or _known_folder(parts, _VAE_NAMES)
    if choice.model == "LCM-SDXL":
        unet = unet or _known_file(UNET_FOLDER, _LCM_NAMES) or _known_folder(parts, _LCM_NAMES)
    sources = ModelSources(PUBLISHED[choice.model], adapter=adapter, unet=unet, vae=vae)
    sources = published_sources(replace(sources, allow_download=bool(choice.download)))
    needed = ("text_encoder", "text_encoder_2", *([] if sources.unet else ["unet"]))
    base = _known_folder(list_diffusers_folders(), _BASE_NAMES, needed)
    base = base or _known_file(CHECKPOINT_FOLDER, _BASE_NAMES)
    return replace(sources, model=base or sources.model)


def identify(sources: ModelSources) -> str:
    """Return the identity of all files of a model: equal exactly when the same would be loaded."""
    from ...t2mv_core.formats.sources import resolve_sources

    try:
        files = resolve_sources(replace(sources, allow_download=False))
    except FileNotFoundError as error:
        return digest(f"not here: {error}")
    paths = {path for path in vars(files).values() if path is not None}
    return digest("|".join(f"{path}>{fingerprint(path)}" for path in sorted(paths)))


def _check_files(choice: ModelChoice) -> None:
    from ...t2mv_core.formats.sources import missing_parts

    sources = find_sources(choice)
    missing = {} if sources.allow_download else missing_parts(sources)
    if not missing:
        return
    if choice.model in PUBLISHED:
        wanted = "; ".join(_WHERE[part] for part in missing)
        raise ValueError(f"{choice.model} needs files that are not here: {wanted}. Or switch download on.")
    if "adapter" in missing:
        raise ValueError(f"{choice.model} has no MV-Adapter with it. Fetch {_WHERE['adapter']}.")
    raise ValueError(next(iter(missing.values())))


def _named(folder: str, name: str | None) -> str | None:
    return None if name in (None, OWN) else str(find_file(folder, name))


def _model_path(model: str) -> Path:
    if model.startswith(CHECKPOINT_PREFIX):
        return find_file(CHECKPOINT_FOLDER, model.removeprefix(CHECKPOINT_PREFIX))
    folders = list_diffusers_folders()
    name = model.removeprefix(DIFFUSERS_PREFIX)
    check_choice("model", name, list(folders), "Choose one of the list.")
    return folders[find_choice(name, list(folders)) or name]


def _known_file(folder: str, names: tuple[str, ...]) -> str | None:
    """Return the first listed file that is kept under one of the known names."""
    return next((str(find_file(folder, name)) for name in list_files(folder) if _is_known(name, names)), None)


def _known_folder(
    folders: dict[str, Path], names: tuple[str, ...], parts: Sequence[str] = ("",)
) -> str | None:
    """Return the first folder that is kept under one of the known names, with weights in all these parts."""
    from ...t2mv_core.formats.shards import has_weights

    known = (path for listed, path in folders.items() if _is_known(listed, names))
    return next((str(path) for path in known if all(has_weights(path / part) for part in parts)), None)


def _known_adapter() -> str | None:
    """Return the adapter's file in another program's Hub cache below models/diffusers."""
    from ...t2mv_core.formats.sources import ADAPTER_FILE

    paths = (folder / ADAPTER_FILE for folder in folders_with(ADAPTER_FILE).values())
    return next((str(path) for path in paths if path.is_file()), None)


def _is_known(listed: str, names: tuple[str, ...]) -> bool:
    path = PurePosixPath(listed.replace("\\", "/"))
    stem = path.stem if is_safetensors(path.name) else path.name
    # A Hub's cache calls the folder of a repository models--<owner>--<name>.
    parts = (part.rpartition("models--")[2].rpartition("--")[2] for part in (*path.parts[:-1], stem))
    return any(part.lower().replace("-", "_") in names for part in parts)
