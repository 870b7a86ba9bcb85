"""The pipeline's stages behind deployment handles; the same protocol as in one process.

How a call travels is decided here and nowhere else. Small calls go straight to the replica
(`_by_reference=False`, about 1.6 ms); large ones through the object store. To let the encoders
start before the boxes are there, the proposal call goes by reference and its pending result is
handed on; that costs more processor time than it saves where all stages share a few cores.

Each call carries the time that its asker still waits, and is refused at once where the meters of
the stages that it needs say that this is not enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from agent.detections import Proposals
from agent.errors import Overloaded, StageUnavailable
from agent.feature_codec import num_bytes
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from agent.started_tasks import started
from agent.urgency import Limits, Urgency
from deployments.metrics import StageCalls
from deployments.stage_meter import StageMeter, StageMeters
from deployments.stage_queue import Served
from deployments.tracing import stage_span

BY_VALUE_LIMIT_BYTES = 500_000
"""Measured: above this the object store is faster than a direct message."""


@dataclass(frozen=True)
class StageHandles:
    """The four stages as Serve knows them."""

    proposal: DeploymentHandle[Any]
    primary_encoder: DeploymentHandle[Any]
    auxiliary_encoder: DeploymentHandle[Any]
    language: DeploymentHandle[Any]


class PendingProposals:
    """The result of a proposal call that may not be there yet; may be awaited many times."""

    def __init__(
        self, response: DeploymentResponse[Any], waiting: _Waiting, meter: StageMeter
    ) -> None:
        self._waiting = waiting
        self._meter = meter
        # The developer API that lets a stage start before its argument is there.
        self._reference = started(response._to_object_ref())
        self._proposals = started(self._fetch())

    async def reference(self) -> ray.ObjectRef[Served[Proposals]]:
        """A reference that a stage can await inside its own method."""
        reference: ray.ObjectRef[Served[Proposals]] = await asyncio.shield(self._reference)
        return reference

    def __await__(self) -> Generator[Any, None, Proposals]:
        return asyncio.shield(self._proposals).__await__()

    async def _fetch(self) -> Proposals:
        async with self._waiting.on(self._meter) as served:
            done: Served[Proposals] = await (await self.reference())
            served(done)
            return done.value


class ProposalsByValue:
    """Boxes that travel as they are: known already, or fetched here before the encoders start."""

    def __init__(self, proposals: asyncio.Future[Proposals]) -> None:
        self._proposals = proposals

    async def reference(self) -> Proposals:
        """The boxes themselves; a stage takes either."""
        return await self

    def __await__(self) -> Generator[Any, None, Proposals]:
        return asyncio.shield(self._proposals).__await__()


class RemoteStages:
    """Implements `agent.features.Stages` over deployment handles and counts its calls."""

    def __init__(
        self,
        handles: StageHandles,
        *,
        calls: StageCalls,
        meters: StageMeters,
        timeout_s: float,
        overlap: bool,
        model: str,
    ) -> None:
        """Prepare to call.

        Args:
            handles: of the stages.
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
        self._proposal_by_reference = handles.proposal
        self._proposal = _Caller(meters.proposal, handles.proposal, "propose")
        self._primary = _Caller(meters.primary_encoder, handles.primary_encoder, "encode")
        self._auxiliary = _Caller(meters.auxiliary_encoder, handles.auxiliary_encoder, "encode")
        self._language = _Caller(meters.language, handles.language, "answer")
        self._language_stream = handles.language.options(method_name="write_answer", stream=True)

    def within(self, limits: Limits) -> RemoteStages:
        """The same stages, handles and meters for one call."""
        bound = copy.copy(self)
        bound._waiting = dataclasses.replace(self._waiting, limits=limits)
        return bound

    def propose(self, frame: Frame) -> PendingProposals | ProposalsByValue:
        """Start the proposal network on a frame.

        Raises:
            Overloaded: neither the boxes nor what is to be done with them could be had in time.
        """
        meters, arguments = self._meters, (frame, *self._told())
        # Whoever has no boxes yet needs all stages; only a spare call is about boxes alone.
        behind_s = 0.0
        if self._waiting.limits.urgency is not Urgency.SPARE:
            encoding_s = 0.0 if self._overlap else meters.encoding_s()
            behind_s = encoding_s + meters.language.expected_s()
        meters.proposal.check(self._waiting.limits, beside_s=behind_s)
        self._calls.propose += 1
        if not self._overlap:
            call = self._proposal.call(len(frame.encoded), self._waiting, *arguments)
            return ProposalsByValue(started(call))
        response = self._proposal_by_reference.propose.remote(*arguments)
        assert isinstance(response, DeploymentResponse)
        return PendingProposals(response, self._waiting, meters.proposal)

    def resolved(self, proposals: Proposals) -> ProposalsByValue:
        """Boxes that the client sent."""
        known: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        known.set_result(proposals)
        return ProposalsByValue(known)

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """Image tokens and region features of the primary encoder."""
        self._check_encoder(self._meters.primary_encoder)
        self._calls.encode_primary += 1
        features: PrimaryFeatures = await self._encode(self._primary, frame, proposals)
        self._primary.saw_response(features.image_tokens.nbytes + features.regions.nbytes)
        return features

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Region features of the auxiliary encoder."""
        self._check_encoder(self._meters.auxiliary_encoder)
        self._calls.encode_auxiliary += 1
        features: AuxiliaryFeatures = await self._encode(self._auxiliary, frame, proposals)
        self._auxiliary.saw_response(features.regions.nbytes)
        return features

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the language model writes."""
        self._meters.language.check(self._waiting.limits)
        self._calls.answer += 1
        generation: Generation = await self._language.call(
            0 if features is None else num_bytes(features),
            self._waiting,
            features,
            self._patient(task),
            self._model,
            session=_prefix_owner(features),
        )
        self._meters.writing.add(generation)
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """What the language model writes, as it writes."""
        self._meters.language.check(self._waiting.limits)
        self._calls.answer += 1
        stream = self._language_stream.options(session_id=_prefix_owner(features))
        pieces = stream.remote(features, self._patient(task), self._model)
        async with self._waiting.on(self._meters.language) as served:
            async for piece in pieces:
                if isinstance(piece, str):
                    yield piece
                else:
                    served(piece)
                    self._meters.writing.add(piece.value)
                    yield piece.value

    def _check_encoder(self, meter: StageMeter) -> None:
        meter.check(self._waiting.limits, beside_s=self._meters.language.expected_s())

    def _told(self) -> tuple[float | None, Urgency, str]:
        """What a vision stage is told besides its work."""
        limits = self._waiting.limits
        left_s = limits.left_s
        return (None if math.isinf(left_s) else left_s), limits.urgency, self._model

    def _patient(self, task: Task) -> Task:
        return dataclasses.replace(task, patience_s=self._waiting.limits.patience_s)

    async def _encode(self, caller: _Caller, frame: Frame, proposals: Awaitable[Proposals]) -> Any:
        assert isinstance(proposals, (PendingProposals, ProposalsByValue))
        pending = {"proposals": await proposals.reference()}
        size = len(frame.encoded)
        return await caller.call(size, self._waiting, frame, pending, *self._told())


class _Caller:
    """One method of one stage, called by value or by reference as its sizes demand."""

    def __init__(self, meter: StageMeter, handle: DeploymentHandle[Any], method: str) -> None:
        self._meter = meter
        self._by_reference = handle.options(method_name=method)
        self._by_value = handle.options(method_name=method, _by_reference=False)
        self._response_bytes = 0

    def saw_response(self, size_bytes: int) -> None:
        """Responses of a stage are about as large as its last one."""
        self._response_bytes = size_bytes

    async def call(
        self, request_bytes: int, waiting: _Waiting, *arguments: object, session: str = ""
    ) -> Any:
        """The stage's result.

        Args:
            request_bytes: size of the largest argument.
            waiting: how long.
            arguments: of the stage's method.
            session: calls of one session go to one replica, where the deployment's router heeds
                sessions (serve_config.production.yaml).

        Raises:
            StageUnavailable: not within the stage's own time.
            Overloaded: not before the caller's deadline, or the stage's queue is full.
        """
        small = max(request_bytes, self._response_bytes) < BY_VALUE_LIMIT_BYTES
        handle = self._by_value if small else self._by_reference
        if session:
            handle = handle.options(session_id=session)
        async with waiting.on(self._meter) as served:
            done: Served[Any] = await handle.remote(*arguments)
            served(done)
            return done.value


@dataclass(frozen=True)
class _Waiting:
    """How long one call's asker waits, and for what."""

    limits: Limits
    timeout_s: float
    """Whoever waits, a stage that takes longer is unavailable."""

    @contextlib.asynccontextmanager
    async def on(self, meter: StageMeter) -> AsyncIterator[Callable[[Served[Any]], None]]:
        """`asyncio.timeout` that says which stage was late, and measures the call."""
        left_s = self.limits.left_s
        try:
            with stage_span(meter.name), meter.call() as served:
                async with asyncio.timeout(min(left_s, self.timeout_s)):
                    yield served
        except TimeoutError:
            if left_s < self.timeout_s:
                raise Overloaded(
                    f"the {meter.name} stage was not done before the deadline; allow more time, "
                    "send less or try again later",
                    retry_after_s=meter.expected_s(),
                ) from None
            raise StageUnavailable(
                f"the {meter.name} stage did not answer within {self.timeout_s:g} s; try again "
                "later"
            ) from None
        except BackPressureError:
            meter.refused()
            raise Overloaded(
                f"the {meter.name} stage's queue is full; send less or try again later",
                retry_after_s=meter.expected_s(),
            ) from None


def _prefix_owner(features: FrameFeatures | None) -> str:
    """Questions with one of these share a prefix, all pages of a frame among them."""
    return "" if features is None else features.image_key or features.key
