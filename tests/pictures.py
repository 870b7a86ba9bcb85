"""Small pictures made from numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded_image(seed: int = 0, *, width: int = 96, height: int = 64, kind: str = "JPEG") -> bytes:
    """A small picture whose content depends on the seed alone."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same picture to the eye, another to the cache: the number stands in a comment."""
    comment = str(number).encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
