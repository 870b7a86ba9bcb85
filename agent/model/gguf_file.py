"""GGUF files: what their header says, and their tensors expanded to floats.

Of the many ways in which GGUF packs numbers only those are known that a shipped model uses. Reads
headers ten times as fast as the format's own package, whose reader makes an array of every word
of a vocabulary. Knows no model.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.errors import CheckpointMismatch

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
"""GGUF's number of a type of value, in `struct`'s words."""
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class _Packing:
    """How a block of numbers is laid down."""

    block: int
    """Numbers."""
    size: int
    """Bytes."""
    expand: Callable[[Tensor], Tensor]
    """(blocks, size) bytes to (blocks, block) float32."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    packing: _Packing
    offset: int


class GGUFFile:
    """One file, mapped into memory; tensors are expanded when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            CheckpointMismatch: it cannot be read, or holds what is not known here.
        """
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read_header()
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise CheckpointMismatch(f"{path} is no GGUF file that is known: {error}") from error

    def _read_header(self) -> None:
        if self._bytes[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = len(_MAGIC)
        if (version := self._number("I")) not in _VERSIONS:
            raise ValueError(f"version {version}")
        num_tensors, num_fields = self._number("Q"), self._number("Q")
        self.fields: dict[str, Any] = {}
        """Every key of the header and its value."""
        for _ in range(num_fields):
            key = self._text()
            self.fields[key] = self._value(self._number("I"))
        self._places = dict(self._place() for _ in range(num_tensors))
        align = int(self.fields.get(_ALIGNMENT, 32))
        self._first = -(-self._at // align) * align

    def names(self) -> list[str]:
        """Of all tensors, in the file's order."""
        return list(self._places)

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        place = self._places[name]
        count = 1
        for side in place.shape:
            count *= side
        packing = place.packing
        size = count // packing.block * packing.size
        start = self._first + place.offset
        # Cutting the map copies, so that nothing holds on to the file.
        packed = torch.frombuffer(bytearray(self._bytes[start : start + size]), dtype=torch.uint8)
        return packing.expand(packed.view(-1, packing.size)).view(place.shape)

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack_from(f"<{kind}", self._bytes, self._at)
        self._at += struct.calcsize(kind)
        return value

    def _text(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._bytes[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            return self._number(_SCALARS[kind])
        of, length = self._number("I"), self._number("Q")
        return [self._value(of) for _ in range(length)]

    def _place(self) -> tuple[str, _Place]:
        name = self._text()
        # GGUF counts the sides of a tensor from the innermost.
        sides = [self._number("Q") for _ in range(self._number("I"))]
        kind = self._number("I")
        if kind not in _PACKINGS:
            raise ValueError(f"{name} is packed in the way {kind}")
        return name, _Place(tuple(reversed(sides)), _PACKINGS[kind], self._number("Q"))


def _float32(packed: Tensor) -> Tensor:
    return packed.view(torch.float32)


def _halves(packed: Tensor) -> Tensor:
    return packed.contiguous().view(torch.float16).float()


def _q4_1(packed: Tensor) -> Tensor:
    """A scale, a least value, and 32 numbers of four bits: the low halves, then the high ones."""
    nibbles = packed[:, 4:]
    numbers = torch.cat([nibbles & 15, nibbles >> 4], dim=1).float()
    return numbers.mul_(_halves(packed[:, :2])).add_(_halves(packed[:, 2:4]))


def _q8_0(packed: Tensor) -> Tensor:
    """A scale and 32 signed bytes."""
    numbers = packed[:, 2:].contiguous().view(torch.int8).float()
    return numbers.mul_(_halves(packed[:, :2]))


_PACKINGS = {
    0: _Packing(1, 4, _float32),
    3: _Packing(32, 20, _q4_1),
    8: _Packing(32, 34, _q8_0),
}
"""By GGUF's number of a tensor's type."""
