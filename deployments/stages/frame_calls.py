"""What front ends and language replicas say to each other: a frame with its questions, and a reply.

Features are in neither. Plain values, which travel inside Serve's own calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.detections import FloatArray
from agent.errors import AgentError
from agent.features import StageTimings
from agent.frame import Frame
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.region_cache import CacheStats
from deployments.observability.stage_meter import WorkDone
from deployments.stages.vision import Wanted


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
