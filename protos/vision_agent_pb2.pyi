from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_DETECT: _ClassVar[TaskKind]
    TASK_KIND_COUNT: _ClassVar[TaskKind]
    TASK_KIND_NAME_REGION: _ClassVar[TaskKind]

class AnswerStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_STATUS_UNSPECIFIED: _ClassVar[AnswerStatus]
    ANSWER_STATUS_OK: _ClassVar[AnswerStatus]
    ANSWER_STATUS_NOT_PRESENT: _ClassVar[AnswerStatus]
    ANSWER_STATUS_UNSURE: _ClassVar[AnswerStatus]
    ANSWER_STATUS_TRUNCATED: _ClassVar[AnswerStatus]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_ARGUMENT: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_FRAME: _ClassVar[ErrorCode]
    ERROR_CODE_FRAME_TOO_LARGE: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_QUERY: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID_BOXES: _ClassVar[ErrorCode]
    ERROR_CODE_OVERLOADED: _ClassVar[ErrorCode]
    ERROR_CODE_STAGE_UNAVAILABLE: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_DETECT: TaskKind
TASK_KIND_COUNT: TaskKind
TASK_KIND_NAME_REGION: TaskKind
ANSWER_STATUS_UNSPECIFIED: AnswerStatus
ANSWER_STATUS_OK: AnswerStatus
ANSWER_STATUS_NOT_PRESENT: AnswerStatus
ANSWER_STATUS_UNSURE: AnswerStatus
ANSWER_STATUS_TRUNCATED: AnswerStatus
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID_ARGUMENT: ErrorCode
ERROR_CODE_INVALID_FRAME: ErrorCode
ERROR_CODE_FRAME_TOO_LARGE: ErrorCode
ERROR_CODE_INVALID_QUERY: ErrorCode
ERROR_CODE_INVALID_BOXES: ErrorCode
ERROR_CODE_OVERLOADED: ErrorCode
ERROR_CODE_STAGE_UNAVAILABLE: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode

class Query(_message.Message):
    __slots__ = ("id", "text", "task", "region_index", "max_new_tokens")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    REGION_INDEX_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    task: TaskKind
    region_index: int
    max_new_tokens: int
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., task: _Optional[_Union[TaskKind, str]] = ..., region_index: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x1", "y1", "x2", "y2")
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    X2_FIELD_NUMBER: _ClassVar[int]
    Y2_FIELD_NUMBER: _ClassVar[int]
    x1: float
    y1: float
    x2: float
    y2: float
    def __init__(self, x1: _Optional[float] = ..., y1: _Optional[float] = ..., x2: _Optional[float] = ..., y2: _Optional[float] = ...) -> None: ...

class BoxList(_message.Message):
    __slots__ = ("boxes",)
    BOXES_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedCompositeFieldContainer[Box]
    def __init__(self, boxes: _Optional[_Iterable[_Union[Box, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "capture_time_ns", "encoded_image", "boxes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    capture_time_ns: int
    encoded_image: bytes
    boxes: BoxList
    def __init__(self, sequence: _Optional[int] = ..., capture_time_ns: _Optional[int] = ..., encoded_image: _Optional[bytes] = ..., boxes: _Optional[_Union[BoxList, _Mapping]] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("box", "label", "confidence", "region_index", "objectness")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REGION_INDEX_FIELD_NUMBER: _ClassVar[int]
    OBJECTNESS_FIELD_NUMBER: _ClassVar[int]
    box: Box
    label: str
    confidence: float
    region_index: int
    objectness: float
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., region_index: _Optional[int] = ..., objectness: _Optional[float] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("query_id", "epoch", "status", "text", "detections", "num_unknown_regions", "num_prefix_tokens_reused", "num_passes")
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_REGIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSES_FIELD_NUMBER: _ClassVar[int]
    query_id: str
    epoch: int
    status: AnswerStatus
    text: str
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    num_unknown_regions: int
    num_prefix_tokens_reused: int
    num_passes: int
    def __init__(self, query_id: _Optional[str] = ..., epoch: _Optional[int] = ..., status: _Optional[_Union[AnswerStatus, str]] = ..., text: _Optional[str] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., num_unknown_regions: _Optional[int] = ..., num_prefix_tokens_reused: _Optional[int] = ..., num_passes: _Optional[int] = ...) -> None: ...

class Clocks(_message.Message):
    __slots__ = ("capture_time_ns", "received_time_ns", "answered_time_ns")
    CAPTURE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    capture_time_ns: int
    received_time_ns: int
    answered_time_ns: int
    def __init__(self, capture_time_ns: _Optional[int] = ..., received_time_ns: _Optional[int] = ..., answered_time_ns: _Optional[int] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("queue_ms", "decode_ms", "cache_ms", "propose_ms", "primary_ms", "auxiliary_ms", "language_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    CACHE_MS_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_MS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_MS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_MS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    decode_ms: float
    cache_ms: float
    propose_ms: float
    primary_ms: float
    auxiliary_ms: float
    language_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., cache_ms: _Optional[float] = ..., propose_ms: _Optional[float] = ..., primary_ms: _Optional[float] = ..., auxiliary_ms: _Optional[float] = ..., language_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("sequence", "epoch", "clocks", "width", "height", "results", "cache_hit", "num_proposals", "timings")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HIT_FIELD_NUMBER: _ClassVar[int]
    NUM_PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    epoch: int
    clocks: Clocks
    width: int
    height: int
    results: _containers.RepeatedCompositeFieldContainer[QueryResult]
    cache_hit: bool
    num_proposals: int
    timings: StageTimings
    def __init__(self, sequence: _Optional[int] = ..., epoch: _Optional[int] = ..., clocks: _Optional[_Union[Clocks, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., results: _Optional[_Iterable[_Union[QueryResult, _Mapping]]] = ..., cache_hit: _Optional[bool] = ..., num_proposals: _Optional[int] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ...) -> None: ...

class GroundRequest(_message.Message):
    __slots__ = ("frame", "queries")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ...) -> None: ...

class GroundResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...

class SetQueries(_message.Message):
    __slots__ = ("queries", "change_id")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    change_id: int
    def __init__(self, queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., change_id: _Optional[int] = ...) -> None: ...

class PutQuery(_message.Message):
    __slots__ = ("query", "change_id")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    query: Query
    change_id: int
    def __init__(self, query: _Optional[_Union[Query, _Mapping]] = ..., change_id: _Optional[int] = ...) -> None: ...

class RemoveQuery(_message.Message):
    __slots__ = ("query_id", "change_id")
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    query_id: str
    change_id: int
    def __init__(self, query_id: _Optional[str] = ..., change_id: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("frame", "set_queries", "put_query", "remove_query", "end")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SET_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PUT_QUERY_FIELD_NUMBER: _ClassVar[int]
    REMOVE_QUERY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    set_queries: SetQueries
    put_query: PutQuery
    remove_query: RemoveQuery
    end: End
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., set_queries: _Optional[_Union[SetQueries, _Mapping]] = ..., put_query: _Optional[_Union[PutQuery, _Mapping]] = ..., remove_query: _Optional[_Union[RemoveQuery, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class QueriesAck(_message.Message):
    __slots__ = ("epoch", "change_id", "query_ids")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    change_id: int
    query_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., change_id: _Optional[int] = ..., query_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class StreamStats(_message.Message):
    __slots__ = ("received", "answered", "superseded", "rejected", "failed", "in_flight")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    received: int
    answered: int
    superseded: int
    rejected: int
    failed: int
    in_flight: int
    def __init__(self, received: _Optional[int] = ..., answered: _Optional[int] = ..., superseded: _Optional[int] = ..., rejected: _Optional[int] = ..., failed: _Optional[int] = ..., in_flight: _Optional[int] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "sequence", "change_id", "request_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    sequence: int
    change_id: int
    request_id: str
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ..., sequence: _Optional[int] = ..., change_id: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason", "grace_s")
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    reason: str
    grace_s: float
    def __init__(self, reason: _Optional[str] = ..., grace_s: _Optional[float] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("result", "ack", "stats", "error", "drain")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    ack: QueriesAck
    stats: StreamStats
    error: StreamError
    drain: Drain
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ..., ack: _Optional[_Union[QueriesAck, _Mapping]] = ..., stats: _Optional[_Union[StreamStats, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("service_version", "model_name", "model_digest", "tasks", "image_formats", "max_frame_bytes", "max_frame_pixels", "max_queries", "max_query_chars", "max_regions", "max_new_tokens")
    SERVICE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUERIES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUERY_CHARS_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    service_version: str
    model_name: str
    model_digest: str
    tasks: _containers.RepeatedScalarFieldContainer[TaskKind]
    image_formats: _containers.RepeatedScalarFieldContainer[str]
    max_frame_bytes: int
    max_frame_pixels: int
    max_queries: int
    max_query_chars: int
    max_regions: int
    max_new_tokens: int
    def __init__(self, service_version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_digest: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskKind, str]]] = ..., image_formats: _Optional[_Iterable[str]] = ..., max_frame_bytes: _Optional[int] = ..., max_frame_pixels: _Optional[int] = ..., max_queries: _Optional[int] = ..., max_query_chars: _Optional[int] = ..., max_regions: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StageCalls(_message.Message):
    __slots__ = ("propose", "encode_primary", "encode_auxiliary", "answer")
    PROPOSE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_PRIMARY_FIELD_NUMBER: _ClassVar[int]
    ENCODE_AUXILIARY_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    propose: int
    encode_primary: int
    encode_auxiliary: int
    answer: int
    def __init__(self, propose: _Optional[int] = ..., encode_primary: _Optional[int] = ..., encode_auxiliary: _Optional[int] = ..., answer: _Optional[int] = ...) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("hits", "misses", "stored", "errors", "corrupt", "skipped")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    hits: int
    misses: int
    stored: int
    errors: int
    corrupt: int
    skipped: int
    def __init__(self, hits: _Optional[int] = ..., misses: _Optional[int] = ..., stored: _Optional[int] = ..., errors: _Optional[int] = ..., corrupt: _Optional[int] = ..., skipped: _Optional[int] = ...) -> None: ...

class ServiceStats(_message.Message):
    __slots__ = ("uptime_s", "open_streams", "frames_received", "frames_answered", "frames_superseded", "frames_rejected", "frames_failed", "frames_abandoned", "frames_in_flight", "stage_calls", "cache")
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    OPEN_STREAMS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_REJECTED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FAILED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_ABANDONED_FIELD_NUMBER: _ClassVar[int]
    FRAMES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    STAGE_CALLS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    uptime_s: float
    open_streams: int
    frames_received: int
    frames_answered: int
    frames_superseded: int
    frames_rejected: int
    frames_failed: int
    frames_abandoned: int
    frames_in_flight: int
    stage_calls: StageCalls
    cache: CacheStats
    def __init__(self, uptime_s: _Optional[float] = ..., open_streams: _Optional[int] = ..., frames_received: _Optional[int] = ..., frames_answered: _Optional[int] = ..., frames_superseded: _Optional[int] = ..., frames_rejected: _Optional[int] = ..., frames_failed: _Optional[int] = ..., frames_abandoned: _Optional[int] = ..., frames_in_flight: _Optional[int] = ..., stage_calls: _Optional[_Union[StageCalls, _Mapping]] = ..., cache: _Optional[_Union[CacheStats, _Mapping]] = ...) -> None: ...
