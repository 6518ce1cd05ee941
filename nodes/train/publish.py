"""The finished LoRA among ComfyUI's LoRAs: where it goes, and that nothing of anybody else is overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...t2mv_core.formats.atomic import replaced

SUBFOLDER = "t2mv"
RECORD_NAME = "published.json"
_publications = Counter[Path]()
"""How often this process published the LoRA of a run folder."""
_losses: dict[Path, str] = {}
"""What `name_loss` returned when the LoRA was last missing, by run folder."""


def listed_name(name: str) -> str:
    """Return the name of a run's LoRA as ComfyUI lists it, and as a Load LoRA node names it."""
    return os.path.join(SUBFOLDER, f"{name}.safetensors")


def find_place(name: str, run_dir: Path, lora_dirs: Sequence[Path]) -> Path:
    """Choose the file for a run's LoRA: the one it wrote before, else one in the first writable folder.

    Args:
        name: checked name of the LoRA.
        run_dir: its run folder.
        lora_dirs: ComfyUI's folders for LoRAs, in its order.

    Raises:
        FileExistsError: there is such a file, and this run did not write it.
        PermissionError: no folder can be written.
    """
    present = _find(name, lora_dirs)
    if present is not None:
        if _digest(present) not in _published(run_dir):
            raise FileExistsError(
                f"{present} exists and was not written by the run in {run_dir}; give the LoRA another name, "
                "or move the file away."
            )
        _probe(present.parent)
        return present
    for folder in [path for path in lora_dirs if path.is_dir()] or list(lora_dirs[:1]):
        path = folder / listed_name(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _probe(path.parent)
        except OSError:
            continue
        return path
    raise PermissionError(
        f"None of ComfyUI's folders for LoRAs can be written ({', '.join(map(str, lora_dirs))}); give the "
        "user that runs ComfyUI the right to write into one of them."
    )


def publish(run_dir: Path, place: Path) -> Path:
    """Copy the run's LoRA to its place, replacing what this run wrote there before.

    Returns:
        The run's file: that of the best evaluation, or the newest.

    Raises:
        FileNotFoundError: the run has no LoRA.
        FileExistsError: meanwhile somebody else put a file there.
        OSError: the place cannot be written; what was there is untouched.
    """
    source = newest_lora(run_dir)
    earlier = _published(run_dir)
    if place.exists() and _digest(place) not in earlier:
        raise FileExistsError(
            f"{place} was written by another program while this run went on; its LoRA is {source}."
        )
    with replaced(place) as temporary:
        shutil.copyfile(source, temporary)
        # The record comes first: a file without its record would count as somebody else's.
        record = json.dumps(sorted({*earlier, _digest(temporary)}))
        with replaced(run_dir / RECORD_NAME) as temporary_record:
            temporary_record.write_text(record, encoding="utf-8")
    _publications[run_dir] += 1
    return source


def newest_lora(run_dir: Path) -> Path:
    """Return the LoRA of the best evaluation, where evaluations choose one, else of the last epoch.

    Raises:
        FileNotFoundError: there is none.
    """
    best = run_dir / "lora" / "best.safetensors"
    if best.is_file():
        return best
    paths = (run_dir / "lora").glob("epoch_*.safetensors")
    epochs = {int(number): path for path in paths if (number := path.stem.removeprefix("epoch_")).isdecimal()}
    newest = epochs[max(epochs)] if epochs else None
    if newest is None:
        raise FileNotFoundError(f"The run in {run_dir} left no LoRA; look into its log.")
    return newest


def name_loss(name: str, run_dir: Path, lora_dirs: Sequence[Path]) -> str:
    """Return a text that changes each time the run's LoRA goes missing; "" if it never did.

    It stays the same once the LoRA is back, so that ComfyUI does not repeat the run.
    """
    if is_lost(name, run_dir, lora_dirs):
        _losses[run_dir] = f"lost after {_publications[run_dir]}"
    return _losses.get(run_dir, "")


def is_lost(name: str, run_dir: Path, lora_dirs: Sequence[Path]) -> bool:
    """Return whether the run's LoRA was in its place once and is there no more.

    What this process published is also lost when its run folder was deleted, with the LoRA or without.
    """
    has_record, has_lora = (run_dir / RECORD_NAME).is_file(), _find(name, lora_dirs) is not None
    was_published = has_record or _publications[run_dir] > 0
    return was_published and not (has_record and has_lora)


def _find(name: str, lora_dirs: Sequence[Path]) -> Path | None:
    paths = [folder / listed_name(name) for folder in lora_dirs]
    return next((path for path in paths if path.exists()), None)


def _published(run_dir: Path) -> list[str]:
    """Return the digests of the files that this run published so far."""
    try:
        digests = json.loads((run_dir / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return digests if isinstance(digests, list) else []


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _probe(folder: Path) -> None:
    """Raise OSError unless a file can be made in a folder; access rights alone do not tell."""
    with tempfile.TemporaryFile(dir=folder):
        pass
