"""One stream's video decoder: packets of H.264 or H.265 in, pictures out.

Bounded before anything is decoded (`agent/video_packets.py`), and again by the decoder's own limit
of pixels. One thread, so that no picture waits for another to be begun. The only reader of video
from outside. Knows no session and no wire.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from agent.frame import Frame, FrameLimits, frame_from_rgb
from agent.settings import VideoSettings
from agent.tenant_share import most_of_one
from agent.video_packets import VideoShape, check_slices, read_packet
from groundstream.enums import VideoCodec
from groundstream.errors import (
    FrameTooCostly,
    FrameTooLarge,
    InvalidFrame,
    KeyFrameNeeded,
    Overloaded,
    reason_of,
)

_DECODERS = {VideoCodec.H264: "h264", VideoCodec.H265: "hevc"}
_DECODE_S = 5.0
"""Processor time of one packet, as of a JPEG; what takes longer ends the decoder."""
_PADDING_PIXELS = 65_536
"""The decoder counts the memory around a small picture as part of it."""
_JPEG_QUALITY = 92
"""Of a picture that goes to the stages."""
_UNREADABLE = (FFmpegError, ValueError)


@dataclass(frozen=True)
class DecodedFrame:
    """A picture of a video; compressed only if the stages are to see it."""

    picture: av.VideoFrame
    index: int
    capture_time_ns: int

    @property
    def width(self) -> int:
        """Of what is shown."""
        return int(self.picture.width)

    @property
    def height(self) -> int:
        """Of what is shown."""
        return int(self.picture.height)

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return sum(plane.buffer_size for plane in self.picture.planes)

    def grey(self, least_px: int) -> NDArray[np.uint8]:
        """(rows, columns) uint8 luminance, its longer side at most `least_px` or the frame's."""
        factor = min(1.0, least_px / max(self.width, self.height))
        width, height = (max(1, round(side * factor)) for side in (self.width, self.height))
        grey = self.picture.reformat(width, height, "gray", interpolation="AREA")
        return np.asarray(grey.to_ndarray(), dtype=np.uint8)

    def still(self) -> Frame:
        """The picture by itself, compressed; takes milliseconds the first time."""
        return self._still

    @functools.cached_property
    def _still(self) -> Frame:
        rgb = np.asarray(self.picture.to_ndarray(format="rgb24"), dtype=np.uint8)
        return frame_from_rgb(
            rgb,
            index=self.index,
            capture_time_ns=self.capture_time_ns,
            jpeg_quality=_JPEG_QUALITY,
        )


class DecoderMemory:
    """What the decoders of all streams may hold, given out before it is used.

    One owner gets at most its share of it, see `agent.tenant_share.most_of_one`.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._most_each = most_of_one(num_bytes)
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def num_left(self) -> int:
        """Bytes that nobody has."""
        return self._left

    def take(self, owner: str, num_bytes: int) -> None:
        """So much more.

        Raises:
            Overloaded: there is not so much left, or the owner would have more than it may.
        """
        with self._lock:
            is_too_much = self._taken[owner] + num_bytes > self._most_each
            fits = not is_too_much and num_bytes <= self._left
            if fits:
                self._left -= num_bytes
                self._taken[owner] += num_bytes
        # Outside of the lock: an error makes the garbage collector come by, and with it decoders
        # that give their memory back.
        if is_too_much:
            raise Overloaded(
                "the decoders of your streams would have more than three quarters of the memory "
                "for video, which is all that one tenant may have; end a stream, send smaller "
                "pictures, or send JPEG"
            )
        if not fits:
            raise Overloaded(
                "the decoders of other streams have all the memory there is for video; send "
                "smaller pictures, send JPEG, or try again later"
            )

    def give_back(self, owner: str, num_bytes: int) -> None:
        """So much less."""
        with self._lock:
            self._left += num_bytes
            self._taken[owner] -= num_bytes
            if not self._taken[owner]:
                del self._taken[owner]


class VideoDecoder:
    """Decodes the packets of one video in their order; used by one thread at a time."""

    def __init__(
        self,
        codec: VideoCodec,
        parameter_sets: bytes = b"",
        *,
        settings: VideoSettings,
        limits: FrameLimits,
        memory: DecoderMemory,
        owner: str = "",
    ) -> None:
        """Nothing is decoded yet.

        Args:
            codec: of all packets.
            parameter_sets: in Annex B form, where key frames do not hold them.
            settings: what is decoded at all.
            limits: of the shape of a picture.
            memory: where what this decoder may come to hold is taken from.
            owner: who is to share that memory with others.

        Raises:
            InvalidFrame: the parameter sets cannot be read.
            FrameTooLarge, Overloaded: see `check`.
        """
        self._codec = codec
        self._settings = settings
        self._limits = limits
        self._shape: VideoShape | None = None
        self._reserved = _Reserved(memory, owner)
        # What it holds is free once no thread works on it any more.
        weakref.finalize(self, self._reserved.give_back)
        if parameter_sets:
            self._shape, _ = read_packet(parameter_sets, codec, None)
            self._check_shape()
        context = av.CodecContext.create(_DECODERS[codec], "r")
        context.thread_count = 1
        # A picture whose references are missing is an error, not a grey one.
        context.options = {
            "max_pixels": str(2 * settings.max_pixels + _PADDING_PIXELS),
            "err_detect": "explode",
        }
        if parameter_sets:
            context.extradata = parameter_sets
        self._context = context

    def check(self, data: bytes) -> VideoShape:
        """The shape of the packet's picture; nothing is decoded.

        Raises:
            InvalidFrame: it is no packet of this codec, or holds no picture.
            FrameTooLarge: more bytes or pixels, or a more extreme shape, than is decoded here.
            FrameTooCostly: out of proportion many parts.
            KeyFrameNeeded: nothing has said yet how large its picture is.
            Overloaded: there is no memory for pictures of this size.
        """
        most = self._settings.max_packet_bytes
        if len(data) > most:
            raise FrameTooLarge(
                f"the packet has {len(data)} bytes, the limit is {most}; encode at a lower rate"
            )
        self._shape, num_slices = read_packet(data, self._codec, self._shape)
        if not num_slices:
            raise InvalidFrame("the packet holds no picture; send parameter sets with a key frame")
        self._check_shape()
        if self._shape is None:
            raise KeyFrameNeeded(
                "no parameter sets have come; send them in StartVideo or with a key frame"
            )
        check_slices(self._shape, num_slices)
        return self._shape

    def decode(self, data: bytes, number: int) -> list[tuple[int, av.VideoFrame]]:
        """The pictures that are complete by now, each with the number its packet was given.

        After an error the decoder is of no more use.

        Raises:
            KeyFrameNeeded: the packet cannot be decoded.
            FrameTooCostly: it took too long.
        """
        packet = av.Packet(data)
        packet.pts = number
        return self._pictures(packet)

    def flush(self) -> list[tuple[int, av.VideoFrame]]:
        """The pictures that were held back; the decoder is of no more use."""
        return self._pictures(None)

    def _pictures(self, packet: av.Packet | None) -> list[tuple[int, av.VideoFrame]]:
        started_s = time.thread_time()
        try:
            pictures = self._context.decode(packet)
        except _UNREADABLE as error:
            raise KeyFrameNeeded(
                f"the packet cannot be decoded ({reason_of(error)}); send a key frame"
            ) from None
        if time.thread_time() - started_s > _DECODE_S:
            raise FrameTooCostly("the packet took too long to decode; encode it otherwise")
        if any(picture.is_corrupt for picture in pictures):
            raise KeyFrameNeeded("the packet gave a damaged picture; send a key frame")
        return [(picture.pts, picture) for picture in pictures if picture.pts is not None]

    def _check_shape(self) -> None:
        shape = self._shape
        if shape is None:
            return
        size = f"the video is {shape.width}x{shape.height}"
        if shape.num_pixels > self._settings.max_pixels:
            raise FrameTooLarge(
                f"{size}, the limit is {self._settings.max_pixels} pixels; scale it down"
            )
        long, short = max(shape.width, shape.height), min(shape.width, shape.height)
        if long > self._limits.max_aspect * short:
            raise FrameTooLarge(
                f"{size}: one side is more than {self._limits.max_aspect:g} times the other; "
                "crop it"
            )
        self._reserved.raise_to(shape.decoder_bytes)


class _Reserved:
    """What one decoder has taken of the memory."""

    def __init__(self, memory: DecoderMemory, owner: str) -> None:
        self._memory = memory
        self._owner = owner
        self._num_bytes = 0

    def raise_to(self, num_bytes: int) -> None:
        """Have at least so much."""
        if num_bytes > self._num_bytes:
            self._memory.take(self._owner, num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def give_back(self) -> None:
        """Have nothing."""
        self._memory.give_back(self._owner, self._num_bytes)
        self._num_bytes = 0
