"""Protobuf's wire format by hand, for messages that no generated code would write."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """A number, seven bits a byte, the least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content
