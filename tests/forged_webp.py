"""A lossless WebP that no encoder writes: as many sets of prefix codes as the format can count.

After the specification of the WebP lossless bitstream (RFC 9649, section 3).
"""

from __future__ import annotations

import struct

_MAX_SETS = 65_536
_BLOCK = 4
"""The smallest block of pixels that chooses a set of its own."""
_LENGTH_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)


class _Bits:
    """Bits, the least significant first."""

    def __init__(self) -> None:
        self._bytes, self._held, self._count = bytearray(), 0, 0

    def put(self, value: int, count: int) -> None:
        self._held |= value << self._count
        self._count += count
        while self._count >= 8:
            self._bytes.append(self._held & 255)
            self._held >>= 8
            self._count -= 8

    def bytes(self) -> bytes:
        return bytes(self._bytes) + bytes([self._held, 0])

    def one_symbol(self) -> None:
        """A simple code of the symbol 0, which takes no bits."""
        self.put(0b0001, 4)

    def bytes_code(self, alphabet: int) -> None:
        """A code of eight bits for each of the first 256 symbols; the others have none."""
        self.put(0, 1)
        lengths = {8: 1, 18: 1}
        self.put(max(map(_LENGTH_ORDER.index, lengths)) + 1 - 4, 4)
        for symbol in _LENGTH_ORDER[: max(map(_LENGTH_ORDER.index, lengths)) + 1]:
            self.put(lengths.get(symbol, 0), 3)
        self.put(0, 1 + 256)
        if alphabet > 256:
            self.put(1, 1)
            self.put(alphabet - 256 - 11, 7)


def forged_webp(side: int = 1024) -> bytes:
    """A black square with a set of codes for each block of 4x4 pixels, up to 65,536 of them."""
    bits = _Bits()
    bits.put(0x2F, 8)
    bits.put(side - 1, 14)
    bits.put(side - 1, 14)
    bits.put(0, 4 + 1)  # No alpha, version 0, no transform.
    bits.put(1 | 11 << 1, 5)  # A colour cache of 2,048 entries.
    bits.put(1, 1 + 3)  # Sets by blocks of the smallest size.
    bits.put(0, 1)
    bits.bytes_code(280)
    bits.bytes_code(256)
    for _ in range(3):
        bits.one_symbol()
    num_blocks = (side // _BLOCK) ** 2
    num_sets = min(_MAX_SETS, num_blocks)
    for block in range(num_blocks):
        for part in ((block % num_sets) & 255, (block % num_sets) >> 8):
            bits.put(int(f"{part:08b}"[::-1], 2), 8)
    for _ in range(5 * num_sets):
        bits.one_symbol()
    body = bits.bytes()
    body += bytes(len(body) & 1)
    chunk = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk
