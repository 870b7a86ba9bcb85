"""Reading frames: sizes before pixels, and a clear word for everything that is no image."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from agent.frame import FrameLimits, frame_from_rgb, load_frame, read_frame
from groundstream.errors import FrameTooLarge, InvalidFrame


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


def saved(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def test_sixteen_bits_keep_their_upper_half():
    grey = (np.arange(256, dtype=np.uint16) * 256 + 7).reshape(16, 16)
    frame = read_frame(saved(Image.fromarray(grey)))
    np.testing.assert_array_equal(frame.rgb()[..., 0], grey >> 8)
    np.testing.assert_array_equal(frame.grey(16), grey >> 8)


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_transparency_shows_white(fmt):
    pixels = np.zeros((4, 6, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:, 3:, 3] = 255
    options = {"lossless": True, "exact": True} if fmt == "WEBP" else {}
    seen = read_frame(saved(Image.fromarray(pixels), fmt, **options)).rgb()
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert seen[0, 5].tolist() == [200, 0, 0]


def test_a_transparent_colour_of_a_palette_shows_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert read_frame(saved(image, transparency=1)).rgb()[0, 0].tolist() == [255, 255, 255]
    assert read_frame(saved(image)).rgb()[0, 0].tolist() == [9, 9, 9]


def test_cmyk_shows_its_colours():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = read_frame(saved(image, "JPEG", quality=95)).rgb()[8, 8].astype(int)
    assert red > 200
    assert green < 80
    assert blue < 80


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_as_their_exif_says(fmt, orientation):
    image = Image.new("RGB", (48, 32), "black")
    image.paste("white", (0, 0, 24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, fmt, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    frame = read_frame(data)
    assert (frame.height, frame.width) == upright.shape[:2]
    np.testing.assert_array_equal(frame.rgb(), upright)
    assert np.abs(frame.grey(48).astype(int) - upright[..., 0]).max() < 30
    assert frame.grey(20).shape[0] * frame.width == frame.grey(20).shape[1] * frame.height


@pytest.mark.parametrize("value", [0, 9, 99])
def test_an_orientation_that_does_not_exist_turns_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    frame = read_frame(saved(Image.new("RGB", (48, 32)), "JPEG", exif=exif))
    assert (frame.width, frame.height) == (48, 32)


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
