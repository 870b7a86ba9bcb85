"""How many replicas there should be: Serve autoscaling policies over what replicas report.

Serve scales a deployment by the calls that come through its handles (`target_ongoing_requests`);
streams come in by the front ends' own port, where it sees none. Each front end reports what it has
(`record_autoscaling_stats`), and this policy turns it into replicas. Bounds and delays are Serve's
own, from the same `autoscaling_config`. Knows no session and no call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

OPEN_STREAMS = "open_streams"
"""Under this name a front end reports."""


class Context(Protocol):
    """The part of Serve's `AutoscalingContext` that is looked at."""

    current_num_replicas: int
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


class OpenStreams:
    """As many front ends as the open streams need at so many streams each."""

    def __init__(self, streams_per_replica: float = 32.0) -> None:
        """Raises ValueError: `streams_per_replica` is not positive."""
        if streams_per_replica <= 0.0:
            raise ValueError(f"streams_per_replica is {streams_per_replica:g}; make it positive")
        self._streams_per_replica = streams_per_replica

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and no state; without any report yet, as many as there are."""
        reported = (ctx.aggregated_metrics or {}).get(OPEN_STREAMS)
        if not reported:
            return ctx.current_num_replicas, {}
        return max(1, math.ceil(sum(reported.values()) / self._streams_per_replica)), {}
