from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_KIND_UNSPECIFIED: _ClassVar[TaskKind]
    TASK_KIND_DETECT: _ClassVar[TaskKind]
    TASK_KIND_COUNT: _ClassVar[TaskKind]
    TASK_KIND_REGION_CAPTION: _ClassVar[TaskKind]
    TASK_KIND_REFER: _ClassVar[TaskKind]
    TASK_KIND_DETAILED_REGION_CAPTION: _ClassVar[TaskKind]
    TASK_KIND_REGION_OCR: _ClassVar[TaskKind]
    TASK_KIND_GROUNDED_CAPTION: _ClassVar[TaskKind]
    TASK_KIND_VISUAL_PROMPT: _ClassVar[TaskKind]
    TASK_KIND_REASON: _ClassVar[TaskKind]
    TASK_KIND_CHAT: _ClassVar[TaskKind]

class FramePriority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_PRIORITY_UNSPECIFIED: _ClassVar[FramePriority]
    FRAME_PRIORITY_LOW: _ClassVar[FramePriority]
    FRAME_PRIORITY_NORMAL: _ClassVar[FramePriority]
    FRAME_PRIORITY_HIGH: _ClassVar[FramePriority]

class VideoCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIDEO_CODEC_UNSPECIFIED: _ClassVar[VideoCodec]
    VIDEO_CODEC_H264: _ClassVar[VideoCodec]
    VIDEO_CODEC_H265: _ClassVar[VideoCodec]

class ZoomPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ZOOM_POLICY_UNSPECIFIED: _ClassVar[ZoomPolicy]
    ZOOM_POLICY_OFF: _ClassVar[ZoomPolicy]
    ZOOM_POLICY_AUTO: _ClassVar[ZoomPolicy]
    ZOOM_POLICY_ALWAYS: _ClassVar[ZoomPolicy]

class ZoomArrangement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ZOOM_ARRANGEMENT_UNSPECIFIED: _ClassVar[ZoomArrangement]
    ZOOM_ARRANGEMENT_UNION: _ClassVar[ZoomArrangement]
    ZOOM_ARRANGEMENT_SEVERAL: _ClassVar[ZoomArrangement]
    ZOOM_ARRANGEMENT_SHEET: _ClassVar[ZoomArrangement]

class AnswerStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_STATUS_UNSPECIFIED: _ClassVar[AnswerStatus]
    ANSWER_STATUS_OK: _ClassVar[AnswerStatus]
    ANSWER_STATUS_NOT_PRESENT: _ClassVar[AnswerStatus]
    ANSWER_STATUS_UNSURE: _ClassVar[AnswerStatus]
    ANSWER_STATUS_TRUNCATED: _ClassVar[AnswerStatus]
    ANSWER_STATUS_EXPIRED: _ClassVar[AnswerStatus]
    ANSWER_STATUS_PENDING: _ClassVar[AnswerStatus]

class AnswerSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_SOURCE_UNSPECIFIED: _ClassVar[AnswerSource]
    ANSWER_SOURCE_GROUNDED: _ClassVar[AnswerSource]
    ANSWER_SOURCE_TRACKED: _ClassVar[AnswerSource]

class TransformKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSFORM_KIND_UNSPECIFIED: _ClassVar[TransformKind]
    TRANSFORM_KIND_MOTION: _ClassVar[TransformKind]
    TRANSFORM_KIND_CROP: _ClassVar[TransformKind]
    TRANSFORM_KIND_RESIZE: _ClassVar[TransformKind]

class DropPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DROP_POLICY_UNSPECIFIED: _ClassVar[DropPolicy]
    DROP_POLICY_LATEST_WINS: _ClassVar[DropPolicy]
    DROP_POLICY_OLDEST_WINS: _ClassVar[DropPolicy]
    DROP_POLICY_LOSSLESS: _ClassVar[DropPolicy]

class AnswerMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_MODE_UNSPECIFIED: _ClassVar[AnswerMode]
    ANSWER_MODE_FOLLOW: _ClassVar[AnswerMode]
    ANSWER_MODE_GROUND: _ClassVar[AnswerMode]

class KeyframeReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEYFRAME_REASON_UNSPECIFIED: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_FIRST: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_QUERIES_CHANGED: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_REQUESTED: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_SCENE_CHANGED: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_TRACK_UNCERTAIN: _ClassVar[KeyframeReason]
    KEYFRAME_REASON_REFRESH: _ClassVar[KeyframeReason]

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
    ERROR_CODE_UNAUTHENTICATED: _ClassVar[ErrorCode]
    ERROR_CODE_QUOTA_EXCEEDED: _ClassVar[ErrorCode]
    ERROR_CODE_FRAME_TOO_COSTLY: _ClassVar[ErrorCode]
    ERROR_CODE_STREAM_IDLE: _ClassVar[ErrorCode]
    ERROR_CODE_KEY_FRAME_NEEDED: _ClassVar[ErrorCode]
TASK_KIND_UNSPECIFIED: TaskKind
TASK_KIND_DETECT: TaskKind
TASK_KIND_COUNT: TaskKind
TASK_KIND_REGION_CAPTION: TaskKind
TASK_KIND_REFER: TaskKind
TASK_KIND_DETAILED_REGION_CAPTION: TaskKind
TASK_KIND_REGION_OCR: TaskKind
TASK_KIND_GROUNDED_CAPTION: TaskKind
TASK_KIND_VISUAL_PROMPT: TaskKind
TASK_KIND_REASON: TaskKind
TASK_KIND_CHAT: TaskKind
FRAME_PRIORITY_UNSPECIFIED: FramePriority
FRAME_PRIORITY_LOW: FramePriority
FRAME_PRIORITY_NORMAL: FramePriority
FRAME_PRIORITY_HIGH: FramePriority
VIDEO_CODEC_UNSPECIFIED: VideoCodec
VIDEO_CODEC_H264: VideoCodec
VIDEO_CODEC_H265: VideoCodec
ZOOM_POLICY_UNSPECIFIED: ZoomPolicy
ZOOM_POLICY_OFF: ZoomPolicy
ZOOM_POLICY_AUTO: ZoomPolicy
ZOOM_POLICY_ALWAYS: ZoomPolicy
ZOOM_ARRANGEMENT_UNSPECIFIED: ZoomArrangement
ZOOM_ARRANGEMENT_UNION: ZoomArrangement
ZOOM_ARRANGEMENT_SEVERAL: ZoomArrangement
ZOOM_ARRANGEMENT_SHEET: ZoomArrangement
ANSWER_STATUS_UNSPECIFIED: AnswerStatus
ANSWER_STATUS_OK: AnswerStatus
ANSWER_STATUS_NOT_PRESENT: AnswerStatus
ANSWER_STATUS_UNSURE: AnswerStatus
ANSWER_STATUS_TRUNCATED: AnswerStatus
ANSWER_STATUS_EXPIRED: AnswerStatus
ANSWER_STATUS_PENDING: AnswerStatus
ANSWER_SOURCE_UNSPECIFIED: AnswerSource
ANSWER_SOURCE_GROUNDED: AnswerSource
ANSWER_SOURCE_TRACKED: AnswerSource
TRANSFORM_KIND_UNSPECIFIED: TransformKind
TRANSFORM_KIND_MOTION: TransformKind
TRANSFORM_KIND_CROP: TransformKind
TRANSFORM_KIND_RESIZE: TransformKind
DROP_POLICY_UNSPECIFIED: DropPolicy
DROP_POLICY_LATEST_WINS: DropPolicy
DROP_POLICY_OLDEST_WINS: DropPolicy
DROP_POLICY_LOSSLESS: DropPolicy
ANSWER_MODE_UNSPECIFIED: AnswerMode
ANSWER_MODE_FOLLOW: AnswerMode
ANSWER_MODE_GROUND: AnswerMode
KEYFRAME_REASON_UNSPECIFIED: KeyframeReason
KEYFRAME_REASON_FIRST: KeyframeReason
KEYFRAME_REASON_QUERIES_CHANGED: KeyframeReason
KEYFRAME_REASON_REQUESTED: KeyframeReason
KEYFRAME_REASON_SCENE_CHANGED: KeyframeReason
KEYFRAME_REASON_TRACK_UNCERTAIN: KeyframeReason
KEYFRAME_REASON_REFRESH: KeyframeReason
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID_ARGUMENT: ErrorCode
ERROR_CODE_INVALID_FRAME: ErrorCode
ERROR_CODE_FRAME_TOO_LARGE: ErrorCode
ERROR_CODE_INVALID_QUERY: ErrorCode
ERROR_CODE_INVALID_BOXES: ErrorCode
ERROR_CODE_OVERLOADED: ErrorCode
ERROR_CODE_STAGE_UNAVAILABLE: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode
ERROR_CODE_UNAUTHENTICATED: ErrorCode
ERROR_CODE_QUOTA_EXCEEDED: ErrorCode
ERROR_CODE_FRAME_TOO_COSTLY: ErrorCode
ERROR_CODE_STREAM_IDLE: ErrorCode
ERROR_CODE_KEY_FRAME_NEEDED: ErrorCode

class Exchange(_message.Message):
    __slots__ = ("question", "answer")
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    question: str
    answer: str
    def __init__(self, question: _Optional[str] = ..., answer: _Optional[str] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("id", "text", "task", "region_index", "max_new_tokens", "mentioned_regions", "history", "constrained")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    REGION_INDEX_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MENTIONED_REGIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINED_FIELD_NUMBER: _ClassVar[int]
    id: str
    text: str
    task: TaskKind
    region_index: int
    max_new_tokens: int
    mentioned_regions: _containers.RepeatedScalarFieldContainer[int]
    history: _containers.RepeatedCompositeFieldContainer[Exchange]
    constrained: bool
    def __init__(self, id: _Optional[str] = ..., text: _Optional[str] = ..., task: _Optional[_Union[TaskKind, str]] = ..., region_index: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., mentioned_regions: _Optional[_Iterable[int]] = ..., history: _Optional[_Iterable[_Union[Exchange, _Mapping]]] = ..., constrained: bool = ...) -> None: ...

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

class EgoMotion(_message.Message):
    __slots__ = ("xx", "xy", "x0", "yx", "yy", "y0")
    XX_FIELD_NUMBER: _ClassVar[int]
    XY_FIELD_NUMBER: _ClassVar[int]
    X0_FIELD_NUMBER: _ClassVar[int]
    YX_FIELD_NUMBER: _ClassVar[int]
    YY_FIELD_NUMBER: _ClassVar[int]
    Y0_FIELD_NUMBER: _ClassVar[int]
    xx: float
    xy: float
    x0: float
    yx: float
    yy: float
    y0: float
    def __init__(self, xx: _Optional[float] = ..., xy: _Optional[float] = ..., x0: _Optional[float] = ..., yx: _Optional[float] = ..., yy: _Optional[float] = ..., y0: _Optional[float] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "capture_time_ns", "encoded_image", "boxes", "priority", "ego_motion")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    EGO_MOTION_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    capture_time_ns: int
    encoded_image: bytes
    boxes: BoxList
    priority: FramePriority
    ego_motion: EgoMotion
    def __init__(self, sequence: _Optional[int] = ..., capture_time_ns: _Optional[int] = ..., encoded_image: _Optional[bytes] = ..., boxes: _Optional[_Union[BoxList, _Mapping]] = ..., priority: _Optional[_Union[FramePriority, str]] = ..., ego_motion: _Optional[_Union[EgoMotion, _Mapping]] = ...) -> None: ...

class Zoom(_message.Message):
    __slots__ = ("policy", "max_vision_tokens", "budget_ms", "arrangement")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAX_VISION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    ARRANGEMENT_FIELD_NUMBER: _ClassVar[int]
    policy: ZoomPolicy
    max_vision_tokens: int
    budget_ms: float
    arrangement: ZoomArrangement
    def __init__(self, policy: _Optional[_Union[ZoomPolicy, str]] = ..., max_vision_tokens: _Optional[int] = ..., budget_ms: _Optional[float] = ..., arrangement: _Optional[_Union[ZoomArrangement, str]] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("kind", "scale_x", "scale_y", "offset_x", "offset_y")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SCALE_X_FIELD_NUMBER: _ClassVar[int]
    SCALE_Y_FIELD_NUMBER: _ClassVar[int]
    OFFSET_X_FIELD_NUMBER: _ClassVar[int]
    OFFSET_Y_FIELD_NUMBER: _ClassVar[int]
    kind: TransformKind
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    def __init__(self, kind: _Optional[_Union[TransformKind, str]] = ..., scale_x: _Optional[float] = ..., scale_y: _Optional[float] = ..., offset_x: _Optional[float] = ..., offset_y: _Optional[float] = ...) -> None: ...

class Detection(_message.Message):
    __slots__ = ("box", "label", "confidence", "region_index", "objectness", "track_id", "source", "evidence_sequence", "evidence_age_ms", "proposal_box", "transforms", "crop_index")
    BOX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REGION_INDEX_FIELD_NUMBER: _ClassVar[int]
    OBJECTNESS_FIELD_NUMBER: _ClassVar[int]
    TRACK_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_BOX_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    CROP_INDEX_FIELD_NUMBER: _ClassVar[int]
    box: Box
    label: str
    confidence: float
    region_index: int
    objectness: float
    track_id: int
    source: AnswerSource
    evidence_sequence: int
    evidence_age_ms: float
    proposal_box: Box
    transforms: _containers.RepeatedCompositeFieldContainer[Transform]
    crop_index: int
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., label: _Optional[str] = ..., confidence: _Optional[float] = ..., region_index: _Optional[int] = ..., objectness: _Optional[float] = ..., track_id: _Optional[int] = ..., source: _Optional[_Union[AnswerSource, str]] = ..., evidence_sequence: _Optional[int] = ..., evidence_age_ms: _Optional[float] = ..., proposal_box: _Optional[_Union[Box, _Mapping]] = ..., transforms: _Optional[_Iterable[_Union[Transform, _Mapping]]] = ..., crop_index: _Optional[int] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("query_id", "epoch", "status", "text", "detections", "num_unknown_regions", "num_prefix_tokens_reused", "num_passes", "source", "evidence_sequence", "evidence_age_ms", "reply", "thought", "count", "num_regions_seen", "num_drafted_tokens")
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNKNOWN_REGIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_TOKENS_REUSED_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    THOUGHT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    NUM_REGIONS_SEEN_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    query_id: str
    epoch: int
    status: AnswerStatus
    text: str
    detections: _containers.RepeatedCompositeFieldContainer[Detection]
    num_unknown_regions: int
    num_prefix_tokens_reused: int
    num_passes: int
    source: AnswerSource
    evidence_sequence: int
    evidence_age_ms: float
    reply: str
    thought: str
    count: int
    num_regions_seen: int
    num_drafted_tokens: int
    def __init__(self, query_id: _Optional[str] = ..., epoch: _Optional[int] = ..., status: _Optional[_Union[AnswerStatus, str]] = ..., text: _Optional[str] = ..., detections: _Optional[_Iterable[_Union[Detection, _Mapping]]] = ..., num_unknown_regions: _Optional[int] = ..., num_prefix_tokens_reused: _Optional[int] = ..., num_passes: _Optional[int] = ..., source: _Optional[_Union[AnswerSource, str]] = ..., evidence_sequence: _Optional[int] = ..., evidence_age_ms: _Optional[float] = ..., reply: _Optional[str] = ..., thought: _Optional[str] = ..., count: _Optional[int] = ..., num_regions_seen: _Optional[int] = ..., num_drafted_tokens: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("queue_ms", "cache_ms", "propose_ms", "primary_ms", "auxiliary_ms", "language_ms", "total_ms", "follow_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    CACHE_MS_FIELD_NUMBER: _ClassVar[int]
    PROPOSE_MS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_MS_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_MS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    cache_ms: float
    propose_ms: float
    primary_ms: float
    auxiliary_ms: float
    language_ms: float
    total_ms: float
    follow_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., cache_ms: _Optional[float] = ..., propose_ms: _Optional[float] = ..., primary_ms: _Optional[float] = ..., auxiliary_ms: _Optional[float] = ..., language_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., follow_ms: _Optional[float] = ...) -> None: ...

class ReusedFeatures(_message.Message):
    __slots__ = ("sequence", "difference")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    difference: float
    def __init__(self, sequence: _Optional[int] = ..., difference: _Optional[float] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("answer_id", "number", "final", "cut_short", "num_vision_tokens")
    ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    CUT_SHORT_FIELD_NUMBER: _ClassVar[int]
    NUM_VISION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    answer_id: str
    number: int
    final: bool
    cut_short: bool
    num_vision_tokens: int
    def __init__(self, answer_id: _Optional[str] = ..., number: _Optional[int] = ..., final: bool = ..., cut_short: bool = ..., num_vision_tokens: _Optional[int] = ...) -> None: ...

class Crop(_message.Message):
    __slots__ = ("box", "scale_x", "scale_y")
    BOX_FIELD_NUMBER: _ClassVar[int]
    SCALE_X_FIELD_NUMBER: _ClassVar[int]
    SCALE_Y_FIELD_NUMBER: _ClassVar[int]
    box: Box
    scale_x: float
    scale_y: float
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., scale_x: _Optional[float] = ..., scale_y: _Optional[float] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("sequence", "epoch", "clocks", "width", "height", "results", "cache_hit", "num_proposals", "timings", "reused", "revision", "crops")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HIT_FIELD_NUMBER: _ClassVar[int]
    NUM_PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CROPS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    epoch: int
    clocks: Clocks
    width: int
    height: int
    results: _containers.RepeatedCompositeFieldContainer[QueryResult]
    cache_hit: bool
    num_proposals: int
    timings: StageTimings
    reused: ReusedFeatures
    revision: Revision
    crops: _containers.RepeatedCompositeFieldContainer[Crop]
    def __init__(self, sequence: _Optional[int] = ..., epoch: _Optional[int] = ..., clocks: _Optional[_Union[Clocks, _Mapping]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., results: _Optional[_Iterable[_Union[QueryResult, _Mapping]]] = ..., cache_hit: bool = ..., num_proposals: _Optional[int] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., reused: _Optional[_Union[ReusedFeatures, _Mapping]] = ..., revision: _Optional[_Union[Revision, _Mapping]] = ..., crops: _Optional[_Iterable[_Union[Crop, _Mapping]]] = ...) -> None: ...

class GroundRequest(_message.Message):
    __slots__ = ("frame", "queries", "zoom")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ZOOM_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    zoom: Zoom
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., zoom: _Optional[_Union[Zoom, _Mapping]] = ...) -> None: ...

class GroundResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...

class GroundAnytimeRequest(_message.Message):
    __slots__ = ("frame", "queries", "zoom")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ZOOM_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    zoom: Zoom
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., zoom: _Optional[_Union[Zoom, _Mapping]] = ...) -> None: ...

class GroundAnytimeResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("frame", "query", "zoom")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ZOOM_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    query: Query
    zoom: Zoom
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., query: _Optional[_Union[Query, _Mapping]] = ..., zoom: _Optional[_Union[Zoom, _Mapping]] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("text_delta", "result")
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    text_delta: str
    result: FrameResult
    def __init__(self, text_delta: _Optional[str] = ..., result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...

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

class StreamPolicy(_message.Message):
    __slots__ = ("drop", "mode", "window", "max_age_ms", "ack_window", "reuse_features")
    DROP_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ACK_WINDOW_FIELD_NUMBER: _ClassVar[int]
    REUSE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    drop: DropPolicy
    mode: AnswerMode
    window: int
    max_age_ms: float
    ack_window: int
    reuse_features: bool
    def __init__(self, drop: _Optional[_Union[DropPolicy, str]] = ..., mode: _Optional[_Union[AnswerMode, str]] = ..., window: _Optional[int] = ..., max_age_ms: _Optional[float] = ..., ack_window: _Optional[int] = ..., reuse_features: bool = ...) -> None: ...

class OpenStream(_message.Message):
    __slots__ = ("resume_token", "num_sent", "num_results", "last_result_sequence", "last_sent_sequence", "policy")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_SENT_FIELD_NUMBER: _ClassVar[int]
    NUM_RESULTS_FIELD_NUMBER: _ClassVar[int]
    LAST_RESULT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SENT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    num_sent: int
    num_results: int
    last_result_sequence: int
    last_sent_sequence: int
    policy: StreamPolicy
    def __init__(self, resume_token: _Optional[str] = ..., num_sent: _Optional[int] = ..., num_results: _Optional[int] = ..., last_result_sequence: _Optional[int] = ..., last_sent_sequence: _Optional[int] = ..., policy: _Optional[_Union[StreamPolicy, _Mapping]] = ...) -> None: ...

class SetPolicy(_message.Message):
    __slots__ = ("policy", "change_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    policy: StreamPolicy
    change_id: int
    def __init__(self, policy: _Optional[_Union[StreamPolicy, _Mapping]] = ..., change_id: _Optional[int] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ack(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class StartVideo(_message.Message):
    __slots__ = ("codec", "parameter_sets")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_SETS_FIELD_NUMBER: _ClassVar[int]
    codec: VideoCodec
    parameter_sets: bytes
    def __init__(self, codec: _Optional[_Union[VideoCodec, str]] = ..., parameter_sets: _Optional[bytes] = ...) -> None: ...

class VideoPacket(_message.Message):
    __slots__ = ("sequence", "capture_time_ns", "data", "is_key", "priority", "packet_number")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    IS_KEY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PACKET_NUMBER_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    capture_time_ns: int
    data: bytes
    is_key: bool
    priority: FramePriority
    packet_number: int
    def __init__(self, sequence: _Optional[int] = ..., capture_time_ns: _Optional[int] = ..., data: _Optional[bytes] = ..., is_key: bool = ..., priority: _Optional[_Union[FramePriority, str]] = ..., packet_number: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("frame", "set_queries", "put_query", "remove_query", "end", "open", "set_policy", "pause", "resume", "ack", "start_video", "packet")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SET_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PUT_QUERY_FIELD_NUMBER: _ClassVar[int]
    REMOVE_QUERY_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    SET_POLICY_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    START_VIDEO_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    frame: Frame
    set_queries: SetQueries
    put_query: PutQuery
    remove_query: RemoveQuery
    end: End
    open: OpenStream
    set_policy: SetPolicy
    pause: Pause
    resume: Resume
    ack: Ack
    start_video: StartVideo
    packet: VideoPacket
    def __init__(self, frame: _Optional[_Union[Frame, _Mapping]] = ..., set_queries: _Optional[_Union[SetQueries, _Mapping]] = ..., put_query: _Optional[_Union[PutQuery, _Mapping]] = ..., remove_query: _Optional[_Union[RemoveQuery, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., open: _Optional[_Union[OpenStream, _Mapping]] = ..., set_policy: _Optional[_Union[SetPolicy, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., start_video: _Optional[_Union[StartVideo, _Mapping]] = ..., packet: _Optional[_Union[VideoPacket, _Mapping]] = ...) -> None: ...

class QueriesAck(_message.Message):
    __slots__ = ("epoch", "change_id", "query_ids")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    change_id: int
    query_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epoch: _Optional[int] = ..., change_id: _Optional[int] = ..., query_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class PolicyAck(_message.Message):
    __slots__ = ("policy", "change_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    policy: StreamPolicy
    change_id: int
    def __init__(self, policy: _Optional[_Union[StreamPolicy, _Mapping]] = ..., change_id: _Optional[int] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("num_frames", "first_sequence", "last_sequence")
    NUM_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    num_frames: int
    first_sequence: int
    last_sequence: int
    def __init__(self, num_frames: _Optional[int] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class StreamOpened(_message.Message):
    __slots__ = ("resume_token", "resumed", "epoch", "query_ids", "policy", "gap")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    resumed: bool
    epoch: int
    query_ids: _containers.RepeatedScalarFieldContainer[str]
    policy: StreamPolicy
    gap: Gap
    def __init__(self, resume_token: _Optional[str] = ..., resumed: bool = ..., epoch: _Optional[int] = ..., query_ids: _Optional[_Iterable[str]] = ..., policy: _Optional[_Union[StreamPolicy, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class StreamActivity(_message.Message):
    __slots__ = ("num_answers", "num_encoded_frames", "num_keyframes", "num_unacknowledged", "num_tracks", "paused")
    NUM_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENCODED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_KEYFRAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_UNACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    NUM_TRACKS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    num_answers: int
    num_encoded_frames: int
    num_keyframes: int
    num_unacknowledged: int
    num_tracks: int
    paused: bool
    def __init__(self, num_answers: _Optional[int] = ..., num_encoded_frames: _Optional[int] = ..., num_keyframes: _Optional[int] = ..., num_unacknowledged: _Optional[int] = ..., num_tracks: _Optional[int] = ..., paused: bool = ...) -> None: ...

class StreamStats(_message.Message):
    __slots__ = ("received", "answered", "superseded", "rejected", "failed", "in_flight", "tracked_only", "expired", "activity", "ended")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    TRACKED_ONLY_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    received: int
    answered: int
    superseded: int
    rejected: int
    failed: int
    in_flight: int
    tracked_only: int
    expired: int
    activity: StreamActivity
    ended: bool
    def __init__(self, received: _Optional[int] = ..., answered: _Optional[int] = ..., superseded: _Optional[int] = ..., rejected: _Optional[int] = ..., failed: _Optional[int] = ..., in_flight: _Optional[int] = ..., tracked_only: _Optional[int] = ..., expired: _Optional[int] = ..., activity: _Optional[_Union[StreamActivity, _Mapping]] = ..., ended: bool = ...) -> None: ...

class KeyframeAnswer(_message.Message):
    __slots__ = ("result", "reason")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    reason: KeyframeReason
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ..., reason: _Optional[_Union[KeyframeReason, str]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "sequence", "change_id", "request_id", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    sequence: int
    change_id: int
    request_id: str
    retry_after_ms: float
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ..., sequence: _Optional[int] = ..., change_id: _Optional[int] = ..., request_id: _Optional[str] = ..., retry_after_ms: _Optional[float] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reason", "grace_s")
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    reason: str
    grace_s: float
    def __init__(self, reason: _Optional[str] = ..., grace_s: _Optional[float] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("result", "ack", "stats", "error", "drain", "opened", "policy_ack", "keyframe")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    POLICY_ACK_FIELD_NUMBER: _ClassVar[int]
    KEYFRAME_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    ack: QueriesAck
    stats: StreamStats
    error: StreamError
    drain: Drain
    opened: StreamOpened
    policy_ack: PolicyAck
    keyframe: KeyframeAnswer
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ..., ack: _Optional[_Union[QueriesAck, _Mapping]] = ..., stats: _Optional[_Union[StreamStats, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., opened: _Optional[_Union[StreamOpened, _Mapping]] = ..., policy_ack: _Optional[_Union[PolicyAck, _Mapping]] = ..., keyframe: _Optional[_Union[KeyframeAnswer, _Mapping]] = ...) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("service_version", "model_name", "model_digest", "tasks", "image_formats", "max_frame_bytes", "max_frame_pixels", "max_queries", "max_query_chars", "max_regions", "max_new_tokens", "max_window", "video_codecs", "max_video_pixels")
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
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    VIDEO_CODECS_FIELD_NUMBER: _ClassVar[int]
    MAX_VIDEO_PIXELS_FIELD_NUMBER: _ClassVar[int]
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
    max_window: int
    video_codecs: _containers.RepeatedScalarFieldContainer[VideoCodec]
    max_video_pixels: int
    def __init__(self, service_version: _Optional[str] = ..., model_name: _Optional[str] = ..., model_digest: _Optional[str] = ..., tasks: _Optional[_Iterable[_Union[TaskKind, str]]] = ..., image_formats: _Optional[_Iterable[str]] = ..., max_frame_bytes: _Optional[int] = ..., max_frame_pixels: _Optional[int] = ..., max_queries: _Optional[int] = ..., max_query_chars: _Optional[int] = ..., max_regions: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., max_window: _Optional[int] = ..., video_codecs: _Optional[_Iterable[_Union[VideoCodec, str]]] = ..., max_video_pixels: _Optional[int] = ...) -> None: ...

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

class StageLoad(_message.Message):
    __slots__ = ("name", "num_done", "num_refused", "in_flight", "most_at_once", "call_ms", "queue_ms", "compute_ms", "expected_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_DONE_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MOST_AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    CALL_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_done: int
    num_refused: int
    in_flight: int
    most_at_once: int
    call_ms: float
    queue_ms: float
    compute_ms: float
    expected_ms: float
    def __init__(self, name: _Optional[str] = ..., num_done: _Optional[int] = ..., num_refused: _Optional[int] = ..., in_flight: _Optional[int] = ..., most_at_once: _Optional[int] = ..., call_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., expected_ms: _Optional[float] = ...) -> None: ...

class ServiceStats(_message.Message):
    __slots__ = ("uptime_s", "open_streams", "frames_received", "frames_answered", "frames_superseded", "frames_rejected", "frames_failed", "frames_abandoned", "frames_in_flight", "stage_calls", "cache", "frames_tracked_only", "frames_expired", "stages")
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
    FRAMES_TRACKED_ONLY_FIELD_NUMBER: _ClassVar[int]
    FRAMES_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
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
    frames_tracked_only: int
    frames_expired: int
    stages: _containers.RepeatedCompositeFieldContainer[StageLoad]
    def __init__(self, uptime_s: _Optional[float] = ..., open_streams: _Optional[int] = ..., frames_received: _Optional[int] = ..., frames_answered: _Optional[int] = ..., frames_superseded: _Optional[int] = ..., frames_rejected: _Optional[int] = ..., frames_failed: _Optional[int] = ..., frames_abandoned: _Optional[int] = ..., frames_in_flight: _Optional[int] = ..., stage_calls: _Optional[_Union[StageCalls, _Mapping]] = ..., cache: _Optional[_Union[CacheStats, _Mapping]] = ..., frames_tracked_only: _Optional[int] = ..., frames_expired: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageLoad, _Mapping]]] = ...) -> None: ...

class ListStreamsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OpenStreamInfo(_message.Message):
    __slots__ = ("number", "age_s", "query_ids", "stats")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    QUERY_IDS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    number: int
    age_s: float
    query_ids: _containers.RepeatedScalarFieldContainer[str]
    stats: StreamStats
    def __init__(self, number: _Optional[int] = ..., age_s: _Optional[float] = ..., query_ids: _Optional[_Iterable[str]] = ..., stats: _Optional[_Union[StreamStats, _Mapping]] = ...) -> None: ...

class ListStreamsResponse(_message.Message):
    __slots__ = ("streams",)
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[OpenStreamInfo]
    def __init__(self, streams: _Optional[_Iterable[_Union[OpenStreamInfo, _Mapping]]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("encoded_image", "result")
    ENCODED_IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    encoded_image: bytes
    result: FrameResult
    def __init__(self, encoded_image: _Optional[bytes] = ..., result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...
