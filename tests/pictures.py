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
