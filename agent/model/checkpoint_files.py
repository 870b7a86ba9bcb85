"""Safetensors files of a model directory: which there are, what their headers say, their tensors.

Knows neither the model nor what a key means.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from agent.errors import CheckpointMismatch

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REOPEN_BYTES = 64 * 1024 * 1024
"""A file is mapped anew after this much: pages that were read count as memory while mapped."""


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """In safetensors' words: F32, BF16, I64 ..."""
    file: Path

    @property
    def num_elements(self) -> int:
        """Numbers the tensor holds."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def is_floating(self) -> bool:
        """Whether it can be a weight as it stands."""
        return self.dtype in {"F64", "F32", "F16", "BF16"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointMismatch: missing or not a JSON object.
    """
    try:
        loaded = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointMismatch(f"{path} does not exist; copy all of the model's files") from error
    except ValueError as error:
        raise CheckpointMismatch(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointMismatch(f"{path} must hold a JSON object, not {type(loaded).__name__}")
    return loaded


def weight_files(directory: Path) -> list[Path]:
    """The weight file of a directory, or its shards in order of name.

    Raises:
        CheckpointMismatch: none, a damaged index, or a shard that does not exist.
    """
    single, index = directory / _SINGLE, directory / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointMismatch(f"{directory} holds neither {_SINGLE} nor {_INDEX}")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointMismatch(f"{index} is not a weight index; download it again") from error
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise CheckpointMismatch(f"{index} names {absent[0]}, which does not exist")
    return [directory / name for name in names]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a directory by its key; only headers are read.

    Raises:
        CheckpointMismatch: as `weight_files`; a file cannot be read or is cut short.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        found |= header(path)
    return found


def header(path: Path) -> dict[str, StoredTensor]:
    """What one file holds.

    Raises:
        CheckpointMismatch: it cannot be read or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {
                key: StoredTensor(tuple(part.get_shape()), str(part.get_dtype()), path)
                for key, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointMismatch(f"{path} cannot be read ({error}); download it again") from error


def tensors(path: Path, keys: Iterable[str], *, device: str) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of one file, each read straight to `device` when its turn comes."""
    waiting = deque(keys)
    while waiting:
        read = 0
        with safe_open(path, framework="pt", device=device) as file:
            while waiting and read < _REOPEN_BYTES:
                key = waiting.popleft()
                tensor = file.get_tensor(key)
                read += tensor.numel() * tensor.element_size()
                yield key, tensor
