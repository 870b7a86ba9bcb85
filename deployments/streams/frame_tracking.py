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

from agent.frame import Frame
from agent.pipeline import Grounder
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence
from agent.streaming.camera_path import CameraPose, movement_between
from agent.streaming.follower import Follower
from agent.urgency import Limits, Urgency
from deployments.streams.scheduler import StreamScheduler
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import failure_of


@dataclass(frozen=True, kw_only=True)
class ArrivedFrame(ReceivedFrame):
    """A readable frame in the stream's inbox."""

    pose: CameraPose
    """Of the camera, from its movements so far."""
    arrived_s: float = field(default_factory=time.perf_counter)
    """When it entered the inbox."""

    @classmethod
    def at(cls, pose: CameraPose, received: ReceivedFrame) -> ArrivedFrame:
        """It arrives now."""
        return cls(**vars(received), pose=pose)

    @property
    def evidence(self) -> Evidence:
        """What answers about it are based on."""
        return Evidence(self.frame.index, self.received_time_ns)

    async def still(self) -> Frame:
        """The picture as the stages take it; that of a video is compressed in a thread, once."""
        if isinstance(self.frame, Frame):
            return self.frame
        return await asyncio.to_thread(self.frame.still)


@dataclass(frozen=True)
class Tracked:
    """What the tracker did with one frame."""

    took_s: float = 0.0
    ahead_s: float | None = None
    """None: tracks were moved to it; else it is so much later than the last one they were."""


class FrameTracking:
    """Tracking in one stream, one frame after the other."""

    def __init__(
        self, pipeline: Grounder, scheduler: StreamScheduler, settings: FollowSettings
    ) -> None:
        self.follower = Follower(settings)
        """What is known about the scene; replaced when a session is resumed."""
        self.changing = asyncio.Lock()
        """Held while the follower changes; its work on pictures happens in a thread."""
        self.propose_s: float | None = None
        """How long proposals take, as far as is known."""
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._proposal_budget_s = settings.proposal_budget_s
        self._tracked_s = -math.inf
        self._last_pose: CameraPose | None = None

    async def track(
        self, arrived: ArrivedFrame, *, must: bool, with_proposals: bool = True
    ) -> Tracked:
        """Move all tracks to this frame, if there is time for it.

        Args:
            arrived: the frame.
            must: wait for it, however long that takes.
            with_proposals: correct tracks by the frame's proposals, where those are quick enough.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        threads = self._scheduler.threads
        patience_s = None if must else self._patience_s()
        has_thread = await threads.take(self._tracked_s, patience_s=patience_s)
        self._scheduler.keyframes.note_frame(tracked=has_thread)
        if not has_thread:
            return Tracked(ahead_s=self.ahead_s(arrived))
        started_s = time.perf_counter()
        try:
            async with self.changing:
                await self._observe(arrived)
        finally:
            threads.give_back()
        self._tracked_s = time.monotonic()
        self._last_pose = arrived.pose
        quick = self.propose_s is not None and self.propose_s <= self._proposal_budget_s
        if with_proposals and quick:
            async with self.changing:
                await self._see_proposals(arrived)
        return Tracked(took_s=time.perf_counter() - started_s)

    def ahead_s(self, arrived: ArrivedFrame) -> float:
        """How much later a frame is than the last that tracks were moved to."""
        return self.follower.ahead_s(
            capture_ns=arrived.frame.capture_time_ns, received_ns=arrived.received_time_ns
        )

    def _patience_s(self) -> float:
        """How long a frame that need not be tracked may wait for a thread."""
        settings = self._scheduler.settings
        is_unseen = time.monotonic() - self._tracked_s > settings.max_unseen_s
        return settings.unseen_wait_s if is_unseen else settings.look_wait_s

    async def _observe(self, arrived: ArrivedFrame) -> None:
        observe = functools.partial(
            self.follower.observe,
            arrived.frame,
            received_ns=arrived.received_time_ns,
            ego_motion=movement_between(self._last_pose, arrived.pose),
        )
        await self._scheduler.threads.run(observe)

    async def _see_proposals(self, arrived: ArrivedFrame) -> None:
        started_s = time.perf_counter()
        try:
            limits = Limits.starting_now(self._proposal_budget_s, Urgency.SPARE)
            proposals = await self._pipeline.within(limits).propose(await arrived.still())
        except Exception as error:
            # The frame is answered all the same; flow goes on alone until a key frame shows
            # that proposals are there again.
            failure_of(error)
            self.propose_s = None
            return
        self.follower.see_proposals(proposals)
        self.propose_s = 0.8 * (self.propose_s or 0.0) + 0.2 * (time.perf_counter() - started_s)
