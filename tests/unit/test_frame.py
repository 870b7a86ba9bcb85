"""Reading frames: sizes before pixels, and a clear word for everything that is no image."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from agent.errors import FrameTooLarge, InvalidFrame
from agent.frame import FrameLimits, frame_from_rgb, load_frame, read_frame


def encoded(fmt="JPEG", size=(40, 30), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=fmt)
    return buffer.getvalue()


def png_header(width, height):
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return data + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats(fmt):
    frame = read_frame(encoded(fmt))
    assert (frame.width, frame.height) == (40, 30)
    assert frame.rgb().shape == (30, 40, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_other_pixel_formats_become_rgb(mode):
    assert read_frame(encoded("PNG", mode=mode)).rgb().shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidFrame),
        (b"not an image at all", InvalidFrame),
        (encoded("GIF"), InvalidFrame),
        (png_header(20_000, 20_000), FrameTooLarge),
        (png_header(4_000_000, 1), FrameTooLarge),
        (png_header(0, 10), InvalidFrame),
        (encoded()[:20], InvalidFrame),
    ],
    ids=["empty", "text", "gif", "bomb", "strip", "zero", "header cut"],
)
def test_refused_from_the_header(data, error):
    with pytest.raises(error):
        read_frame(data)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_truncated_bodies_are_refused_on_decoding(fmt):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=fmt)
    data = buffer.getvalue()
    with pytest.raises(InvalidFrame):
        read_frame(data[: len(data) // 2]).rgb()


def test_byte_limit():
    with pytest.raises(FrameTooLarge, match="compress"):
        read_frame(encoded(), limits=FrameLimits(max_bytes=100))


def test_digest_is_of_the_content():
    one, two = read_frame(encoded()), read_frame(encoded(), index=5, capture_time_ns=9)
    assert one.digest == two.digest
    assert len(one.digest) == 64
    assert read_frame(encoded(size=(41, 30))).digest != one.digest


def test_from_rgb_is_lossless_as_png():
    rgb = np.random.default_rng(0).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(frame_from_rgb(rgb, jpeg_quality=None).rgb(), rgb)
    with pytest.raises(InvalidFrame):
        frame_from_rgb(rgb.astype(np.float32))


def test_missing_file(tmp_path):
    with pytest.raises(InvalidFrame, match="cannot read"):
        load_frame(tmp_path / "none.jpg")
