"""Pictures whose structure would cost more than their pixels are refused before they are read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from agent import frame as frame_module
from agent.frame import FrameLimits, read_frame
from agent.picture_cost import picture_cost
from groundstream.errors import FrameTooCostly, InvalidFrame
from tests.forged_webp import forged_webp
from tests.pictures import encoded_image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


EMPTY_SCAN = bytes.fromhex("ffda0008010100013f00")
"""One component, one band of coefficients, and no data."""


def with_scans(num_scans: int) -> bytes:
    """A progressive JPEG with so many empty scans more."""
    encoded = saved(noise(), "JPEG", progressive=True)
    return encoded[:-2] + EMPTY_SCAN * num_scans + encoded[-2:]


EMPTY_SEGMENT = b"\xff\xe0\x00\x02"


def with_segments(num_segments: int, segment: bytes = EMPTY_SEGMENT) -> bytes:
    encoded = saved(noise(), "JPEG")
    return encoded[:2] + EMPTY_SEGMENT + segment * num_segments + encoded[2:]


def with_chunks(num_chunks: int, kind: bytes = b"teSt", body: bytes = b"") -> bytes:
    encoded = saved(noise(), "PNG")
    return encoded[:33] + chunk(kind, body) * num_chunks + encoded[33:]


def rle_bmp(side: int, runs: bytes = b"") -> bytes:
    """A run-length coded BMP, one run a line after those that are given."""
    body = runs + (bytes([min(side, 255), 7]) + b"\0\0") * side + b"\0\1"
    palette = bytes(1024)
    offset = 14 + 40 + len(palette)
    size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    return head + size + palette + body


def webp_with_chunks(num_chunks: int) -> bytes:
    encoded = saved(noise(), "WEBP")
    encoded += (b"TEST" + struct.pack("<I", 0)) * num_chunks
    return encoded[:4] + struct.pack("<I", len(encoded) - 8) + encoded[8:]


COSTLY = {
    "150,000 scans": lambda: with_scans(150_000),
    "41 scans more": lambda: with_scans(41),
    "empty segments": lambda: with_segments(2_000_000),
    "bytes between segments": lambda: with_segments(1, bytes(8_000_000)),
    "padding between segments": lambda: with_segments(1, b"\xff" * 8_000_000),
    "restarts between segments": lambda: with_segments(2_000_000, b"\xff\xd0"),
    "reserved markers after an end": lambda: with_segments(1, b"\xff\xd9" + b"\xff\xf0" * 500_000),
    "reserved markers": lambda: with_segments(500_000, b"\xff\xf0"),
    "EXIF in many parts": lambda: with_segments(10, b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)),
    "empty chunks": lambda: with_chunks(1_000_000),
    "compressed chunks": lambda: with_chunks(17, b"zTXt", b"c\0\0" + zlib.compress(b"x")),
    "empty chunks of pixels": lambda: with_chunks(1_000_000, b"IDAT"),
    "a run-length coded BMP": lambda: rle_bmp(5000),
    "runs beyond the line": lambda: rle_bmp(8) + b"\xff\x01" * 1_000_000,
    "1 MB of runs beyond the line": lambda: rle_bmp(64, b"\xff\x01" * 500_000),
    "empty WebP chunks": lambda: webp_with_chunks(1_000_000),
}


@pytest.mark.parametrize("make", COSTLY.values(), ids=COSTLY)
def test_what_costs_too_much_is_refused_at_once(make: object) -> None:
    encoded = make()  # type: ignore[operator]
    started_s = time.process_time()
    with pytest.raises(FrameTooCostly):
        read_frame(encoded)
    assert time.process_time() - started_s < 0.15


def test_what_encoders_write_passes() -> None:
    for kind, options in (
        ("JPEG", {"progressive": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ):
        encoded = saved(noise(640, 480), kind, **options)
        assert read_frame(encoded).rgb().shape == (480, 640, 3)
    assert 2 < picture_cost(saved(noise(), "JPEG", progressive=True)).num_scans < 20
    profile = saved(noise(), "JPEG", icc_profile=bytes(16_000_000))
    assert picture_cost(profile).num_parts > 200
    assert read_frame(with_segments(500)).width == 64
    assert read_frame(with_chunks(200)).width == 64
    assert read_frame(rle_bmp(64)).rgb().shape == (64, 64, 3)


def test_a_thumbnail_in_the_metadata_counts_for_nothing() -> None:
    inner = with_scans(39)
    segment = b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner
    assert picture_cost(with_segments(1, segment)).num_scans == 1


def test_decoding_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    large = saved(noise(1500, 1500), "PNG")
    frame = read_frame(large)
    monkeypatch.setattr(frame_module, "_DECODE_S", 0.01)
    started_s = time.process_time()
    for decode in (frame.rgb, lambda: frame.grey(400)):
        with pytest.raises(FrameTooCostly, match="too long"):
            decode()
    assert time.process_time() - started_s < 0.5
    monkeypatch.setattr(frame_module, "_DECODE_S", 5.0)
    assert frame.rgb().shape == (1500, 1500, 3)


def test_run_lengths_that_pass_cost_little() -> None:
    frame = read_frame(rle_bmp(64, b"\xff\x01" * 64_000))
    started_s = time.thread_time()
    assert frame.rgb().shape == (64, 64, 3)
    assert time.thread_time() - started_s < 1.0


def test_a_busy_machine_makes_no_picture_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = read_frame(encoded_image(1), limits=FrameLimits())
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert frame.rgb().ndim == 3


def test_costly_is_a_kind_of_invalid() -> None:
    assert issubclass(FrameTooCostly, InvalidFrame)


DECODE_AT_ONCE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from agent.frame import read_frame
from tests.forged_webp import forged_webp

frame, at_once = read_frame(forged_webp()), int(sys.argv[1])
with ThreadPoolExecutor(at_once) as threads:
    shapes = {pixels.shape for pixels in threads.map(lambda _: frame.rgb(), range(at_once))}
assert shapes == {(1024, 1024, 3)}, shapes
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_pictures_forged_to_take_memory_are_decoded_one_at_a_time() -> None:
    assert len(forged_webp()) < 300_000

    def peak_mb(at_once: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", DECODE_AT_ONCE, str(at_once)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout)

    assert peak_mb(4) < peak_mb(1) + 250
