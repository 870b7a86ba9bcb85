"""The pipeline's stages behind deployment handles; the same protocol as in one process.

How a call travels is decided here and nowhere else. Small calls go straight to the replica
(`_by_reference=False`, about 1.6 ms); large ones through the object store. To let the encoders
start before the boxes are there, the proposal call goes by reference and its pending result is
handed on; that costs more processor time than it saves where all stages share a few cores.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Generator
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from agent.detections import Proposals
from agent.errors import StageUnavailable
from agent.feature_codec import num_bytes
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from deployments.metrics import StageCalls

_BY_VALUE_LIMIT_BYTES = 500_000
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

    def __init__(self, response: DeploymentResponse[Any], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        # The developer API that lets a stage start before its argument is there.
        self._reference = _started(response._to_object_ref())
        self._proposals = _started(self._fetch())

    async def reference(self) -> ray.ObjectRef[Proposals]:
        """A reference that a stage can await inside its own method."""
        reference: ray.ObjectRef[Proposals] = await asyncio.shield(self._reference)
        return reference

    def __await__(self) -> Generator[Any, None, Proposals]:
        return asyncio.shield(self._proposals).__await__()

    async def _fetch(self) -> Proposals:
        async with _deadline("proposal", self._timeout_s):
            proposals: Proposals = await (await self.reference())
            return proposals


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
        self, handles: StageHandles, *, calls: StageCalls, timeout_s: float, overlap: bool
    ) -> None:
        self._calls = calls
        self._timeout_s = timeout_s
        self._overlap = overlap
        self._proposal_by_reference = handles.proposal
        self._proposal = _Caller("proposal", handles.proposal, "propose")
        self._primary = _Caller("primary encoder", handles.primary_encoder, "encode")
        self._auxiliary = _Caller("auxiliary encoder", handles.auxiliary_encoder, "encode")
        self._language = _Caller("language", handles.language, "answer")
        self._language_stream = handles.language.options(method_name="write_answer", stream=True)

    def propose(self, frame: Frame) -> PendingProposals | ProposalsByValue:
        """Start the proposal network on a frame."""
        self._calls.propose += 1
        if not self._overlap:
            call = self._proposal.call(len(frame.encoded), self._timeout_s, frame)
            return ProposalsByValue(_started(call))
        response = self._proposal_by_reference.propose.remote(frame)
        assert isinstance(response, DeploymentResponse)
        return PendingProposals(response, self._timeout_s)

    def resolved(self, proposals: Proposals) -> ProposalsByValue:
        """Boxes that the client sent."""
        known: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        known.set_result(proposals)
        return ProposalsByValue(known)

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """Image tokens and region features of the primary encoder."""
        self._calls.encode_primary += 1
        features: PrimaryFeatures = await self._encode(self._primary, frame, proposals)
        self._primary.saw_response(features.image_tokens.nbytes + features.regions.nbytes)
        return features

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Region features of the auxiliary encoder."""
        self._calls.encode_auxiliary += 1
        features: AuxiliaryFeatures = await self._encode(self._auxiliary, frame, proposals)
        self._auxiliary.saw_response(features.regions.nbytes)
        return features

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the language model writes."""
        self._calls.answer += 1
        generation: Generation = await self._language.call(
            0 if features is None else num_bytes(features), self._timeout_s, features, task
        )
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """What the language model writes, as it writes."""
        self._calls.answer += 1
        pieces = self._language_stream.remote(features, task)
        async with _deadline("language", self._timeout_s):
            async for piece in pieces:
                yield piece

    async def _encode(self, caller: _Caller, frame: Frame, proposals: Awaitable[Proposals]) -> Any:
        assert isinstance(proposals, (PendingProposals, ProposalsByValue))
        pending = {"proposals": await proposals.reference()}
        return await caller.call(len(frame.encoded), self._timeout_s, frame, pending)


class _Caller:
    """One method of one stage, called by value or by reference as its sizes demand."""

    def __init__(self, stage: str, handle: DeploymentHandle[Any], method: str) -> None:
        self._stage = stage
        self._by_reference = handle.options(method_name=method)
        self._by_value = handle.options(method_name=method, _by_reference=False)
        self._response_bytes = 0

    def saw_response(self, size_bytes: int) -> None:
        """Responses of a stage are about as large as its last one."""
        self._response_bytes = size_bytes

    async def call(self, request_bytes: int, timeout_s: float, *arguments: object) -> Any:
        """The stage's result.

        Raises:
            StageUnavailable: not within `timeout_s`.
        """
        small = max(request_bytes, self._response_bytes) < _BY_VALUE_LIMIT_BYTES
        handle = self._by_value if small else self._by_reference
        async with _deadline(self._stage, timeout_s):
            return await handle.remote(*arguments)


@contextlib.asynccontextmanager
async def _deadline(stage: str, timeout_s: float) -> AsyncIterator[None]:
    """`asyncio.timeout` that says which stage was late."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise StageUnavailable(
            f"the {stage} stage did not answer within {timeout_s:g} s; try again later"
        ) from None


def _started(work: Any) -> asyncio.Task[Any]:
    """A task whose error is not reported as lost when every waiter has gone away."""
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
