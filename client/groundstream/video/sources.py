"""Pictures from files, folders, cameras, network streams, pipes and recordings, by name.

Reading is blocking and, but for what is live, unpaced: the caller decides whether to wait for the
capture rate. Knows no sessions, no models and no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from groundstream.enums import VideoCodec
from groundstream.errors import InvalidFrame, SourceError
from groundstream.events import SourceClockJumped, SourceEvent, SourceResized
from groundstream.locations import shown_location
from groundstream.video.clock import SteadyClock
from groundstream.video.coded import Coded, SourcePacket
from groundstream.video.ffmpeg import DEFAULT_FPS, Connection
from groundstream.video.live import LiveSource, Reopen, SourceFrame
from groundstream.video.pictures import IMAGE_SUFFIXES, picture_size, read_picture

__all__ = [
    "ImageFolder",
    "LiveSource",
    "Reopen",
    "SourceFrame",
    "SourcePacket",
    "VideoFile",
    "VideoSource",
    "open_source",
]

_LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtp://", "udp://", "srt://", "rtmp://", "rtmps://")
_WEB_SCHEMES = ("http://", "https://")
_STDIN = "pipe:0"

Listener = Callable[[SourceEvent], object]


class VideoSource(Protocol):
    """Pictures in order; iterating again starts again where the source can."""

    fps: float
    """Nominal pictures per second."""

    @property
    def is_live(self) -> bool:
        """True when pictures come when they come, and are lost when nobody reads them."""

    def __iter__(self) -> Iterator[SourceFrame]: ...


def open_source(
    source: str,
    *,
    fps: float | None = None,
    reopen: Reopen | None = None,
    on_event: Listener | None = None,
) -> VideoSource:
    """A source by name.

    Args:
        source: a video or image file, a folder of images, `camera:0`, a URL (rtsp, http, HLS, srt,
            udp ...), `-` for standard input, or a robot's recording (`drive.mcap`, the folder of a
            rosbag2, and with `#/topic` at the end one of its cameras).
        fps: pictures per second of a folder of images (default 25).
        reopen: how often what is live is opened again when it is lost; by default for ever. Nothing
            live is opened before it is iterated, but for http: only who opens it knows whether it
            has an end.
        on_event: told what happens at the source, in the thread that iterates it.

    Raises:
        SourceError: there is no such thing, or it cannot be opened.
    """
    if source == "-":
        return VideoFile(_STDIN, on_event=on_event)
    if source.startswith("camera:"):
        device = f"/dev/video{source.removeprefix('camera:')}"
        return _live(device, reopen, on_event, container="v4l2")
    if source.startswith(_LIVE_SCHEMES):
        return _live(source, reopen, on_event)
    if source.startswith(_WEB_SCHEMES):
        return _from_web(source, reopen or Reopen(), on_event)
    if "://" in source:
        return VideoFile(source, on_event=on_event)
    path = Path(source.partition("#")[0] if not Path(source).exists() else source)
    if path.suffix.lower() in (".mcap", ".db3", ".bag") or (path / "metadata.yaml").is_file():
        # Only who reads recordings has what reads them.
        from groundstream.video.recordings import Recording

        return Recording(path, source.partition("#")[2], on_event=on_event)
    path = Path(source)
    if path.is_dir():
        return ImageFolder(path, fps=fps or DEFAULT_FPS)
    if not path.is_file():
        raise SourceError(
            f"{shown_location(source)} does not exist; give a video, an image, a folder, a "
            "recording, camera:0, a URL, or - for standard input"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, fps=fps or DEFAULT_FPS)
    return VideoFile(source, on_event=on_event)


def _live(
    location: str,
    reopen: Reopen | None,
    on_event: Listener | None,
    *,
    container: str | None = None,
    first: Connection | None = None,
) -> LiveSource:
    policy = reopen or Reopen()
    opened = [first] if first is not None else []

    def connect() -> Connection:
        if opened:
            return opened.pop()
        return Connection(location, container=container, silence_s=policy.silence_s, tolerant=True)

    return LiveSource(location, connect, reopen=policy, on_event=on_event)


def _from_web(location: str, reopen: Reopen, on_event: Listener | None) -> VideoSource:
    """A file on a web server, or a stream from one: it has to be opened to know."""
    try:
        opened = Connection(location, silence_s=reopen.silence_s, tolerant=True)
    except SourceError:
        if not reopen.patience_s:
            raise
        return _live(location, reopen, on_event)
    if opened.ends:
        return VideoFile(location, on_event=on_event, opened=opened)
    return _live(location, reopen, on_event, first=opened)


class VideoFile:
    """A video with an end: a file, one on a web server, or what comes by standard input.

    Iterating it again reads it again, but for standard input, which comes once.
    """

    is_live = False

    def __init__(
        self,
        location: str,
        *,
        on_event: Listener | None = None,
        opened: Connection | None = None,
    ) -> None:
        """Open it.

        Args:
            location: what FFmpeg can open.
            on_event: told when the pictures change their size or the clock jumps.
            opened: it is open already.

        Raises:
            SourceError: it cannot be opened.
        """
        self._location = location
        self._on_event = on_event
        self._opened: Connection | None = opened or Connection(location)
        self._begun: Iterator[SourceFrame] | None = None
        self.fps = self._opened.fps

    def __repr__(self) -> str:
        return f"VideoFile({shown_location(self._location)!r})"

    def check(self) -> None:
        """Decode the first picture, which comes first all the same when it is iterated.

        Raises:
            SourceError: there is none, or it cannot be read.
        """
        pictures = iter(self)
        first = next(pictures, None)
        if first is None:
            raise SourceError("there is no picture in this video")
        self._begun = itertools.chain([first], pictures)

    def __iter__(self) -> Iterator[SourceFrame]:
        begun, self._begun = self._begun, None
        return self._pictures() if begun is None else begun

    def packets(self, codecs: Collection[VideoCodec]) -> Iterator[SourceFrame | SourcePacket]:
        """It undecoded where it holds one of these codecs and need not be turned, else as ever."""
        opened, self._opened = self._opened, None
        if opened is None:
            if self._location == _STDIN:
                raise SourceError("standard input can be read once")
            opened = Connection(self._location)
        clock = SteadyClock(1.0 / opened.fps)
        size: tuple[int, int] | None = None
        opened.passes_on = codecs
        with opened:
            for picture in opened.pictures():
                if picture.size != size and size is not None:
                    self._tell(SourceResized(*picture.size))
                size = picture.size
                pts_s, jump_s = clock.show(picture.time_s)
                if jump_s is not None:
                    self._tell(SourceClockJumped(jump_s))
                if isinstance(picture, Coded):
                    yield SourcePacket(picture, pts_s)
                else:
                    yield SourceFrame(picture.rgb(), pts_s)

    def _pictures(self) -> Iterator[SourceFrame]:
        for item in self.packets(()):
            assert isinstance(item, SourceFrame)
            yield item

    def _tell(self, event: SourceEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)


class ImageFolder:
    """The images of a folder in name order (or one image file), at a fixed rate."""

    is_live = False

    def __init__(self, path: Path, *, fps: float) -> None:
        if path.is_dir():
            self._paths = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            self._paths = [path]
        if not self._paths:
            raise SourceError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.fps = fps

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
