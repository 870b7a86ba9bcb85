"""Pictures from files, folders, cameras and network streams, with their time in the source.

Reading is blocking and unpaced: the caller decides whether to wait for the capture rate.
Knows no sessions, no models and no torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.error import FFmpegError

from groundstream.errors import InvalidFrame, SourceError
from groundstream.video.pictures import RGBArray, picture_size, read_picture

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# Up to the last @ before the path: careless passwords hold one, too.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]+@")
_SECRETS = re.compile(
    r"([?&](?:pass(?:word|wd)?|pwd|pw|token|secret|(?:api_?)?key|auth)=)[^&#\s]*", re.IGNORECASE
)
_DEFAULT_FPS = 25.0
_LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtp://", "udp://", "srt://", "rtmp://")
# Over TCP no picture is torn; a source that says nothing for ten seconds is gone.
_NETWORK_OPTIONS = {"rtsp_transport": "tcp", "timeout": "10000000"}


@dataclass(frozen=True)
class SourceFrame:
    """One picture of a source."""

    rgb: RGBArray
    """(height, width, 3) uint8."""
    pts_s: float
    """Time since the first picture, seconds."""


class VideoSource(Protocol):
    """Pictures in order; iterating again starts again where the source can."""

    fps: float
    """Nominal pictures per second."""
    is_live: bool
    """True when pictures come when they come, and are lost when nobody reads them."""

    def __iter__(self) -> Iterator[SourceFrame]: ...


def shown_location(source: str) -> str:
    """A source's name, or any text about it, without the password that camera URLs often carry."""
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub("", source))


def open_source(source: str, *, fps: float | None = None) -> VideoSource:
    """A source by name: a video or image file, a folder of images, `camera:0` or a URL.

    Args:
        source: what to read.
        fps: pictures per second of a folder of images (default 25).

    Raises:
        SourceError: there is no such thing, or it cannot be opened.
    """
    if source.startswith("camera:"):
        device = f"/dev/video{source.removeprefix('camera:')}"
        return VideoFile(device, container="v4l2", is_live=True)
    if "://" in source:
        is_live = source.startswith(_LIVE_SCHEMES)
        return VideoFile(source, is_live=is_live, options=_NETWORK_OPTIONS if is_live else None)
    path = Path(source)
    if path.is_dir():
        return ImageFolder(path, fps=fps or _DEFAULT_FPS)
    if not path.is_file():
        raise SourceError(f"{source} does not exist; give a video, an image, a folder or camera:0")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, fps=fps or _DEFAULT_FPS)
    return VideoFile(source)


class VideoFile:
    """Anything FFmpeg can open: a file, a camera device, an RTSP or HTTP URL."""

    def __init__(
        self,
        location: str,
        *,
        container: str | None = None,
        is_live: bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        self.is_live = is_live
        self._location = location
        self._container = container
        self._options = options or {}
        with self._open() as opened:
            rate = opened.streams.video[0].average_rate
            self.fps = float(rate) if rate else _DEFAULT_FPS

    def __iter__(self) -> Iterator[SourceFrame]:
        with self._open() as opened:
            stream = opened.streams.video[0]
            stream.thread_type = "AUTO"
            first_s: float | None = None
            try:
                for index, picture in enumerate(opened.decode(stream)):
                    # Some cameras and broken files carry no time stamps.
                    time_s = index / self.fps if picture.time is None else picture.time
                    first_s = time_s if first_s is None else first_s
                    rgb = picture.to_ndarray(format="rgb24")
                    yield SourceFrame(np.asarray(rgb, dtype=np.uint8), time_s - first_s)
            except (FFmpegError, OSError) as error:
                reason = shown_location(str(error))
                raise SourceError(f"reading {self._shown()} failed: {reason}") from error

    @contextlib.contextmanager
    def _open(self) -> Iterator[av.container.InputContainer]:
        try:
            opened = av.open(self._location, format=self._container, options=self._options)
        except (FFmpegError, OSError, ValueError) as error:
            reason = shown_location(str(error))
            raise SourceError(f"cannot open {self._shown()}: {reason}") from error
        with opened:
            if not opened.streams.video:
                raise SourceError(f"{self._shown()} has no video stream")
            yield opened

    def _shown(self) -> str:
        return shown_location(self._location)


class ImageFolder:
    """The images of a folder in name order (or one image file), at a fixed rate."""

    def __init__(self, path: Path, *, fps: float) -> None:
        if path.is_dir():
            self._paths = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            self._paths = [path]
        if not self._paths:
            raise SourceError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.fps = fps
        self.is_live = False

    def __len__(self) -> int:
        return len(self._paths)

    def check(self, limit: int | None = None) -> tuple[int, int]:
        """Read all headers and the first picture; (width, height) that hold every one.

        Raises:
            SourceError: one of the first `limit` files is no picture.
        """
        width = height = 0
        for index, path in enumerate(self._paths[:limit]):
            try:
                across, down = picture_size(path)
                if index == 0:
                    read_picture(path)
            except InvalidFrame as error:
                raise SourceError(f"{path}: {error}") from error
            width, height = max(width, across), max(height, down)
        return width, height

    def __iter__(self) -> Iterator[SourceFrame]:
        for index, path in enumerate(self._paths):
            try:
                yield SourceFrame(read_picture(path), index / self.fps)
            except InvalidFrame as error:
                raise SourceError(f"{path}: {error}") from error
