"""What several fuzz targets start from: good pictures, their limits, and good bytes made bad."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from agent.frame import FrameLimits

LIMITS = FrameLimits(max_bytes=100_000, max_pixels=100_000)


def mutated(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """Good bytes of which some were overwritten, cut out, doubled or cut off."""
    places = st.floats(0.0, 1.0, exclude_max=True)
    change = st.tuples(
        st.sampled_from(["write", "cut", "double", "end"]),
        places,
        st.binary(min_size=1, max_size=8),
    )

    def apply(original: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
        content = bytearray(original)
        for what, place, some in changes:
            at = int(place * len(content))
            if what == "write":
                content[at : at + len(some)] = some
            elif what == "cut":
                del content[at : at + len(some)]
            elif what == "double":
                content[at:at] = content[at : at + 64]
            else:
                del content[at + 1 :]
        return bytes(content)

    return st.builds(apply, st.sampled_from(originals), st.lists(change, min_size=1, max_size=6))


def _pictures() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "description"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8))
    variants: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", noise, {"exif": exif}),
        ("JPEG", noise, {"progressive": True}),
        ("JPEG", noise.convert("CMYK"), {}),
        ("PNG", noise, {"exif": exif}),
        ("PNG", noise.convert("RGBA"), {}),
        ("PNG", noise.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(np.ones((9, 9), dtype=np.uint16)), {}),
        ("WEBP", noise, {"exif": exif}),
        ("WEBP", noise.convert("RGBA"), {"lossless": True}),
        ("BMP", noise, {}),
        ("BMP", noise.convert("P"), {}),
    ]
    encoded = []
    for kind, image, options in variants:
        buffer = io.BytesIO()
        image.save(buffer, format=kind, **options)
        encoded.append(buffer.getvalue())
    return encoded


PICTURES = _pictures()
