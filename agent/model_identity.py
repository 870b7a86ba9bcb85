"""What tells one model's contents from another's, without reading its weights.

A file of the hub's cache is named by what is in it. Any other weight file is known by its size, the
time it was last written, and its header. What was found out about a folder is kept beside it, so
that the processes of a service do not all find it out again. Small files are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SIDECAR = ".groundstream_identity.json"
"""In a model's folder: what is known of its weight files, by their paths."""
_READ = frozenset({".json", ".txt"})
_WEIGHTS = frozenset({".safetensors", ".pth"})
_MAX_HEADER_BYTES = 100_000_000
_HEAD_BYTES = 65_536


def model_identity(places: Iterable[Path], names: Iterable[str], *, kept: bool = True) -> str:
    """BLAKE2b-256 of what a model consists of.

    Args:
        places: folders and files.
        names: what stands for parts that are no files.
        kept: write what was found out into the folders, where that is allowed.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name in names:
        digest.update(name.encode())
    for place in places:
        folder = place.parent if place.is_file() else place
        sidecar = _Sidecar(folder)
        for file in [place] if place.is_file() else _files(place):
            digest.update(file.relative_to(folder).as_posix().encode())
            digest.update(sidecar.identity(file).encode())
        if kept:
            sidecar.write()
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("**/*")):
        if file.suffix in _READ | _WEIGHTS and file.name != SIDECAR and file.is_file():
            yield file


class _Sidecar:
    """Identities of a folder's weight files, each with the size and time it was found out for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, list[object]] = {}
        self._is_new = False
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            loaded = json.loads((folder / SIDECAR).read_text())
            self._known = {str(name): list(entry) for name, entry in loaded.items()}

    def identity(self, file: Path) -> str:
        """What stands for a file's contents."""
        if file.suffix in _READ:
            return hashlib.blake2b(file.read_bytes(), digest_size=32).hexdigest()
        if (blob := file.resolve()).parent.name == "blobs":
            return blob.name
        state = file.stat()
        stamp: list[object] = [state.st_size, state.st_mtime_ns]
        name = file.relative_to(self._folder).as_posix()
        known = self._known.get(name)
        if known is None or len(known) != 3 or known[:2] != stamp:
            known = self._known[name] = [*stamp, _weights_identity(file, stamp)]
            self._is_new = True
        return str(known[2])

    def write(self) -> None:
        """Keep what is new; a folder that may not be written to goes without."""
        if not self._is_new:
            return
        path = self._folder / SIDECAR
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(self._known))
            part.replace(path)


def _weights_identity(file: Path, stamp: list[object]) -> str:
    digest = hashlib.blake2b(json.dumps(stamp).encode(), digest_size=32)
    with file.open("rb", buffering=0) as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if file.suffix != ".safetensors" or length > _MAX_HEADER_BYTES:
            length = _HEAD_BYTES
        digest.update(start)
        digest.update(stream.read(length))
    return digest.hexdigest()
