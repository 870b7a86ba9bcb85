"""Frame features to bytes and back: safetensors behind a checksum, never pickle.

Layout: BLAKE2b-256 of all that follows; a safetensors file, whose metadata say for which key the
features were written and what the arrays do not. Arrays keep the type they were computed in. Knows
no cache.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from agent.detections import Proposals
from agent.features import BFLOAT16, Array, FrameFeatures

_CHECKSUM_BYTES = 32
_HEADER_LENGTH_BYTES = 8
_MAX_SIDE = 2**31 - 1
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
}
_WRITTEN = {np.dtype("<f4"): "float32", np.dtype("<f2"): "float16", BFLOAT16: "bfloat16"}
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


def _arrays(features: FrameFeatures) -> dict[str, Array]:
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
    # The specifications hold addresses alone, so the arrays must outlive them.
    arrays = {name: np.ascontiguousarray(a) for name, a in _arrays(features).items()}
    tensors = {
        name: TensorSpec(
            dtype=_WRITTEN[array.dtype],
            shape=array.shape,
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    about = {
        "key": key,
        "size": [features.width, features.height],
        "grid": list(features.grid),
        "seen": features.seen_px,
    }
    body = bytes(serialize(tensors, metadata={"features": json.dumps(about)}))
    return _checksum(body) + body


def decode_features(blob: bytes, key: str) -> FrameFeatures:
    """The features that were encoded for `key`.

    Raises:
        CorruptFeatures: damaged, truncated, of an older format, or written for another key.
    """
    body = blob[_CHECKSUM_BYTES:]
    if _checksum(body) != blob[:_CHECKSUM_BYTES]:
        raise CorruptFeatures("checksum differs")
    # A checksum anybody can compute: it finds damage. What follows also bears being made up.
    try:
        found = dict(deserialize(body))  # type: ignore[no-untyped-call]
        length = int.from_bytes(body[:_HEADER_LENGTH_BYTES], "little")
        header = json.loads(body[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + length])
        return _features(json.loads(header["__metadata__"]["features"]), found, key)
    except (
        SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
        RecursionError,
    ):  # fmt: skip
        raise CorruptFeatures("the header says what cannot be") from None


def _features(about: dict[str, Any], found: dict[str, Any], key: str) -> FrameFeatures:
    if about["key"] != key:
        raise CorruptFeatures("entry belongs to another key")
    if found.keys() != _DIMENSIONS.keys():
        raise CorruptFeatures("arrays are missing or unknown")
    arrays = {name: _array(name, tensor) for name, tensor in found.items()}
    width, height, rows, columns = _sides([*about["size"], *about["grid"]], least=1)
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
        seen_px=_sides([about["seen"]], least=0)[0],
        key=key,
    )


def _array(name: str, tensor: dict[str, Any]) -> Array:
    dtype, shape = _DTYPES[tensor["dtype"]], tensor["shape"]
    if len(shape) != _DIMENSIONS[name] or (name == "xyxy" and shape[1] != 4):
        raise CorruptFeatures(f"{name} has {len(shape)} dimensions")
    # A bytearray can be written to, which torch wants of memory that it shares.
    return np.frombuffer(bytearray(tensor["data"]), dtype=dtype).reshape(shape)


def _sides(numbers: list[int], *, least: int) -> list[int]:
    """Whole numbers and nothing that merely multiplies like one, which a text does at length."""
    if not all(type(number) is int and least <= number <= _MAX_SIDE for number in numbers):
        raise CorruptFeatures("a side is no length")
    return numbers


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
