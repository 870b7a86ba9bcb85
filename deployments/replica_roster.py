"""Which replicas a stage has, as Serve knows it, and which of them gets the next call.

Serve keeps the list up to date and would choose itself, but calls go to the replicas' own doors
(`deployments/stage_channel.py`), where it does not see how busy they are. So its router is asked
for the list alone. Knows no stage and no connection.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Set
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

Roster = dict[str, Mapping[str, Any]]
"""Each replica's metadata (`record_replica_metadata`) by its id."""


class RosterRouter(RequestRouter):  # type: ignore[misc]
    """Serve's end of it: the router of every stage."""

    def initialize_state(self, **_kwargs: Any) -> None:
        """Nothing is kept but what Serve's own class keeps."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All as they come, for nothing is sent; those who bring a roster find all in it."""
        for argument in pending_request.args if pending_request is not None else ():
            # A plain dict: Serve sends this class by value, so it would not know one of ours.
            if isinstance(argument, dict):
                for replica in candidate_replicas:
                    argument[replica.replica_id.unique_id] = replica.replica_metadata
        return [candidate_replicas]


async def roster_of(handle: DeploymentHandle[Any]) -> Roster:
    """The replicas that there are; waits until there is one.

    Raises:
        DeploymentUnavailableError: there will be none.
    """
    roster: Roster = {}
    # Nothing is sent, so no place at a replica is reserved either.
    async with handle.choose_replica(roster, _reserve=False):
        return roster


def best(
    replicas: Iterable[str],
    *,
    in_flight: Mapping[str, int],
    shunned: Set[str] = frozenset(),
    session: str = "",
) -> str:
    """The replica for the next call.

    Without a session the least busy, of equals any. With one, that of the highest random weight
    (rendezvous hashing): every front end finds the same, and a replica more or less moves no
    session but its own.

    Args:
        replicas: ids of all there are, at least one.
        in_flight: calls of this front end that are at them.
        shunned: could not be reached a moment ago; taken where there is no other.
        session: calls of one session go to one replica, whoever makes them.
    """

    def rank(replica: str) -> tuple[bool, float | bytes, float]:
        if session:
            return replica in shunned, _weight(replica, session), 0.0
        return replica in shunned, in_flight.get(replica, 0), random.random()

    return min(replicas, key=rank)


def _weight(replica: str, session: str) -> bytes:
    return hashlib.blake2b(f"{replica} {session}".encode(), digest_size=8).digest()
