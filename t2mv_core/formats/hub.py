"""The Hugging Face Hub: files of its local cache, downloaded only where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def hub_folder(repo_id: str, patterns: Sequence[str], allow_download: bool) -> Path:
    """The local snapshot of a repository, of the files that fit the patterns.

    Raises:
        FileNotFoundError: it is not in the cache and may not, or could not, be downloaded.
    """
    from huggingface_hub import snapshot_download

    return _from_hub(
        repo_id,
        allow_download,
        lambda: snapshot_download(
            repo_id, allow_patterns=list(patterns), local_files_only=not allow_download
        ),
    )


def hub_file(repo_id: str, filename: str, allow_download: bool) -> Path:
    """One file of a repository; see `hub_folder` for what raises."""
    from huggingface_hub import hf_hub_download

    return _from_hub(
        repo_id,
        allow_download,
        lambda: hf_hub_download(repo_id, filename, local_files_only=not allow_download),
    )


def _from_hub(repo_id: str, allow_download: bool, fetch: Callable[[], str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(fetch())
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
