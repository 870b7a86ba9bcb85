"""Video in one stream: packets decoded in their order, off the event loop, each accounted for.

A packet that cannot be decoded, or was lost, takes all that build on it with it: they are refused
up to the next key frame. Decides nothing about which pictures are answered.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.clock import steady_ns
from agent.frame import FrameLimits
from agent.quotas import TenantQuota
from agent.settings import VideoSettings
from agent.streaming.policy import DropPolicy, Priority
from agent.streaming.session import Session
from agent.video_decoder import DecodedFrame, DecoderMemory, VideoDecoder
from deployments.fair_queue import FairQueue
from deployments.streams.responses import ResponseWriter
from deployments.wire import messages
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import failure_of
from groundstream.enums import VideoCodec
from groundstream.errors import (
    AgentError,
    InvalidFrame,
    InvalidRequest,
    KeyFrameNeeded,
    Overloaded,
)
from groundstream.protos import vision_agent_pb2 as pb

T = TypeVar("T")

_ROW_BROKEN = "a packet that this one builds on was lost, refused or never sent; send a key frame"
_MAX_HELD_BACK = 32
"""Packets after which one has given its picture, or has none; no decoder holds back so many."""
_QUICK_BYTES = 65_536
"""A packet of this size is gone through at once, which takes a millisecond or two at most."""

_MAX_WAITING = 60
_MAX_WAITING_BYTES = 16_777_216
"""Packets of a stream that wait to be decoded; more are refused."""
_DECODER_IDLE_S = 30.0
"""A stream without packets for so long gives its decoder's memory back."""
_BEHIND = 15
"""Packets waiting, at which a key frame makes them go: half a second."""

_logger = logging.getLogger(__name__)


class DecodingThreads:
    """A few threads that decode for all streams of a front-end replica, and their memory.

    Tenants take turns at the threads, and leave some of the memory to one another.
    """

    def __init__(self, settings: VideoSettings, limits: FrameLimits) -> None:
        self.memory = DecoderMemory(settings.memory_bytes)
        self._settings = settings
        self._limits = limits
        self._tenant = ""
        # Not of lower priority, as tracking is: a frame may do without that, but a packet that is
        # decoded late makes all after it late.
        count = settings.decoders_at_once
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoding")
        # No thread is kept free for another tenant: whoever comes waits for a packet or two.
        self._turns = FairQueue(count, most_each=count)

    def for_tenant(self, tenant: str) -> DecodingThreads:
        """The same threads and memory, for a tenant's streams."""
        bound = copy.copy(self)
        bound._tenant = tenant
        return bound

    def decoder(self, codec: VideoCodec, parameter_sets: bytes) -> VideoDecoder:
        """A new one.

        Raises:
            AgentError: see `VideoDecoder`.
        """
        return VideoDecoder(
            codec,
            parameter_sets,
            settings=self._settings,
            limits=self._limits,
            memory=self.memory,
            owner=self._tenant,
        )

    def check_enabled(self) -> None:
        """Refuse video where the service takes none.

        Raises:
            InvalidRequest: it does not.
        """
        if not self._settings.enabled:
            raise InvalidRequest("this service takes pictures only; see stream.video.enabled")

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work in one of the threads, when it is the tenant's turn."""
        async with self._turns.turn(self._tenant):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False)


@dataclass(frozen=True)
class _Waiting:
    """A packet that came and was not looked at yet."""

    message: Any
    received_time_ns: int
    begins_anew: bool
    """It is a key frame, and some before it are missing."""


@dataclass(frozen=True)
class _Packet:
    """What is known of a packet while its picture is in the decoder."""

    sequence: int
    capture_time_ns: int
    priority: Priority
    received_time_ns: int


class StreamVideo:
    """One stream's decoder, which it has from a key frame to the first error after it."""

    def __init__(
        self,
        session: Session[Any],
        threads: DecodingThreads,
        quota: TenantQuota,
        responses: ResponseWriter,
        on_picture: Callable[[ReceivedFrame], Awaitable[None]],
    ) -> None:
        """`on_picture`: offers a decoded frame to the session."""
        self._session = session
        self._threads = threads
        self._quota = quota
        self._responses = responses
        self._on_picture = on_picture
        self._codec: VideoCodec | None = None
        self._parameter_sets = b""
        self._decoder: VideoDecoder | None = None
        self._last_number = 0
        self._numbers = itertools.count()
        self._in_decoder: dict[int, _Packet] = {}
        self._using = asyncio.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._num_bytes = 0
        self._has_gap = False
        """The last packets that came do not wait; those that follow need a key frame."""
        self._came = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def start(self, message: Any) -> None:
        """Another video begins.

        Raises:
            InvalidRequest: a codec that this service does not know, or it takes no video.
        """
        self._threads.check_enabled()
        await self.settle()
        async with self._using:
            codec = messages.codec_from_message(message)
            await self._drop_decoder()
            self._codec, self._parameter_sets = codec, message.parameter_sets
            self._last_number = 0

    async def accept(self, message: Any) -> None:
        """A packet came: it waits for its turn, which never makes the reader of the stream wait.

        Where packets come faster than they can be decoded, a key frame supersedes those before it,
        and without one the newest are refused, so that no picture grows old in the line.
        """
        received_time_ns = steady_ns()
        self._session.begin_decoding()
        if message.is_key and len(self._waiting) >= _BEHIND and self._may_supersede():
            self._session.supersede_decoding(len(self._waiting))
            self._waiting.clear()
            self._num_bytes = 0
            self._has_gap = True
        if self._has_gap and not message.is_key:
            await self._refuse(message.sequence, KeyFrameNeeded(_ROW_BROKEN))
            return
        size = len(message.data)
        is_full = self._num_bytes + size > _MAX_WAITING_BYTES and self._waiting
        if is_full or len(self._waiting) >= _MAX_WAITING:
            self._has_gap = True
            words = f"{len(self._waiting)} packets wait to be decoded; send fewer or smaller ones"
            await self._refuse(message.sequence, Overloaded(words))
            return
        self._waiting.append(_Waiting(message, received_time_ns, self._has_gap))
        self._num_bytes += size
        self._has_gap = False
        self._is_idle.clear()
        self._came.set()

    async def decode_all(self) -> None:
        """Decode what waits, one packet after the other, until cancelled."""
        try:
            while True:
                await self._packets_came()
                while self._waiting:
                    waiting = self._waiting.popleft()
                    self._num_bytes -= len(waiting.message.data)
                    async with self._using:
                        await self._take(waiting)
                self._came.clear()
                self._is_idle.set()
        finally:
            # Without it no packet has a way out any more.
            self._session.end()
            self._is_idle.set()

    async def _packets_came(self) -> None:
        """Wait for packets; a stream that sends none for long goes on with a key frame."""
        try:
            async with asyncio.timeout(_DECODER_IDLE_S):
                await self._came.wait()
        except TimeoutError:
            async with self._using:
                await self._drop_decoder()
            await self._came.wait()

    async def settle(self) -> None:
        """Wait until all that came is decoded."""
        await self._is_idle.wait()

    def miss(self) -> None:
        """A packet was refused before it could be read."""
        self._has_gap = True

    async def flush(self) -> None:
        """No packet follows: what the decoder holds back is offered."""
        await self.settle()
        async with self._using:
            await self._drop_decoder()

    def _may_supersede(self) -> bool:
        is_latest = self._session.policy.drop is DropPolicy.LATEST_WINS
        high = pb.FRAME_PRIORITY_HIGH
        return is_latest and all(waiting.message.priority != high for waiting in self._waiting)

    async def _take(self, waiting: _Waiting) -> None:
        """Offer the pictures that are complete with this packet; tell its error."""
        message = waiting.message
        if waiting.begins_anew:
            await self._drop_decoder()
        try:
            pictures = await self._decode(message, waiting.received_time_ns)
        except Exception as error:
            # Those that are complete come before what broke the row.
            await self._drop_decoder()
            await self._refuse(message.sequence, error)
            return
        await self._hand_on(pictures)
        await self._give_up_old()

    def close(self) -> None:
        """The stream is over; its decoder goes as soon as no thread works on it."""
        self._decoder = None

    async def _decode(self, message: Any, received_time_ns: int) -> list[tuple[int, Any]]:
        await self._note_number(message.packet_number)
        await self._quota.spend_arrival()
        priority = messages.priority_from_message(message)
        if self._decoder is None:
            self._decoder = await self._new_decoder(is_key=message.is_key)
        decoder, data = self._decoder, message.data
        if len(data) <= _QUICK_BYTES:
            shape = decoder.check(data)
        else:
            shape = await self._threads.run(functools.partial(decoder.check, data))
        await self._quota.spend_pixels(shape.num_pixels)
        number = next(self._numbers)
        self._in_decoder[number] = _Packet(
            message.sequence, message.capture_time_ns, priority, received_time_ns
        )
        try:
            return await self._threads.run(functools.partial(decoder.decode, data, number))
        except Exception:
            # It is refused by who called, as one that never got so far.
            del self._in_decoder[number]
            raise

    async def _note_number(self, number: int) -> None:
        """Packets that were lost take those in between with them."""
        last, self._last_number = self._last_number, number
        if number and last and number != last + 1:
            await self._drop_decoder()

    async def _new_decoder(self, *, is_key: bool) -> VideoDecoder:
        if self._codec is None:
            raise KeyFrameNeeded("no StartVideo came on this stream; send it, then a key frame")
        if not is_key:
            raise KeyFrameNeeded(_ROW_BROKEN)
        build = functools.partial(self._threads.decoder, self._codec, self._parameter_sets)
        return await self._threads.run(build)

    async def _hand_on(self, pictures: list[tuple[int, Any]]) -> None:
        for number, picture in pictures:
            packet = self._in_decoder.pop(number, None)
            # A packet that gives a second picture said that it holds one.
            if packet is None:
                continue
            frame = DecodedFrame(picture, packet.sequence, packet.capture_time_ns)
            received = ReceivedFrame(frame, None, packet.received_time_ns, priority=packet.priority)
            await self._on_picture(received)

    async def _give_up_old(self) -> None:
        while len(self._in_decoder) > _MAX_HELD_BACK:
            await self._give_up(min(self._in_decoder))

    async def _give_up(self, number: int) -> None:
        error = InvalidFrame("no picture came of the packet; send it after those it builds on")
        await self._refuse(self._in_decoder.pop(number).sequence, error)

    async def _drop_decoder(self) -> None:
        """Have no decoder; what it had is offered, or refused."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None and self._in_decoder:
            try:
                pictures = await self._threads.run(decoder.flush)
            except AgentError as error:
                _logger.debug("a decoder could not be emptied: %s", error)
                pictures = []
            await self._hand_on(pictures)
        for number in sorted(self._in_decoder):
            await self._give_up(number)

    async def _refuse(self, sequence: int, error: Exception) -> None:
        self._session.reject(decoding=True, ours=not isinstance(error, AgentError))
        await self._responses.send_failure(failure_of(error), sequence=sequence)
