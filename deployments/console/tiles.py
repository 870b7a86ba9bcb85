"""Pictures in the size of the wall's tiles. Knows no streams."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from groundstream.video.pictures import FORMATS, UNREADABLE, upright

TILE_PX = 480
"""Longer side at most: a tile is 320 to 650 pixels of a page wide."""
_ENOUGH_PX = 360
"""What a JPEG gives by itself, and has so much, is not scaled further."""
_QUALITY = 75
_ONE_AT_A_TIME = ThreadPoolExecutor(1, thread_name_prefix="tiles")
"""However many look on, tiles take one core."""


def tile_of(encoded: bytes) -> asyncio.Future[bytes]:
    """A picture as a JPEG of at most `TILE_PX`, made in a thread; as it is where that cannot be.

    The service has answered the picture, so it is within the limits of what may be decoded.
    """
    return asyncio.get_running_loop().run_in_executor(_ONE_AT_A_TIME, _scaled, encoded)


def _scaled(encoded: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            longest = max(image.size)
            if longest <= TILE_PX:
                return encoded
            # A JPEG can be decoded to a half, a quarter or an eighth, in a quarter of the time.
            width, height = (max(1, side * _ENOUGH_PX // longest) for side in image.size)
            image.draft("RGB", (width, height))
            tile = upright(image).convert("RGB")
            tile.thumbnail((TILE_PX, TILE_PX))
            out = io.BytesIO()
            tile.save(out, format="JPEG", quality=_QUALITY)
            return out.getvalue()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *UNREADABLE):
        return encoded
