"""Deployment handles without Serve: the real replicas behind them, called in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ray.serve.exceptions import BackPressureError

from agent.settings import ServiceSettings
from agent.stage_settings import StageFactories
from deployments.observability.metrics import ServiceMetrics
from deployments.stages.language import Language
from deployments.stages.remote_pipeline import RemotePipeline
from deployments.stages.requests import revision_of
from deployments.stages.vision import AuxiliaryEncoder, PrimaryEncoder, Proposal, StageReplica

_FAKES = "tests.fakes"


class Handle:
    """As much of a `DeploymentHandle` as is used; what is sent is pickled, as it is there."""

    def __init__(self, *replicas: Any) -> None:
        self.replicas = replicas
        self.max_calls = 1000
        """More are refused, as by a deployment whose queue is full."""
        self.under_way: dict[asyncio.Future[Any], Any] = {}
        """Calls and the replicas that have them."""
        self.sent_bytes = 0
        """To replicas and back."""
        self._options: dict[str, Any] = {}
        self._root = self

    def options(self, **options: Any) -> Handle:
        """The same handle for other calls."""
        bound = Handle(*self.replicas)
        bound._options, bound._root = self._options | options, self._root
        return bound

    def remote(self, *arguments: Any) -> Any:
        """A call."""
        root, replica = self._root, self._replica()
        if self._options.get("stream"):
            return Pieces(self._written(replica, arguments))
        response = Response(self._called(replica, arguments))
        root.under_way[response] = replica
        response.add_done_callback(root.under_way.pop)
        return response

    def _replica(self) -> Any:
        """By session, as the consistent hash has it; else the least busy."""
        replicas = self._root.replicas
        if session := self._options.get("session_id"):
            return replicas[sum(session.encode()) % len(replicas)]
        busy = list(self._root.under_way.values())
        return min(replicas, key=busy.count)

    async def _called(self, replica: Any, arguments: tuple[Any, ...]) -> Any:
        self._check()
        method = getattr(replica, self._options["method_name"])
        return self._carried(await method(*self._carried(arguments)))

    async def _written(self, replica: Any, arguments: tuple[Any, ...]) -> AsyncIterator[Any]:
        self._check()
        method = getattr(replica, self._options["method_name"])
        async for piece in method(*self._carried(arguments)):
            yield self._carried(piece)

    def _carried(self, value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(part, list) for part in value):
            return value  # A reference, which only Ray itself can pickle.
        carried = pickle.dumps(value)
        self._root.sent_bytes += len(carried)
        return pickle.loads(carried)

    def _check(self) -> None:
        if len(self._root.under_way) > self._root.max_calls:
            raise BackPressureError(num_queued_requests=1, max_queued_requests=1)


class Response(asyncio.Task[Any]):
    """A `DeploymentResponse`."""

    async def _to_object_ref(self) -> Any:
        return self


class Pieces:
    """A `DeploymentResponseGenerator`."""

    def __init__(self, pieces: AsyncIterator[Any]) -> None:
        self._pieces = pieces
        self.is_cancelled = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._pieces

    def cancel(self) -> None:
        """Stop."""
        self.is_cancelled = True


class ServiceHere(RemotePipeline):
    """A front end's pipeline with the deployments that it calls."""

    def __init__(
        self,
        metrics: ServiceMetrics,
        vision: Sequence[Handle | None],
        languages: Handle,
        model: str,
    ) -> None:
        self.vision = vision
        self.languages = languages
        proposal = vision[0]
        super().__init__(
            languages,  # type: ignore[arg-type]
            proposal,  # type: ignore[arg-type]
            metrics=metrics,
            timeout_s=60.0,
            model=model,
        )


def remote_pipeline(
    metrics: ServiceMetrics,
    *,
    proposer: str = f"{_FAKES}:FakeProposer",
    primary_encoder: str = f"{_FAKES}:FakePrimaryEncoder",
    models: Sequence[str] = (),
    has_auxiliary_encoder: bool = True,
    num_languages: int = 1,
    overlap: bool = True,
) -> ServiceHere:
    """The service's own replicas over the fakes, everything but Serve.

    Args:
        metrics: of the front end.
        proposer, primary_encoder: classes of the stages.
        models: revisions of the four stages; by default that of the front end, and of the
            `ServiceSettings`.
        has_auxiliary_encoder: else there are three stages.
        num_languages: replicas of the last one.
        overlap: encoders begin before there are boxes.
    """
    settings = ServiceSettings()
    revision = revision_of(settings)
    models = models or [revision] * 4
    settings = dataclasses.replace(
        settings,
        stages=StageFactories(
            proposer, primary_encoder, f"{_FAKES}:FakeAuxiliaryEncoder", f"{_FAKES}:FakeLanguage"
        ),
        stream=dataclasses.replace(settings.stream, overlap_stages=overlap),
    )

    def handle(kind: type[StageReplica], model: str) -> Handle:
        replica = kind(settings)
        replica._model_revision = model
        return Handle(replica)

    vision = [
        handle(Proposal, models[0]),
        handle(PrimaryEncoder, models[1]),
        handle(AuxiliaryEncoder, models[2]) if has_auxiliary_encoder else None,
    ]
    languages = [Language(settings, *vision) for _ in range(num_languages)]  # type: ignore[arg-type]
    for language in languages:
        language._model_revision = models[3]
    return ServiceHere(metrics, vision, Handle(*languages), revision)
