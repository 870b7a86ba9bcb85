"""What the client takes and gives, as plain dataclasses; protobuf stays behind them.

Boxes are (x1, y1, x2, y2) in pixels of the frame as it was sent. Times named *_ns are
nanoseconds, durations *_ms milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

Box = tuple[float, float, float, float]


class TaskKind(Enum):
    """What a query asks."""

    DETECT = "DETECT"
    COUNT = "COUNT"
    NAME_REGION = "NAME_REGION"


class AnswerStatus(Enum):
    """What kind of answer this is."""

    OK = "OK"
    NOT_PRESENT = "NOT_PRESENT"
    UNSURE = "UNSURE"
    TRUNCATED = "TRUNCATED"


@dataclass(frozen=True)
class Query:
    """One question."""

    text: str
    id: str = ""
    """Name of the answer; empty: the text."""
    task: TaskKind = TaskKind.DETECT
    region_index: int | None = None
    """Which box is meant (NAME_REGION)."""
    max_new_tokens: int = 0
    """0: the service's default."""

    @property
    def name(self) -> str:
        """The id its answers carry."""
        return self.id or self.text


@dataclass(frozen=True)
class OutgoingFrame:
    """One picture to be answered."""

    encoded: bytes
    """JPEG, PNG, WebP or BMP bytes."""
    sequence: int = 0
    capture_time_ns: int = 0
    """Your clock; comes back to the bit."""
    boxes: tuple[Box, ...] | None = None
    """Use these boxes instead of the service's proposals."""


@dataclass(frozen=True)
class Detection:
    """One labelled box."""

    box: Box
    label: str
    confidence: float
    region_index: int
    objectness: float


@dataclass(frozen=True)
class QueryResult:
    """One question's answer."""

    query_id: str
    epoch: int
    status: AnswerStatus
    text: str
    detections: tuple[Detection, ...]
    num_unknown_regions: int = 0
    num_prefix_tokens_reused: int = 0
    num_passes: int = 0


@dataclass(frozen=True)
class StageTimings:
    """Wall time of each stage; stages overlap."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    cache_ms: float = 0.0
    propose_ms: float = 0.0
    primary_ms: float = 0.0
    auxiliary_ms: float = 0.0
    language_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class FrameResult:
    """All answers about one frame."""

    sequence: int
    epoch: int
    capture_time_ns: int
    received_time_ns: int
    answered_time_ns: int
    width: int
    height: int
    results: tuple[QueryResult, ...]
    cache_hit: bool
    num_proposals: int
    timings: StageTimings

    def __getitem__(self, query_id: str) -> QueryResult:
        """The answer to one query.

        Raises:
            KeyError: that query was not answered here.
        """
        for result in self.results:
            if result.query_id == query_id:
                return result
        raise KeyError(query_id)


@dataclass(frozen=True)
class QueriesAck:
    """The standing queries have changed; from here on no older answer to a changed one comes."""

    epoch: int
    change_id: int
    query_ids: tuple[str, ...]


@dataclass(frozen=True)
class StreamStats:
    """The stream's books: received is the sum of the others."""

    received: int
    answered: int
    superseded: int
    rejected: int
    failed: int
    in_flight: int


@dataclass(frozen=True)
class StreamError:
    """One frame or one change failed; the stream goes on."""

    code: str
    message: str
    sequence: int | None = None
    change_id: int | None = None
    request_id: str = ""


@dataclass(frozen=True)
class Drain:
    """The server is going away; open a new stream."""

    reason: str
    grace_s: float


StreamEvent = FrameResult | QueriesAck | StreamStats | StreamError | Drain


@dataclass(frozen=True)
class Capabilities:
    """What a service can do."""

    service_version: str
    model_name: str
    model_digest: str
    tasks: tuple[TaskKind, ...]
    image_formats: tuple[str, ...]
    max_frame_bytes: int
    max_frame_pixels: int
    max_queries: int
    max_query_chars: int
    max_regions: int
    max_new_tokens: int


@dataclass(frozen=True)
class StageCalls:
    """Calls made to each stage."""

    propose: int = 0
    encode_primary: int = 0
    encode_auxiliary: int = 0
    answer: int = 0


@dataclass(frozen=True)
class CacheStats:
    """What the region cache did."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    errors: int = 0
    corrupt: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class ServiceStats:
    """What one front-end replica has done since it started."""

    uptime_s: float
    open_streams: int
    frames_received: int
    frames_answered: int
    frames_superseded: int
    frames_rejected: int
    frames_failed: int
    frames_abandoned: int
    frames_in_flight: int
    stage_calls: StageCalls = field(default_factory=StageCalls)
    cache: CacheStats = field(default_factory=CacheStats)
