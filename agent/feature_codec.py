"""Frame features to bytes and back: a checked header and raw buffers, never pickle.

Layout: magic, version, header length; BLAKE2b-256 of all else; a JSON header (key, sizes, names,
dtypes and shapes); the arrays, row-major, in header order. Knows no cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.detections import Proposals
from agent.features import FrameFeatures

_MAGIC = b"GSFF"
_VERSION = 3
_PREFIX = struct.Struct("<4sHI")
_CHECKSUM_BYTES = 32
_MAX_SIDE = 2**31 - 1
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}

_DIMENSIONS = {
    "xyxy": 2,
    "objectness": 1,
    "evidence": 2,
    "image_tokens": 2,
    "primary_regions": 2,
    "auxiliary_regions": 2,
}


class CorruptFeatures(Exception):
    """The bytes are not what `encode_features` wrote for this key."""


def _arrays(features: FrameFeatures) -> dict[str, NDArray[Any]]:
    return {
        "xyxy": features.proposals.xyxy,
        "objectness": features.proposals.objectness,
        "evidence": features.proposals.evidence,
        "image_tokens": features.image_tokens,
        "primary_regions": features.primary_regions,
        "auxiliary_regions": features.auxiliary_regions,
    }


def num_bytes(features: FrameFeatures) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for array in _arrays(features).values())


def encode_features(features: FrameFeatures, key: str) -> bytes:
    """The features as bytes bound to `key`."""
    arrays = _arrays(features)
    header = json.dumps(
        {
            "key": key,
            "size": [features.width, features.height],
            "grid": list(features.grid),
            "seen": features.seen_px,
            "arrays": [[name, a.dtype.name, list(a.shape)] for name, a in arrays.items()],
        },
        separators=(",", ":"),
    ).encode()
    buffers = [
        np.ascontiguousarray(a, dtype=_DTYPES[a.dtype.name]).tobytes() for a in arrays.values()
    ]
    body = b"".join([header, *buffers])
    prefix = _PREFIX.pack(_MAGIC, _VERSION, len(header))
    return prefix + _checksum(prefix, body) + body


def decode_features(blob: bytes, key: str) -> FrameFeatures:
    """The features that were encoded for `key`.

    Raises:
        CorruptFeatures: damaged, truncated, of another version, or written for another key.
    """
    body_start = _PREFIX.size + _CHECKSUM_BYTES
    if len(blob) < body_start:
        raise CorruptFeatures(f"only {len(blob)} bytes")
    magic, version, header_length = _PREFIX.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION:
        raise CorruptFeatures(f"magic {magic!r} version {version}")
    body = memoryview(blob)[body_start:]
    if _checksum(blob[: _PREFIX.size], body) != blob[_PREFIX.size : body_start]:
        raise CorruptFeatures("checksum differs")
    # A checksum anybody can compute: it finds damage. What follows also bears being made up.
    try:
        return _features(json.loads(bytes(body[:header_length])), body[header_length:], key)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise CorruptFeatures("the header says what cannot be") from None


def _features(header: dict[str, Any], buffers: memoryview, key: str) -> FrameFeatures:
    if header["key"] != key:
        raise CorruptFeatures("entry belongs to another key")
    arrays = _split(header["arrays"], buffers)
    width, height, rows, columns = _sides([*header["size"], *header["grid"]], least=1)
    regions = [arrays[name] for name in ("xyxy", "objectness", "evidence", "primary_regions")]
    if any(len(array) != len(arrays["auxiliary_regions"]) for array in regions):
        raise CorruptFeatures("not every box has its features")
    return FrameFeatures(
        width=width,
        height=height,
        proposals=Proposals(arrays["xyxy"], arrays["objectness"], arrays["evidence"]),
        image_tokens=arrays["image_tokens"],
        grid=(rows, columns),
        primary_regions=arrays["primary_regions"],
        auxiliary_regions=arrays["auxiliary_regions"],
        seen_px=_sides([header["seen"]], least=0)[0],
        key=key,
    )


def _split(entries: list[tuple[str, str, list[int]]], buffers: memoryview) -> dict[str, Any]:
    if [name for name, _, _ in entries] != list(_DIMENSIONS):
        raise CorruptFeatures("arrays are missing or unknown")
    arrays: dict[str, Any] = {}
    offset = 0
    for name, dtype_name, sides in entries:
        dtype, shape = _DTYPES[dtype_name], _sides(sides, least=0)
        if len(shape) != _DIMENSIONS[name] or (name == "xyxy" and shape[1] != 4):
            raise CorruptFeatures(f"{name} has {len(shape)} dimensions")
        count = math.prod(shape)
        flat = np.frombuffer(buffers, dtype=dtype, count=count, offset=offset)
        # A copy, because torch refuses to share read-only memory without a warning.
        arrays[name] = flat.reshape(shape).copy()
        offset += count * dtype.itemsize
    return arrays


def _sides(numbers: list[int], *, least: int) -> list[int]:
    """Whole numbers and nothing that merely multiplies like one, which a text does at length."""
    if not all(type(number) is int and least <= number <= _MAX_SIDE for number in numbers):
        raise CorruptFeatures("a side is no length")
    return numbers


def _checksum(prefix: bytes, body: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(prefix, digest_size=_CHECKSUM_BYTES)
    digest.update(body)
    return digest.digest()
