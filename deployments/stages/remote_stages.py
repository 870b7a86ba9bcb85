"""The pipeline's stages as a language replica has them: the language model here, vision by handle.

Same protocol as in one process. Each call carries the time that its asker still waits, and is
refused at once where the meters of the stages that it needs say that this is not enough. The
encoders may have the frame before there are boxes. Features come through Ray's object store,
where one node's replicas read them without a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from agent.detections import FloatArray, Proposals
from agent.features import Array, AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from agent.started_tasks import started
from agent.urgency import CurrentLimits, Limits
from deployments.observability.stage_meter import Served, StageMeter, StageMeters, WorkDone, Written
from deployments.stages.calls import StageCalls, StageFull
from deployments.stages.patience import each_in_time, in_time
from deployments.stages.requests import Wanted
from groundstream.errors import Overloaded, StageUnavailable

T = TypeVar("T")


class Writer(Protocol):
    """The language model of this process."""

    async def write(self, features: FrameFeatures | None, task: Task) -> Served[Generation]:
        """One answer."""
        ...

    def write_aloud(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Served[Generation]]:
        """The same, its text as it is written."""
        ...


@dataclass(frozen=True)
class VisionCalls:
    """Ways to the vision stages."""

    proposal: StageCalls
    primary_encoder: StageCalls
    auxiliary_encoder: StageCalls | None
    """None: the proposal network describes boxes."""


class PendingProposals:
    """Boxes that may not be there yet; may be awaited many times."""

    def __init__(self, proposals: asyncio.Future[Proposals]) -> None:
        self.reference: asyncio.Future[Any] | None = None
        """To what the proposal stage will return, once a replica of it has the call."""
        self._proposals = proposals

    @property
    def are_there(self) -> bool:
        """Whether awaiting them takes no time."""
        return self._proposals.done()

    def __await__(self) -> Generator[Any, None, Proposals]:
        # One of the waiters may go away while the others wait on.
        return asyncio.shield(self._proposals).__await__()


class WorkList:
    """What the stages did for one call of a front end's."""

    def __init__(self) -> None:
        self.done: list[WorkDone] = []
        self._started_s = time.monotonic()

    @contextlib.contextmanager
    def entry(
        self, meter: StageMeter, method: str
    ) -> Iterator[Callable[[Served[Any], Written | None], None]]:
        """One call of a stage; call what it gives with the result."""
        began_s, known = time.monotonic(), list[tuple[Served[Any], Written | None]]()
        try:
            yield lambda served, written: known.append((served, written))
        finally:
            served, written = known[-1] if known else (None, None)
            self.done.append(
                WorkDone(
                    stage=meter.name,
                    method=method,
                    began_s=began_s - self._started_s,
                    took_s=time.monotonic() - began_s,
                    served=None if served is None else replace(served, value=None),
                    written=written,
                    in_flight=meter.counts.in_flight,
                )
            )

    def refused(self, meter: StageMeter) -> None:
        """A call of a stage was not begun."""
        self.done.append(
            WorkDone(meter.name, "", is_refused=True, in_flight=meter.counts.in_flight)
        )


class RemoteStages:
    """Implements `agent.features.Stages`."""

    def __init__(
        self,
        vision: VisionCalls,
        writer: Writer,
        *,
        meters: StageMeters,
        timeout_s: float,
        overlap: bool,
        model: str,
    ) -> None:
        """Prepare to call.

        Args:
            vision: the stages elsewhere.
            writer: the one here.
            meters: measure and forecast.
            timeout_s: see `StageMeter.silence_s`.
            overlap: let the encoders start before the boxes are there.
            model: revision of the one that the stages are to have; others refuse.
        """
        self._vision = vision
        self._writer = writer
        self._meters = meters
        self._timeout_s = timeout_s
        self._overlap = overlap
        self._model = model
        self._limits: CurrentLimits = Limits()
        self._work = WorkList()
        self._tenant = ""
        self.has_auxiliary_encoder = vision.auxiliary_encoder is not None

    def within(self, limits: CurrentLimits) -> RemoteStages:
        """The same stages and meters for one call."""
        bound = copy.copy(self)
        bound._limits = limits
        return bound

    def noting(self, work: WorkList, tenant: str) -> RemoteStages:
        """The same stages for one tenant's call; what they do is put on the list."""
        bound = copy.copy(self)
        bound._work, bound._tenant = work, tenant
        return bound

    def propose(self, frame: Frame) -> PendingProposals:
        """Start the proposal network on a frame.

        Raises (when awaited):
            Overloaded: neither the boxes nor what is to be done with them could be had in time.
        """
        meter, references = self._meters.proposal, asyncio.get_running_loop().create_future()

        def sent(response: Any) -> None:
            if self._overlap and not references.done():
                references.set_result(started(response._to_object_ref()))

        def begin() -> Awaitable[Any]:
            # The call needs all stages, for it has no boxes yet.
            encoding_s = 0.0 if self._overlap else self._meters.encoding_s()
            self._check(meter, encoding_s + self._meters.language.expected_s())
            return self._vision.proposal.call(
                "propose", frame, self._wanted(), num_bytes=len(frame.encoded),
                attempt_s=meter.attempt_s(), on_sent=sent,
            )  # fmt: skip

        async def reference() -> Any:
            return await (await references)

        pending = PendingProposals(started(self._served(meter, "propose", begin)))
        if self._overlap:
            pending.reference = started(reference())
        return pending

    def resolved(self, proposals: Proposals) -> PendingProposals:
        """Boxes that the client sent."""
        known: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        known.set_result(proposals)
        return PendingProposals(known)

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """Image tokens and region features of the primary encoder."""
        calls, meter = self._vision.primary_encoder, self._meters.primary_encoder
        found: PrimaryFeatures = await self._encode(
            calls, meter, "encode_primary", frame, proposals
        )
        tokens, regions = await asyncio.gather(_own(found.image_tokens), _own(found.regions))
        return replace(found, image_tokens=tokens, regions=regions)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Region features of the auxiliary encoder, or what the proposal network says of boxes."""
        calls, meter = self._vision.auxiliary_encoder, self._meters.auxiliary_encoder
        if calls is None or meter is None:
            return AuxiliaryFeatures(await self._evidence(frame, await proposals))
        found: AuxiliaryFeatures = await self._encode(
            calls, meter, "encode_auxiliary", frame, proposals
        )
        return replace(found, regions=await _own(found.regions))

    async def _evidence(self, frame: Frame, proposals: Proposals) -> FloatArray:
        """What came with the boxes; of boxes that clients sent the network is asked."""
        if proposals.evidence.shape[1]:
            return proposals.evidence
        meter = self._meters.proposal

        def begin() -> Awaitable[Any]:
            self._check(meter, self._meters.language.expected_s())
            return self._vision.proposal.call(
                "describe", frame, self._wanted(), proposals.xyxy, num_bytes=len(frame.encoded),
                attempt_s=meter.attempt_s(),
            )  # fmt: skip

        evidence: FloatArray = await self._served(meter, "", begin)
        return evidence

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the language model writes."""
        meter = self._meters.language

        def begin() -> Awaitable[Any]:
            self._check(meter)
            return self._writer.write(features, self._patient(task))

        generation: Generation = await self._served(meter, "answer", begin)
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """What the language model writes, as it writes."""
        meter = self._meters.language
        self._check(meter)
        pieces = self._writer.write_aloud(features, self._patient(task))
        with self._on(meter, "answer", self._limits.now()) as (served, _):
            async for piece in each_in_time(pieces, meter, self._limits, self._timeout_s):
                if isinstance(piece, str):
                    yield piece
                else:
                    served(piece, Written.of(piece.value))
                    yield piece.value

    def _check(self, meter: StageMeter, beside_s: float = 0.0) -> None:
        try:
            meter.check(self._limits.now(), beside_s=beside_s)
        except Overloaded:
            self._work.refused(meter)
            raise

    def _wanted(self) -> Wanted:
        return Wanted.within(self._limits.now(), self._model, self._tenant)

    def _patient(self, task: Task) -> Task:
        return replace(task, patience_s=self._limits.now().patience_s)

    async def _encode(
        self,
        calls: StageCalls,
        meter: StageMeter,
        method: str,
        frame: Frame,
        proposals: Awaitable[Proposals],
    ) -> Any:
        assert isinstance(proposals, PendingProposals)
        early = proposals.reference is not None and not proposals.are_there
        known = None if early else await proposals

        def begin(boxes: object) -> Callable[[], Awaitable[Any]]:
            def call() -> Awaitable[Any]:
                self._check(meter, self._meters.language.expected_s())
                return calls.call(
                    "encode", frame, self._wanted(), boxes, attempt_s=meter.attempt_s()
                )

            return call

        if known is None:
            assert proposals.reference is not None
            try:
                # Of two that wait the one whose error says more is heard.
                await asyncio.wait(
                    [proposals.reference, started(_settled(proposals))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if proposals.reference.done():
                    reference = [proposals.reference.result()]
                    return await self._served(meter, method, begin(reference))
                known = await proposals
            except StageUnavailable:
                # The proposal stage was asked again, perhaps; what it says now is here.
                known = await proposals
        return await self._served(meter, method, begin(known))

    async def _served(
        self, meter: StageMeter, method: str, begin: Callable[[], Awaitable[Any]]
    ) -> Any:
        """The call's result, waited for and measured.

        Begun again where it came too late for those who waited for it then, but not for one who
        has joined them since.
        """
        while True:
            limits = self._limits.now()
            try:
                call = begin()
                with self._on(meter, method, limits) as (served, silence_s):
                    async with asyncio.timeout(silence_s):
                        done = await call
                    value = done.value
                    written = Written.of(value) if isinstance(value, Generation) else None
                    served(done, written)
                    return value
            except Overloaded:
                if self._limits.now().deadline_s <= limits.deadline_s:
                    raise

    @contextlib.contextmanager
    def _on(
        self, meter: StageMeter, method: str, limits: Limits
    ) -> Iterator[tuple[Callable[[Served[Any], Written | None], None], float]]:
        """Measures the call; gives what to call with its result, and see `in_time`."""
        with in_time(meter, limits, self._timeout_s) as silence_s:
            try:
                with self._work.entry(meter, method) as note, meter.call() as served:

                    def done(result: Served[Any], written: Written | None) -> None:
                        served(result)
                        note(result, written)

                    yield done, silence_s
            except StageFull:
                self._work.refused(meter)
                raise


async def _settled(proposals: PendingProposals) -> None:
    with contextlib.suppress(Exception):
        await proposals


async def _own(array: Array) -> Array:
    """The array in this process's own memory.

    What the object store holds it must keep for as long as anyone looks at it, and features are
    looked at for minutes.
    """
    if array.flags.writeable:
        return array
    return await asyncio.to_thread(np.array, array)
