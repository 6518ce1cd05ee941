"""The model as one value: where its parts come from (`ModelSources`), and those parts (`ModelBundle`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .adapter import create_camera_encoder, load_adapter
from .attention import install_multiview_attention
from .files import read_safetensors
from .lora import LoraHandle
from .memory import MemorySettings
from .schedule import NoiseSchedule, schedule_from_config
from .text import ClipTokenizer, clip_tokenizer
from .toybox import toybox_path

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

PRESETS = ("toybox", "toybox-teacher")
SHARED_KEY = "t2mv_rest"
"""Metadata key of a UNet file that holds only what differs from the model's own UNet (toybox teacher)."""
_WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors", "model.fp16.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class ModelSources:
    """Where the parts of a model come from.

    Attributes:
        model: "toybox", "toybox-teacher", a local folder in diffusers' layout, or a Hub id such as
            "stabilityai/stable-diffusion-xl-base-1.0".
        adapter: MV-Adapter file; None takes `mvadapter.safetensors` beside or inside the model's folder.
        unet: folder of another UNet (LCM-SDXL, say) than the model's own.
        scheduler: folder of another scheduler configuration than the model's own.
        allow_download: whether a Hub id may be downloaded; without, only the local cache is looked at.
    """

    model: str = "toybox"
    adapter: str | None = None
    unet: str | None = None
    scheduler: str | None = None
    allow_download: bool = False


@dataclass(frozen=True)
class ModelBundle:
    """A loaded text-to-multiview model; never changed, only replaced by a light copy over the same weights.

    Attributes:
        unet: with multiview attention installed.
        vae: pictures <-> latents.
        text_encoder: SDXL's first.
        text_encoder_2: SDXL's second, with the pooled output.
        camera_encoder: T2I-Adapter for camera 6-vectors.
        schedule: noise schedule and sampler.
        sources: what was loaded.
        loras: LoRAs acting on the UNet, see `lora`.
        memory: how much memory the UNet's calls may take, see `memory`.
    """

    unet: UNet2DConditionModel = field(repr=False)
    vae: AutoencoderKL = field(repr=False)
    text_encoder: CLIPTextModel = field(repr=False)
    text_encoder_2: CLIPTextModelWithProjection = field(repr=False)
    camera_encoder: T2IAdapter = field(repr=False)
    schedule: NoiseSchedule = field(repr=False)
    sources: ModelSources = field(default_factory=ModelSources)
    loras: tuple[LoraHandle, ...] = ()
    memory: MemorySettings = MemorySettings()

    @property
    def name(self) -> str:
        """What the model is called in metadata and reports."""
        return self.sources.model

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet."""
        return next(self.unet.parameters()).dtype

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether guidance is an input of the UNet (LCM) instead of a second pass."""
        return self.unet.config["time_cond_proj_dim"] is not None

    @property
    def latent_px(self) -> int:
        """Height and width of the latents."""
        return int(self.unet.config["sample_size"])

    @property
    def latent_channels(self) -> int:
        """Channels C of the latents."""
        return int(self.unet.config["in_channels"])

    @property
    def image_px(self) -> int:
        """Height and width of the pictures, pixels."""
        return self.latent_px * self.vae_scale_factor

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent pixel."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def tokenizer(self) -> ClipTokenizer:
        """Of the first text encoder."""
        return clip_tokenizer(int(self.text_encoder.config.vocab_size), pads_with_end=True)

    @property
    def tokenizer_2(self) -> ClipTokenizer:
        """Of the second text encoder."""
        return clip_tokenizer(int(self.text_encoder_2.config.vocab_size))

    def modules(self) -> dict[str, nn.Module]:
        """The big parts by name, for whoever manages memory."""
        names = ("unet", "vae", "text_encoder", "text_encoder_2", "camera_encoder")
        return {name: getattr(self, name) for name in names}

    def without_loras(self) -> ModelBundle:
        """The same model with no LoRA acting: the reference policy."""
        return replace(self, loras=())


def load_bundle(
    sources: ModelSources | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ModelBundle:
    """Load a model; every weight of every file must fit.

    Args:
        sources: where from; a string is `ModelSources(model=...)`.
        device: where to.
        dtype: precision of all parts.

    Raises:
        FileNotFoundError: a folder or file is missing, or a Hub id is not cached and may not be downloaded.
        ValueError: a file is damaged, holds NaN, or does not fit.
    """
    if isinstance(sources, str):
        sources = ModelSources(model=sources)
    parts = _resolve(sources)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    own_unet = parts.model / "unet"
    is_own = parts.unet.resolve() == own_unet.resolve()
    unet = _load_diffusers(UNet2DConditionModel, parts.unet, None if is_own else own_unet)
    vae = _load_diffusers(AutoencoderKL, parts.model / "vae")
    install_multiview_attention(unet)
    camera_encoder = create_camera_encoder(unet, 2 ** (len(vae.config["block_out_channels"]) - 1))
    load_adapter(unet, camera_encoder, parts.adapter)
    text_encoder, text_encoder_2 = _load_text_encoders(parts.model)
    schedule = schedule_from_config(_read_config(parts.scheduler / "scheduler_config.json"))
    if unet.config["time_cond_proj_dim"] is not None:
        # Only a distilled consistency model has this input; LCM-SDXL's UNet is often used with SDXL's folder.
        schedule = replace(schedule, sampler="lcm")
    bundle = ModelBundle(unet, vae, text_encoder, text_encoder_2, camera_encoder, schedule, sources)
    for module in bundle.modules().values():
        # Not the module's own `to`: diffusers' warns of modules to keep in float32, though there are none.
        nn.Module.to(module, device=device, dtype=dtype).eval().requires_grad_(False)
    return bundle


@dataclass(frozen=True)
class _Parts:
    model: Path
    unet: Path
    scheduler: Path
    adapter: Path


def _resolve(sources: ModelSources) -> _Parts:
    """Turn names into folders, before anything big is read."""
    if sources.model in PRESETS:
        model = toybox_path("model")
        own = toybox_path("teacher") if sources.model == "toybox-teacher" else model
        adapter = toybox_path("mvadapter.safetensors")
    else:
        model = own = _folder(sources.model, sources.allow_download)
        adapter = _existing(Path(sources.adapter)) if sources.adapter else _adapter_beside(model)
    unet = _folder(sources.unet, sources.allow_download) if sources.unet else own / "unet"
    scheduler = _folder(sources.scheduler, sources.allow_download) if sources.scheduler else own / "scheduler"
    return _Parts(model, unet, scheduler, adapter)


def _adapter_beside(model: Path) -> Path:
    for candidate in (model / "mvadapter.safetensors", model.parent / "mvadapter.safetensors"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"No MV-Adapter was named and there is no mvadapter.safetensors in or beside {model}; name the "
        "adapter's file (for SDXL: mvadapter_t2mv_sdxl.safetensors of huanngzh/mv-adapter)."
    )


def _folder(name: str, allow_download: bool) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise FileNotFoundError(
            f"There is no model folder {name!r}; use one of {', '.join(PRESETS)}, a local folder in "
            "diffusers' layout, or a Hub id such as 'stabilityai/stable-diffusion-xl-base-1.0'."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not allow_download))
    except LocalEntryNotFoundError as error:
        cure = "check name and network" if allow_download else "allow downloads, or give a local folder"
        raise FileNotFoundError(f"{name!r} is no local folder and not in the Hub cache; {cure}.") from error
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a local folder nor a Hub id; check the spelling."
        ) from error
    # Before it has an answer the client's own errors get through; they share a base with the Hub's.
    except (HfHubHTTPError.__bases__[0], OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"{name!r} could not be downloaded ({reason}); check name, network and disk."
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the model folder is incomplete, or the name is wrong.")
    return path


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_existing(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # not JSON, not text, or JSON that is not a table
        raise ValueError(f"{path} is not readable ({error}); fetch the folder again.") from error


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no safetensors weights (looked for {', '.join(_WEIGHT_NAMES)}).")


def _load_diffusers(model_class: Any, folder: Path, shared: Path | None = None) -> Any:
    model = model_class.from_config(_read_config(folder / "config.json"))
    _load_strictly(model, _weights_file(folder), shared)
    return model


def _load_text_encoders(model: Path) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    encoders = []
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for name, encoder_class in classes.items():
        encoder = encoder_class(CLIPTextConfig(**_read_config(model / name / "config.json")))
        _load_strictly(encoder, _weights_file(model / name))
        encoders.append(encoder)
    return encoders[0], encoders[1]


def _load_strictly(model: nn.Module, path: Path, shared: Path | None = None) -> None:
    """Fill a module; files and transformers disagree about a `text_model.` prefix, both are taken.

    A file whose metadata says `SHARED_KEY` holds only what differs from the weights in the folder `shared`.
    """
    tensors, metadata = read_safetensors(path)
    if SHARED_KEY in metadata and shared is not None:
        known = model.state_dict().keys()
        rest = read_safetensors(_weights_file(shared))[0]
        tensors = {**{key: tensor for key, tensor in rest.items() if key in known}, **tensors}
    own = model.state_dict()
    tensors.pop("text_model.embeddings.position_ids", None)  # a constant that older transformers saved
    fitted = {}
    for key, tensor in tensors.items():
        bare = key.removeprefix("text_model.")
        fitted[next((name for name in (key, bare, f"text_model.{bare}") if name in own), key)] = tensor
    missing, foreign = sorted(own.keys() - fitted.keys()), sorted(fitted.keys() - own.keys())
    wrong = [key for key in fitted.keys() & own.keys() if fitted[key].shape != own[key].shape]
    if missing or foreign or wrong:
        first = (missing or foreign or sorted(wrong))[0]
        what = "is missing" if missing else "is not known to the model" if foreign else "has the wrong shape"
        raise ValueError(
            f"{path} does not fit its config.json: {first!r} {what} ({len(missing)} missing, "
            f"{len(foreign)} foreign, {len(wrong)} of another shape). Fetch the folder again."
        )
    model.load_state_dict(fitted)
