"""What the client takes and gives, as plain dataclasses; protobuf stays behind them.

Boxes are (x1, y1, x2, y2) in pixels of the frame as it was sent. Times named *_ns are
nanoseconds, durations *_ms milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from groundstream.enums import (
    AnswerMode,
    AnswerStatus,
    Arrangement,
    DropPolicy,
    Priority,
    Source,
    TaskKind,
    VideoCodec,
    ZoomPolicy,
)

__all__ = [
    "DEFAULT_TARGET",
    "AnswerMode",
    "AnswerSource",
    "AnswerStatus",
    "Box",
    "CacheStats",
    "Capabilities",
    "Crop",
    "Detection",
    "DropPolicy",
    "Exchange",
    "FramePriority",
    "FrameResult",
    "OutgoingFrame",
    "OutgoingPacket",
    "Query",
    "QueryResult",
    "ReusedFeatures",
    "Revision",
    "ServiceStats",
    "StageCalls",
    "StageLoad",
    "StageTimings",
    "StreamPolicy",
    "TaskKind",
    "Transform",
    "VideoCodec",
    "VideoFormat",
    "Zoom",
    "ZoomArrangement",
    "ZoomPolicy",
]

Box = tuple[float, float, float, float]
DEFAULT_TARGET = "127.0.0.1:50051"
"""Where a service on this machine listens."""
AnswerSource = Source
FramePriority = Priority
ZoomArrangement = Arrangement


@dataclass(frozen=True)
class StreamPolicy:
    """How a stream is to be answered."""

    drop: DropPolicy = DropPolicy.LATEST_WINS
    mode: AnswerMode = AnswerMode.FOLLOW
    window: int = 0
    """Frames that may wait (OLDEST_WINS, LOSSLESS); 0: the service's default."""
    max_age_ms: float = 0.0
    """An answer whose evidence is older comes as EXPIRED, without boxes; 0: any age."""
    ack_window: int = 8
    """Results under way that you have not read yet, at most; 0: no limit."""
    reuse_features: bool = False
    """Allow the features of an earlier frame for one that barely changed."""


@dataclass(frozen=True)
class Zoom:
    """Second looks and what they may cost."""

    policy: ZoomPolicy = ZoomPolicy.AUTO
    max_vision_tokens: int = 0
    """Of all second looks together; 0: the service's limit."""
    budget_ms: float = 0.0
    """From the call's arrival at the service; 0: until the call's deadline."""
    arrangement: ZoomArrangement = ZoomArrangement.SHEET


@dataclass(frozen=True)
class Exchange:
    """An earlier turn of a conversation about the same picture."""

    question: str
    answer: str


@dataclass(frozen=True)
class Query:
    """One question."""

    text: str
    id: str = ""
    """Name of the answer; empty: the text."""
    task: TaskKind = TaskKind.DETECT
    region_index: int | None = None
    """Which box is meant (region captions, REGION_OCR, VISUAL_PROMPT)."""
    max_new_tokens: int = 0
    """0: the service's default."""
    mentioned_regions: tuple[int, ...] = ()
    """The boxes that each {} in the text stands for (REASON, CHAT)."""
    history: tuple[Exchange, ...] = ()
    """Earlier turns, oldest first (CHAT)."""
    constrained: bool = False
    """Allow only answers of sound form that name boxes which exist."""

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
    priority: FramePriority = FramePriority.NORMAL
    ego_motion: tuple[float, float, float, float, float, float] | None = None
    """(xx, xy, x0, yx, yy, y0): what stood at (x, y) in the frame sent before now stands at
    (xx x + xy y + x0, yx x + yy y + y0), if it did not move itself."""


@dataclass(frozen=True)
class VideoFormat:
    """What a decoder has to know before the first packet."""

    codec: VideoCodec
    parameter_sets: bytes = b""
    """In Annex B form, where the key frames do not hold them."""


@dataclass(frozen=True)
class OutgoingPacket:
    """One frame of a video, as its encoder made it; packets go in the order they are decoded in.

    Where one was lost, leave out those up to the next key frame.
    """

    data: bytes
    """One access unit of H.264 or H.265 in Annex B form: a start code before every NAL unit."""
    format: VideoFormat
    sequence: int = 0
    """By the order in which pictures are shown: less than that of the packet before, for a B
    picture."""
    capture_time_ns: int = 0
    """Your clock; comes back to the bit."""
    is_key: bool = False
    """Decoding may begin here."""
    priority: FramePriority = FramePriority.NORMAL


@dataclass(frozen=True)
class Transform:
    """One step from a proposal to a box: x' = scale_x x + offset_x, y' alike."""

    kind: str
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


@dataclass(frozen=True)
class Detection:
    """One labelled box."""

    box: Box
    label: str
    confidence: float
    region_index: int
    """Index among the proposals of frame `evidence_sequence`."""
    objectness: float
    track_id: int | None = None
    """Identity over time within one session; None in single calls."""
    source: AnswerSource = AnswerSource.GROUNDED
    evidence_sequence: int = 0
    """Frame whose proposal this is and whose answer gave the label."""
    evidence_age_ms: float = 0.0
    proposal_box: Box = (0.0, 0.0, 0.0, 0.0)
    """The proposal as it was found; `transforms` lead from it to `box`."""
    transforms: tuple[Transform, ...] = ()
    crop_index: int | None = None
    """Which of the result's crops it was found in; None: on the whole frame."""


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
    source: AnswerSource = AnswerSource.GROUNDED
    evidence_sequence: int = 0
    """Frame the language model answered this query about last."""
    evidence_age_ms: float = 0.0
    reply: str = ""
    """The words of the text alone."""
    thought: str = ""
    count: int | None = None
    """The number the model stated (COUNT)."""
    num_regions_seen: int = 0
    """Boxes the language model looked at."""
    num_drafted_tokens: int = 0


@dataclass(frozen=True)
class ReusedFeatures:
    """The features of an earlier frame that looked almost the same stood in for this one's."""

    sequence: int
    difference: float
    """0..1: the largest change of any part of the picture."""


@dataclass(frozen=True)
class StageTimings:
    """Wall time of each stage; stages overlap."""

    queue_ms: float = 0.0
    cache_ms: float = 0.0
    propose_ms: float = 0.0
    primary_ms: float = 0.0
    auxiliary_ms: float = 0.0
    language_ms: float = 0.0
    total_ms: float = 0.0
    follow_ms: float = 0.0


@dataclass(frozen=True)
class Revision:
    """Which state of an answer this is; a later one replaces it."""

    answer_id: str
    number: int
    """0 is the first look."""
    final: bool
    cut_short: bool = False
    """Time ran out, or a stage failed, before all that was planned was looked at."""
    num_vision_tokens: int = 0


@dataclass(frozen=True)
class Crop:
    """A part of the frame that was looked at again."""

    box: Box
    scale_x: float
    """Pixels shown to the model per pixel of the frame."""
    scale_y: float


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
    reused: ReusedFeatures | None = None
    revision: Revision | None = None
    """Single calls only."""
    crops: tuple[Crop, ...] = ()

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
    max_window: int = 0
    video_codecs: tuple[VideoCodec, ...] = ()
    """What packets of a stream may hold; a service older than packets takes none."""
    max_video_pixels: int = 0


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
class StageLoad:
    """What one stage was asked and how long that took, in sums since the replica started."""

    name: str
    num_done: int = 0
    num_refused: int = 0
    """Calls that could not have been answered in time, or found the queue full."""
    in_flight: int = 0
    most_at_once: int = 0
    call_ms: float = 0.0
    """From asking to having the answer; of `num_done` calls."""
    queue_ms: float = 0.0
    """Waiting at the stage's replica."""
    compute_ms: float = 0.0
    expected_ms: float = 0.0
    """How long one more call would take now."""


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
    frames_tracked_only: int = 0
    frames_expired: int = 0
    stage_calls: StageCalls = field(default_factory=StageCalls)
    cache: CacheStats = field(default_factory=CacheStats)
    stages: tuple[StageLoad, ...] = ()
