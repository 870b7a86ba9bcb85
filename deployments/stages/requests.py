"""What is said to a stage and what comes back, as plain values that travel inside Serve's calls.

A front end sends a frame with its questions to a language replica; features are in neither
direction of that call.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.detections import FloatArray
from agent.features import AuxiliaryFeatures, PrimaryFeatures, StageTimings
from agent.frame import Frame
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.region_cache import CacheStats
from agent.settings import ServiceSettings
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
    """As `revision_of` names the model and the calls of whoever asks."""
    tenant: str = ""
    """Whose work it is; tenants take turns, and share nothing."""

    @classmethod
    def within(cls, limits: Limits, model: str, tenant: str) -> Wanted:
        """For a call with these limits; `model`, `tenant`: see the fields."""
        left_s = None if math.isinf(limits.left_s) else limits.left_s
        return cls(left_s, limits.urgency, model, tenant)

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


def revision_of(settings: ServiceSettings) -> str:
    """The same for replicas that may work together: one model, and calls that both can read."""
    return f"{settings.model_revision} {_calls_digest()}"


@functools.cache
def _calls_digest() -> str:
    shapes = shapes_of(FrameCall, FrameReply, Refused, PrimaryFeatures, AuxiliaryFeatures)
    return hashlib.sha256(repr(sorted(shapes.items())).encode()).hexdigest()[:12]


def shapes_of(*types: Any) -> dict[str, str]:
    """The fields of these dataclasses and of all that they hold, by the name of each.

    Replicas of two versions of this code meet while it is updated, and a pickled value has the
    fields that its sender knew.
    """
    shapes: dict[str, str] = {}
    pending = list(types)
    while pending:
        kind = pending.pop()
        pending += typing.get_args(kind)  # Such as Task of tuple[Task, ...] | None.
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            continue
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in shapes:
            hints = typing.get_type_hints(kind)
            held = {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}
            shapes[name] = repr(held)
            pending += held.values()
    return shapes
