"""Pictures kept until something is said about them; bounded in number and in bytes."""

from __future__ import annotations

_MAX_PICTURES = 64
_MAX_BYTES = 33_554_432


class PictureBuffer:
    """By number; a frame that was dropped has no result, and its picture goes in time."""

    def __init__(self, *, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pictures: dict[int, bytes] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, number: int, encoded: bytes) -> None:
        """Keep a picture; the oldest make room, but for this one."""
        self.pop(number)
        self._pictures[number] = encoded
        self.num_bytes += len(encoded)
        while len(self) > 1 and (len(self) > _MAX_PICTURES or self.num_bytes > self._max_bytes):
            self.pop(next(iter(self._pictures)))

    def pop(self, number: int) -> bytes | None:
        """Hand a picture over; None: it is not kept."""
        encoded = self._pictures.pop(number, None)
        if encoded is not None:
            self.num_bytes -= len(encoded)
        return encoded

    def clear(self) -> None:
        """Drop them all."""
        self._pictures.clear()
        self.num_bytes = 0
