"""What is said to a stage and what comes back, as plain values that travel inside Serve's calls.

A front end sends a frame with its questions to a language replica; features are in neither
direction of that call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.detections import FloatArray
from agent.features import StageTimings
from agent.frame import Frame
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.region_cache import CacheStats
from agent.urgency import Limits, Urgency
from deployments.observability.stage_meter import WorkDone
from groundstream.errors import AgentError


@dataclass(frozen=True)
class Refused:
    """In place of a result: an error whose message is meant for the caller."""

    error: AgentError


@dataclass(frozen=True)
class Wanted:
    """What a stage is told besides its work."""

    left_s: float | None = None
    """The caller waits no longer; None: however long it takes."""
    urgency: Urgency = Urgency.ONE_OFF
    model: str = ""
    """Revision of the model whose work this is."""

    @property
    def limits(self) -> Limits:
        """They begin when it arrives: clocks of two machines differ."""
        return Limits.starting_now(self.left_s, self.urgency)


@dataclass(frozen=True)
class FrameCall:
    """A frame and all that is asked about it at once."""

    frame: Frame
    """Without its bytes where an earlier call has brought them."""
    wanted: Wanted
    tasks: tuple[Task, ...] = ()
    boxes: FloatArray | None = None
    expected: Sequence[FloatArray | None] | None = None
    """As in `Pipeline.ground`."""
    tenant: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class FrameReply:
    """What became of a `FrameCall`."""

    grounding: Grounding | None = None
    timings: StageTimings | None = None
    """Of features alone, where nothing was asked yet."""
    cache_hit: bool = False
    error: AgentError | None = None
    is_frame_needed: bool = False
    """The bytes are not here after all."""
    work: tuple[WorkDone, ...] = ()
    cache: CacheStats = field(default_factory=CacheStats)
    """What the replica's cache did since any front end was last told."""
