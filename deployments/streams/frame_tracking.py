"""Tracking in one stream: tracks moved to a frame where there is time for it.

Shares the threads of `deployments/streams/scheduler.py` with all other streams of the front end.
Decides nothing about key frames.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from dataclasses import dataclass, field

from agent.pipeline import Grounder
from agent.streaming.camera_path import CameraPose, movement_between
from agent.streaming.follower import Follower
from agent.urgency import Limits, Urgency
from deployments.streams.scheduler import StreamScheduler
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import failure_of


@dataclass
class Arrival:
    """A readable frame and when it entered the inbox."""

    received: ReceivedFrame
    pose: CameraPose
    arrived_s: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Look:
    """What became of one frame on the fast path."""

    took_s: float = 0.0
    ahead_s: float | None = None
    """None: it was looked at; else it is so much later than the last that was."""


class FrameTracking:
    """Tracking in one stream, one frame after the other."""

    def __init__(
        self, pipeline: Grounder, scheduler: StreamScheduler, *, proposal_budget_s: float
    ) -> None:
        self.changing = asyncio.Lock()
        """Held while the follower changes; its work on pictures happens in a thread."""
        self.propose_s: float | None = None
        """How long proposals take, as far as is known."""
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._proposal_budget_s = proposal_budget_s
        self._looked_s = -math.inf
        self._last_pose: CameraPose | None = None

    async def look(
        self, follower: Follower, arrival: Arrival, *, must: bool, with_proposals: bool = True
    ) -> Look:
        """Move all tracks to this frame, if there is time for it.

        Args:
            follower: of the stream.
            arrival: the frame.
            must: wait for it, however long that takes.
            with_proposals: correct tracks by the frame's proposals, where those are quick enough.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        received = arrival.received
        patience_s = None if must else self._patience_s()
        has_turn = await self._scheduler.threads.take(self._looked_s, patience_s=patience_s)
        self._scheduler.keyframes.note_frame(tracked=has_turn)
        if not has_turn:
            return Look(ahead_s=ahead_s(follower, received))
        started_s = time.perf_counter()
        try:
            async with self.changing:
                await self._observe(follower, arrival)
        finally:
            self._scheduler.threads.give_back()
        self._looked_s = time.monotonic()
        self._last_pose = arrival.pose
        quick = self.propose_s is not None and self.propose_s <= self._proposal_budget_s
        if with_proposals and quick:
            async with self.changing:
                await self._see_proposals(follower, received)
        return Look(took_s=time.perf_counter() - started_s)

    def _patience_s(self) -> float:
        """How long a frame that need not be looked at may wait for it."""
        settings = self._scheduler.settings
        is_unseen = time.monotonic() - self._looked_s > settings.max_unseen_s
        return settings.unseen_wait_s if is_unseen else settings.look_wait_s

    async def _observe(self, follower: Follower, arrival: Arrival) -> None:
        observe = functools.partial(
            follower.observe,
            arrival.received.frame,
            received_ns=arrival.received.received_time_ns,
            ego_motion=movement_between(self._last_pose, arrival.pose),
        )
        await self._scheduler.threads.run(observe)

    async def _see_proposals(self, follower: Follower, received: ReceivedFrame) -> None:
        started_s = time.perf_counter()
        try:
            limits = Limits.starting_now(self._proposal_budget_s, Urgency.SPARE)
            proposals = await self._pipeline.within(limits).propose(received.frame)
        except Exception as error:
            # The frame is answered all the same; flow goes on alone until a key frame shows
            # that proposals are there again.
            failure_of(error)
            self.propose_s = None
            return
        follower.see_proposals(proposals)
        self.propose_s = 0.8 * (self.propose_s or 0.0) + 0.2 * (time.perf_counter() - started_s)


def ahead_s(follower: Follower, received: ReceivedFrame) -> float:
    """How much later a frame is than the last that was looked at."""
    return follower.ahead_s(
        capture_ns=received.frame.capture_time_ns, received_ns=received.received_time_ns
    )
