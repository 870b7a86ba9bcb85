"""How many replicas there should be: Serve autoscaling policies over what replicas report.

Serve scales a deployment by the calls that come through its handles; streams come in by the front
ends' own port and calls by the stages' own doors, where it sees none. Each replica reports what it
has (`record_autoscaling_stats`), and these policies turn it into replicas. Bounds and delays are
Serve's own, from the same `autoscaling_config`. Knows no session and no call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

OPEN_STREAMS = "open_streams"
"""Under this name a front end reports."""
CALLS_UNDER_WAY = "calls_under_way"
"""Under this name a stage reports the calls it had, on average since its last report."""


class Context(Protocol):
    """The part of Serve's `AutoscalingContext` that is looked at."""

    current_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


class OpenStreams:
    """As many front ends as the open streams need at so many streams each."""

    def __init__(self, streams_per_replica: float = 32.0) -> None:
        """Raises ValueError: `streams_per_replica` is not positive."""
        self._streams_per_replica = _positive("streams_per_replica", streams_per_replica)

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and no state; without any report yet, as many as there are."""
        return _wanted(ctx, OPEN_STREAMS, self._streams_per_replica), {}


class CallsUnderWay:
    """As many replicas of a stage as its calls need at so many calls each."""

    def __init__(self, calls_per_replica: float = 2.0) -> None:
        """Raises ValueError: `calls_per_replica` is not positive."""
        self._calls_per_replica = _positive("calls_per_replica", calls_per_replica)

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and no state; without any report yet, as many as there are."""
        return _wanted(ctx, CALLS_UNDER_WAY, self._calls_per_replica), {}


def _positive(name: str, value: float) -> float:
    if value <= 0.0:
        raise ValueError(f"{name} is {value:g}; it must be positive")
    return value


def _wanted(ctx: Context, metric: str, per_replica: float) -> int:
    reported = (ctx.aggregated_metrics or {}).get(metric)
    if not reported:
        return ctx.current_num_replicas
    return max(1, math.ceil(sum(reported.values()) / per_replica))
