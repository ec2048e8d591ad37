"""Download checkpoints from the Hugging Face hub, and only the files that will be read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sega_bench.errors import UserError


class HubUnreachableError(UserError):
    """The hub cannot be reached, and the files are not in the local cache."""


def fetch(repo: str, revision: str | None, names: Iterable[str], where: str) -> Path:
    """Download files of a repository into the hub's cache.

    Args:
        repo: hub id.
        revision: branch, tag or commit.
        names: files or patterns; names that the repository lacks are ignored.
        where: start of an error message.

    Returns:
        The snapshot's folder, whose name is the commit.

    Raises:
        HubUnreachableError: no network, and not all files are in the cache.
        UserError: the hub refuses, or the download fails.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        snapshot = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(names), etag_timeout=5
        )
        return Path(snapshot)
    except GatedRepoError as error:
        raise UserError(f"{where}, which is gated: accept its terms, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{where}: neither a folder here nor a repository on the hub") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{where}: the repository has no model.revision={revision}") from error
    except HFValidationError as error:
        raise UserError(f"{where}, which is no hub id ({error})") from error
    except LocalEntryNotFoundError as error:
        if status := _http_refusal(error.__cause__):
            raise UserError(f"{where}: the hub refuses it (HTTP {status})") from error
        raise _unreachable(where) from error
    except Exception as error:  # a full disk or a lost connection: several libraries, several types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: it cannot be fetched ({type(error).__name__}: {reason})") from error


def _http_refusal(error: Any) -> int | None:
    """The HTTP status of the hub's answer if it is a client error (4xx), else None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and 400 <= status < 500 else None


def list_names(repo: str, snapshot: Path, where: str) -> Collection[str]:
    """The names of all files of a snapshot's commit; without a network, of the cached files.

    Raises:
        HubUnreachableError: no network, and no weights in the cache.
    """
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(repo, revision=snapshot.name).siblings
    except Exception as error:  # each way of having no network raises another type
        cached = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
        if not any(name.endswith(".safetensors") for name in cached):
            raise _unreachable(where) from error
        return cached
    return {sibling.rfilename for sibling in siblings or ()}


def _unreachable(where: str) -> HubUnreachableError:
    return HubUnreachableError(
        f"{where}: no such folder here, and the hub cannot be reached; download it where there is a network "
        "and give the folder: model.path=/path/to/folder"
    )
