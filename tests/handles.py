"""Deployment handles without Serve: the real replicas behind their real doors, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

from agent.started_tasks import started
from deployments.auxiliary_encoder import AuxiliaryEncoder
from deployments.language import Language
from deployments.metrics import ServiceMetrics
from deployments.primary_encoder import PrimaryEncoder
from deployments.proposal import Proposal
from deployments.remote_stages import RemoteStages, StageChannels
from deployments.stage_door import StageDoor


class Handle:
    """As much of a `DeploymentHandle` as the channels use."""

    def __init__(self, *replicas: Any) -> None:
        self.doors = {f"replica{n}": StageDoor(replica) for n, replica in enumerate(replicas)}
        self.gone: set[str] = set()
        """Replicas that Serve no longer knows."""
        self._metadata: dict[str, asyncio.Future[dict[str, str]]] = {}

    @contextlib.asynccontextmanager
    async def choose_replica(
        self, roster: dict[str, Any], *, _reserve: bool
    ) -> AsyncIterator[None]:
        """Fills in the roster, as the router of the real one does."""
        assert not _reserve
        for name, door in self.doors.items():
            if name not in self._metadata:
                self._metadata[name] = started(door.open("127.0.0.1"))
            if name not in self.gone:
                roster[name] = await self._metadata[name]
        yield

    async def close(self) -> None:
        """All its replicas' doors."""
        for name in self._metadata:
            await self.doors[name].close(0.0)


class StagesHere(RemoteStages):
    """The remote stages with the replicas that they call; to be left before the loop ends."""

    def __init__(self, handles: Sequence[Handle | None], **options: Any) -> None:
        self.handles = handles
        self._to_them = StageChannels.over(*handles)  # type: ignore[arg-type]
        super().__init__(self._to_them, timeout_s=30.0, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._to_them.close()
        for handle in self.handles:
            if handle is not None:
                await handle.close()


def remote_stages(
    metrics: ServiceMetrics,
    *,
    proposer: str = "tests.fakes:FakeProposer",
    primary_encoder: str = "tests.fakes:FakePrimaryEncoder",
) -> StagesHere:
    """The service's own stages over the fakes, everything but Serve."""
    fakes = "tests.fakes"
    handles = [
        Handle(replica)
        for replica in (
            Proposal(proposer, "", "cpu", 1),
            PrimaryEncoder(primary_encoder, "", "cpu", 1),
            AuxiliaryEncoder(f"{fakes}:FakeAuxiliaryEncoder", "", "cpu", 1),
            Language(f"{fakes}:FakeLanguage", "", "cpu", 1),
        )
    ]
    return stages_of(handles, metrics)


def stages_of(
    handles: Sequence[Handle | None],
    metrics: ServiceMetrics,
    *,
    model: str = "",
    overlap: bool = False,
) -> StagesHere:
    """The stages behind four handles, in the order of `StageChannels`, asked for a model's work.

    In place of the auxiliary encoder's there may be None.
    """
    return StagesHere(
        handles, calls=metrics.stage_calls, meters=metrics.meters, overlap=overlap, model=model
    )
