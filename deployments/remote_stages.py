"""The pipeline's stages in other processes; the same protocol as in one process.

Each call goes straight to a replica (`deployments/stage_channel.py`), carries the time that its
asker still waits, and is refused at once where the meters of the stages that it needs say that
this is not enough. The encoders may have the frame before there are boxes.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from agent.detections import FloatArray, Proposals
from agent.errors import Overloaded, StageUnavailable
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from agent.started_tasks import started
from agent.urgency import CurrentLimits, Limits, Urgency
from deployments.metrics import StageCalls
from deployments.stage_channel import StageChannel
from deployments.stage_door import StageFull
from deployments.stage_meter import StageMeter, StageMeters
from deployments.stage_queue import Served
from deployments.tracing import stage_span

_CLOCK_S = 0.001
"""A time limit may end this much early."""


@dataclass(frozen=True)
class StageChannels:
    """Ways to the stages; one set for all that a front end asks."""

    proposal: StageChannel
    primary_encoder: StageChannel
    auxiliary_encoder: StageChannel | None
    """None: the proposal network describes boxes."""
    language: StageChannel

    @classmethod
    def over(
        cls,
        proposal: DeploymentHandle[Any],
        primary_encoder: DeploymentHandle[Any],
        auxiliary_encoder: DeploymentHandle[Any] | None,
        language: DeploymentHandle[Any],
    ) -> StageChannels:
        """To the deployments behind these handles."""
        return cls(
            StageChannel(proposal),
            StageChannel(primary_encoder),
            None if auxiliary_encoder is None else StageChannel(auxiliary_encoder),
            StageChannel(language),
        )

    async def close(self) -> None:
        """Close all connections."""
        channels = (self.proposal, self.primary_encoder, self.auxiliary_encoder, self.language)
        await asyncio.gather(*(channel.close() for channel in channels if channel is not None))


class PendingProposals:
    """Boxes that may not be there yet; may be awaited many times."""

    def __init__(self, proposals: asyncio.Future[Proposals]) -> None:
        self._proposals = proposals

    @property
    def are_there(self) -> bool:
        """Whether awaiting them takes no time."""
        return self._proposals.done()

    def __await__(self) -> Generator[Any, None, Proposals]:
        # One of the waiters may go away while the others wait on.
        return asyncio.shield(self._proposals).__await__()


class RemoteStages:
    """Implements `agent.features.Stages` over channels and counts its calls."""

    def __init__(
        self,
        channels: StageChannels,
        *,
        calls: StageCalls,
        meters: StageMeters,
        timeout_s: float,
        overlap: bool,
        model: str,
    ) -> None:
        """Prepare to call.

        Args:
            channels: to the stages.
            calls, meters: count and measure.
            timeout_s: a stage that takes longer is unavailable.
            overlap: let the encoders start before the boxes are there.
            model: revision of the one that the stages are to have; others refuse.
        """
        self._calls = calls
        self._meters = meters
        self._overlap = overlap
        self._waiting = _Waiting(Limits(), timeout_s)
        self._model = model
        self._channels = channels
        self.has_auxiliary_encoder = channels.auxiliary_encoder is not None

    def within(self, limits: CurrentLimits) -> RemoteStages:
        """The same stages, channels and meters for one call."""
        bound = copy.copy(self)
        bound._waiting = dataclasses.replace(self._waiting, limits=limits)
        return bound

    def propose(self, frame: Frame) -> PendingProposals:
        """Start the proposal network on a frame.

        Raises:
            Overloaded: neither the boxes nor what is to be done with them could be had in time.
        """
        meters = self._meters
        # Whoever has no boxes yet needs all stages; only a spare call is about boxes alone.
        behind_s = 0.0
        if self._waiting.limits.now().urgency is not Urgency.SPARE:
            encoding_s = 0.0 if self._overlap else meters.encoding_s()
            behind_s = encoding_s + meters.language.expected_s()
        meters.proposal.check(self._waiting.limits.now(), beside_s=behind_s)
        self._calls.propose += 1
        call = self._channels.proposal.call("propose", frame, *self._told())
        return PendingProposals(started(self._waiting.served(meters.proposal, call)))

    def resolved(self, proposals: Proposals) -> PendingProposals:
        """Boxes that the client sent."""
        known: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        known.set_result(proposals)
        return PendingProposals(known)

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """Image tokens and region features of the primary encoder."""
        self._check_encoder(self._meters.primary_encoder)
        self._calls.encode_primary += 1
        features: PrimaryFeatures = await self._encode(
            self._channels.primary_encoder, self._meters.primary_encoder, frame, proposals
        )
        return features

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Region features of the auxiliary encoder, or what the proposal network says of boxes."""
        channel, meter = self._channels.auxiliary_encoder, self._meters.auxiliary_encoder
        if channel is None or meter is None:
            return AuxiliaryFeatures(await self._evidence(frame, await proposals))
        self._check_encoder(meter)
        self._calls.encode_auxiliary += 1
        features: AuxiliaryFeatures = await self._encode(channel, meter, frame, proposals)
        return features

    async def _evidence(self, frame: Frame, proposals: Proposals) -> FloatArray:
        """What came with the boxes; of boxes that clients sent the network is asked."""
        if proposals.evidence.shape[1]:
            return proposals.evidence
        self._check_encoder(self._meters.proposal)
        asked = (frame, *self._told(), proposals.xyxy)
        call = self._channels.proposal.call("describe", *asked)
        evidence: FloatArray = await self._waiting.served(self._meters.proposal, call)
        return evidence

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the language model writes."""
        self._meters.language.check(self._waiting.limits.now())
        self._calls.answer += 1
        asked = (features, self._patient(task), self._model)
        session = _prefix_owner(features)
        call = self._channels.language.call("answer", *asked, session=session)
        generation: Generation = await self._waiting.served(self._meters.language, call)
        self._meters.writing.add(generation)
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """What the language model writes, as it writes."""
        self._meters.language.check(self._waiting.limits.now())
        self._calls.answer += 1
        asked = (features, self._patient(task), self._model)
        session = _prefix_owner(features)
        pieces = self._channels.language.stream("write_answer", *asked, session=session)
        with self._waiting.on(self._meters.language) as served:
            async for piece in self._waiting.each(pieces):
                if isinstance(piece, str):
                    yield piece
                else:
                    served(piece)
                    self._meters.writing.add(piece.value)
                    yield piece.value

    def _check_encoder(self, meter: StageMeter) -> None:
        meter.check(self._waiting.limits.now(), beside_s=self._meters.language.expected_s())

    def _told(self) -> tuple[float | None, Urgency, str]:
        """What a vision stage is told besides its work."""
        limits = self._waiting.limits.now()
        left_s = limits.left_s
        return (None if math.isinf(left_s) else left_s), limits.urgency, self._model

    def _patient(self, task: Task) -> Task:
        return dataclasses.replace(task, patience_s=self._waiting.limits.now().patience_s)

    async def _encode(
        self,
        channel: StageChannel,
        meter: StageMeter,
        frame: Frame,
        proposals: Awaitable[Proposals],
    ) -> Any:
        assert isinstance(proposals, PendingProposals)
        asked = (frame, *self._told())
        if self._overlap and not proposals.are_there:
            call = channel.call_in_parts("encode", *asked, last=proposals)
        else:
            call = channel.call("encode", *asked, await proposals)
        return await self._waiting.served(meter, call)


@dataclass(frozen=True)
class _Waiting:
    """How long one call's asker waits, and for what."""

    limits: CurrentLimits
    timeout_s: float
    """Whoever waits, a stage that takes longer is unavailable."""

    async def served(self, meter: StageMeter, call: Awaitable[Served[Any]]) -> Any:
        """The call's result, waited for and measured."""
        with self.on(meter) as served:
            async with asyncio.timeout(min(self.limits.now().left_s, self.timeout_s)):
                done = await call
            served(done)
            return done.value

    async def each(self, pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """What a call yields, as it comes.

        Time that the reader takes between two pieces is its own: it counts to the deadline, but
        not as the stage's. No time limit is open then, which would cancel whoever reads.
        """
        waited_s = 0.0
        while True:
            asked_s = time.monotonic()
            try:
                async with asyncio.timeout(
                    min(self.limits.now().left_s, self.timeout_s - waited_s)
                ):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            waited_s += time.monotonic() - asked_s
            yield piece

    @contextlib.contextmanager
    def on(self, meter: StageMeter) -> Iterator[Callable[[Served[Any]], None]]:
        """Measures the call, and says which stage was late where time is up inside."""
        try:
            with stage_span(meter.name), meter.call() as served:
                yield served
        except TimeoutError:
            if self.limits.now().left_s <= _CLOCK_S:
                raise Overloaded(
                    f"the {meter.name} stage was not done before the deadline; allow more time, "
                    "send less or try again later",
                    retry_after_s=meter.expected_s(),
                ) from None
            raise StageUnavailable(
                f"the {meter.name} stage did not answer within {self.timeout_s:g} s; try again "
                "later"
            ) from None
        except StageFull:
            meter.refused()
            raise Overloaded(
                f"the {meter.name} stage's queue is full; send less or try again later",
                retry_after_s=meter.expected_s(),
            ) from None


def _prefix_owner(features: FrameFeatures | None) -> str:
    """Questions with one of these share a prefix, all pages of a frame among them."""
    return "" if features is None else features.image_key or features.key
