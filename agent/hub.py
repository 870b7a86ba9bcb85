"""Models of the Hugging Face hub: their names, the cache they are kept in, and how they get there.

A name is `owner/model`, or `owner/model@revision`. What has been fetched stays as it is: the newest
commit is asked for only when a model is fetched, never when one is started. Downloads go through
huggingface_hub into its own cache, so what other programs fetched is found, and the reverse. Large
files continue where an earlier attempt ended. Loads no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import ModelNotFetched

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_logger = logging.getLogger(__name__)

Report = Callable[[str], object]

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<model>.+)")
_FILES = ("*.json", "*.txt", "*.safetensors")
_WEIGHTS = ".safetensors"
_LARGE_BYTES = 10_000_000
_MARGIN_BYTES = 100_000_000
"""Left free on the disk, since others write there too."""


@dataclass(frozen=True)
class HubName:
    """Where a model is on the hub."""

    repo: str
    """`owner/model`."""
    revision: str | None = None
    """Branch, tag or commit; None: the cached commit of the main branch."""

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The name in a text; None where it is none, or names something on this machine."""
        found = _NAME.fullmatch(text)
        if found is None or Path(text).exists():
            return None
        return cls(found["repo"], found["revision"])

    def pinned(self, snapshot: Path) -> HubName:
        """The same at the commit that a snapshot folder holds."""
        return HubName(self.repo, snapshot.name)


def name_of_snapshot(folder: Path) -> str | None:
    """`owner/model` where a folder is a snapshot in a hub cache."""
    folder = folder.absolute()
    found = _SNAPSHOT.fullmatch(folder.parent.parent.name)
    if found is None or folder.parent.name != "snapshots":
        return None
    return f"{found['owner']}/{found['model']}"


def cached(name: HubName) -> Path | None:
    """The snapshot folder of a model that has been fetched completely; asks nobody."""
    place = _repository(name.repo)
    revision = name.revision or "main"
    if not _COMMIT.fullmatch(revision):
        try:
            revision = (place / "refs" / revision).read_text().strip()
        except OSError:
            return None
    snapshot = place / "snapshots" / revision
    return snapshot if _is_complete(snapshot) else None


def local_or_fetched(name: HubName, *, report: Report = _logger.warning) -> Path:
    """The snapshot folder of a model, fetched if it is not here.

    Raises:
        ModelNotFetched: it is not here, and could not be fetched.
    """
    return cached(name) or fetch(name, report=report)


def fetch(name: HubName, *, report: Report = _logger.warning) -> Path:
    """Bring the commit that a name stands for today onto this machine.

    Args:
        name: the model.
        report: told, in one line each, what is fetched and how far it is.

    Returns:
        The snapshot folder, whose name is the commit.

    Raises:
        ModelNotFetched: there is no such model, no way to it, no room, or not what was announced.
    """
    announced = _announced(name)
    place, snapshot, absent = announced.place, announced.snapshot, announced.absent
    if absent:
        _check_room(name, place, announced.left_bytes)
        report(
            f"fetching {name} ({announced.left_bytes / 1e9:.2f} GB in {len(absent)} files) "
            f"into {place}"
        )
    for number, file in enumerate(absent, 1):
        report(f"  {number} of {len(absent)}: {file.rfilename}, {(file.size or 0) / 1e6:.1f} MB")
        _fetch_file(name, snapshot.name, place, file)
    _note_reference(place, name.revision or "main", snapshot.name)
    report(f"{name.repo} is here, at commit {snapshot.name[:7]}")
    return snapshot


def left_bytes(name: HubName) -> int:
    """How much of a model is still to be fetched, as the hub says; fetches nothing.

    Raises:
        ModelNotFetched: there is no such model, or no way to the hub.
    """
    return _announced(name).left_bytes


@dataclass(frozen=True)
class _Announced:
    """What the hub says of a model's newest commit."""

    place: Path
    snapshot: Path
    absent: list[RepoSibling]
    """Files that are not here, weights last: where they are, all of the rest is too."""

    @property
    def left_bytes(self) -> int:
        return sum(_left_bytes(self.place, file) for file in self.absent)


def _announced(name: HubName) -> _Announced:
    with _explained(name):
        from huggingface_hub import HfApi

        info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    wanted = [
        file for file in info.siblings or () if any(fnmatch(file.rfilename, p) for p in _FILES)
    ]
    if info.sha is None or not any(file.rfilename.endswith(_WEIGHTS) for file in wanted):
        raise ModelNotFetched(
            f"{name.repo} holds no *{_WEIGHTS} on the hub, the only kind of weights that is read; "
            "look there for another revision (--model OWNER/MODEL@REVISION) or another model"
        )
    wanted.sort(key=lambda file: (file.rfilename.endswith(_WEIGHTS), file.rfilename))
    place = _repository(name.repo)
    snapshot = place / "snapshots" / info.sha
    absent = [file for file in wanted if not (snapshot / file.rfilename).exists()]
    return _Announced(place, snapshot, absent)


def _fetch_file(name: HubName, commit: str, place: Path, file: RepoSibling) -> None:
    from huggingface_hub import hf_hub_download

    with _explained(name):
        if (file.size or 0) > _LARGE_BYTES and (blob := _blob(place, file)) is not None:
            _fetch_large(name, commit, blob, file)
        path = Path(hf_hub_download(name.repo, file.rfilename, revision=commit))
    if file.size is not None and path.stat().st_size != file.size:
        found = path.stat().st_size
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ModelNotFetched(
            f"{file.rfilename} of {name.repo} came with {found} bytes in place of {file.size} and "
            "was deleted; run the same command again"
        )


def _fetch_large(name: HubName, commit: str, blob: Path, file: RepoSibling) -> None:
    """Download a file to its blob; huggingface_hub itself begins anew in each process."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        WeakFileLock,
        build_hf_headers,
    )

    part, lock = _part(blob), _lock(blob)
    for path in (part, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if part.exists() and part.stat().st_size > (file.size or 0):
            part.unlink()  # it can never become the file
        with part.open("ab") as stream:
            http_get(
                hf_hub_url(name.repo, file.rfilename, revision=commit),
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.rfilename,
            )
        if _SHA256.fullmatch(blob.name) and _sha256(part) != blob.name:
            part.unlink()
            raise ModelNotFetched(
                f"{file.rfilename} of {name.repo} is not what the hub announced (its SHA-256 "
                "differs) and was deleted; run the same command again"
            )
        part.replace(blob)


@contextmanager
def _explained(name: HubName) -> Iterator[None]:
    """What huggingface_hub raises, as one line that says what to do."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFetched(
            f"{name.repo} is given only to those who accepted its terms on the hub: accept them "
            "there, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFetched(
            f"there is neither a folder {str(name)!r} nor such a model on the hub; the published "
            "one is omlab/VLM-FO1-3B-v01; for a private one run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFetched(
            f"{name.repo} has no revision {name.revision!r}; leave it out for the newest"
        ) from error
    except HFValidationError as error:
        raise ModelNotFetched(f"{str(name)!r} is no name of the hub; write OWNER/MODEL") from error
    except (OSError, httpx.HTTPError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise ModelNotFetched(
                f"the disk became full while {name.repo} was fetched; make room, or set HF_HOME "
                "to a folder on a larger disk, and run the same command again: it goes on there"
            ) from error
        raise ModelNotFetched(_unreachable(name, error)) from error


def _unreachable(name: HubName, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if "Consistency check" in reason:
        return (
            f"a file of {name.repo} did not come with the size that was announced; "
            "run the same command again"
        )
    place = _repository(name.repo)
    if any(place.glob("blobs/*.part")):
        return (
            f"the hub stopped answering while {name.repo} was fetched ({reason}); "
            "run the same command again, it goes on where it ended"
        )
    return (
        f"{name} is not on this machine and the hub cannot be reached ({reason}); fetch it where "
        f"there is a network (`groundstream model fetch {name}`) and copy {place}, or give a folder"
    )


def _check_room(name: HubName, place: Path, num_bytes: int) -> None:
    folder = next(one for one in (place, *place.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _MARGIN_BYTES:
        raise ModelNotFetched(
            f"{name.repo} needs {num_bytes / 1e9:.1f} GB more, and {folder} has {free / 1e9:.1f} "
            "GB free; make room, or set HF_HOME to a folder on a larger disk"
        )


def _left_bytes(place: Path, file: RepoSibling) -> int:
    blob = _blob(place, file)
    if blob is None:
        return file.size or 0
    if blob.exists():
        return 0
    part = _part(blob)
    return (file.size or 0) - (part.stat().st_size if part.exists() else 0)


def _blob(place: Path, file: RepoSibling) -> Path | None:
    """Where the cache keeps a file's bytes: under its ETag."""
    lfs: Any = file.lfs
    name = file.blob_id if lfs is None else lfs["sha256"]
    return place / "blobs" / name if name else None


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.part")


def _lock(blob: Path) -> Path:
    """The lock that huggingface_hub uses for the same file."""
    place = blob.parent.parent
    return place.parent / ".locks" / place.name / f"{blob.name}.lock"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _note_reference(place: Path, revision: str, commit: str) -> None:
    """Let the name find the commit without the hub."""
    if _COMMIT.fullmatch(revision):
        return
    reference = place / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


def _is_complete(snapshot: Path) -> bool:
    """Whether its weights are there, which are fetched last."""
    if not (snapshot / "config.json").exists():
        return False
    indices = list(snapshot.glob("*.safetensors.index.json"))
    try:
        named = {f for i in indices for f in json.loads(i.read_text())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    if not named:
        return any(snapshot.glob(f"*{_WEIGHTS}"))
    return all((snapshot / file).exists() for file in named)


def _repository(repo: str) -> Path:
    """The folder of a model in the cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
