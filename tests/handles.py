"""Deployment handles without Serve: the real replicas' methods, called in this process."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from deployments.auxiliary_encoder import AuxiliaryEncoder
from deployments.language import Language
from deployments.metrics import ServiceMetrics
from deployments.primary_encoder import PrimaryEncoder
from deployments.proposal import Proposal
from deployments.remote_stages import RemoteStages, StageHandles


class Handle:
    """As much of a `DeploymentHandle` as the remote stages use."""

    def __init__(
        self, replica: Any, method: str = "", sessions: list[str] | None = None, session: str = ""
    ) -> None:
        self._replica = replica
        self._method = method
        self._session = session
        self.sessions: list[str] = [] if sessions is None else sessions
        """What each call named as its session, in order; shared by all handles of a replica."""

    def options(self, *, method_name: str = "", session_id: str = "", **_how: object) -> Handle:
        """A handle for one method; how it travels makes no difference here."""
        return Handle(
            self._replica, method_name or self._method, self.sessions, session_id or self._session
        )

    def remote(self, *arguments: object) -> Awaitable[Any]:
        """Calls the replica."""
        self.sessions.append(self._session)
        called: Awaitable[Any] = getattr(self._replica, self._method)(*arguments)
        return called


def remote_stages(
    metrics: ServiceMetrics,
    *,
    proposer: str = "tests.fakes:FakeProposer",
    primary_encoder: str = "tests.fakes:FakePrimaryEncoder",
    language: Any = None,
) -> RemoteStages:
    """The service's own stages over the fakes, everything but Serve."""
    fakes = "tests.fakes"
    handles = [
        Handle(replica)
        for replica in (
            Proposal(proposer, "", "cpu", 1),
            PrimaryEncoder(primary_encoder, "", "cpu", 1),
            AuxiliaryEncoder(f"{fakes}:FakeAuxiliaryEncoder", "", "cpu", 1),
            language or Language(f"{fakes}:FakeLanguage", "", "cpu", 1),
        )
    ]
    return stages_of(handles, metrics)


def stages_of(
    handles: Sequence[Handle], metrics: ServiceMetrics, *, model: str = ""
) -> RemoteStages:
    """The stages behind four handles, in the order of `StageHandles`, asked for a model's work."""
    return RemoteStages(
        StageHandles(*handles),  # type: ignore[arg-type]
        calls=metrics.stage_calls,
        meters=metrics.meters,
        timeout_s=30.0,
        overlap=False,
        model=model,
    )
