"""Deployment handles without Serve: the real replicas' methods, called in this process."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from deployments.auxiliary_encoder import AuxiliaryEncoder
from deployments.language import Language
from deployments.metrics import ServiceMetrics
from deployments.primary_encoder import PrimaryEncoder
from deployments.proposal import Proposal
from deployments.remote_stages import RemoteStages, StageHandles


class Handle:
    """As much of a `DeploymentHandle` as the remote stages use."""

    def __init__(self, replica: Any, method: str = "") -> None:
        self._replica = replica
        self._method = method

    def options(self, *, method_name: str, **_how: object) -> Handle:
        """A handle for one method; how it travels makes no difference here."""
        return Handle(self._replica, method_name)

    def remote(self, *arguments: object) -> Awaitable[Any]:
        """Calls the replica."""
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
    handles = StageHandles(
        *(
            Handle(replica)  # type: ignore[arg-type]
            for replica in (
                Proposal(proposer, "", "cpu", 1),
                PrimaryEncoder(primary_encoder, "", "cpu", 1),
                AuxiliaryEncoder(f"{fakes}:FakeAuxiliaryEncoder", "", "cpu", 1),
                language or Language(f"{fakes}:FakeLanguage", "", "cpu", 1),
            )
        )
    )
    return RemoteStages(
        handles, calls=metrics.stage_calls, meters=metrics.meters, timeout_s=30.0, overlap=False
    )
