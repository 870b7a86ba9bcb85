"""Between the wire and the agent: pure functions from messages to types and back.

Nothing else in the service knows protobuf, and nothing here knows sessions, stages or Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from agent.clock import stamp_ns
from agent.detections import Detections, FloatArray, Proposals, validate_boxes
from agent.features import StageTimings
from agent.frame import FrameLimits, Picture, read_frame
from agent.model_directory import ModelDirectory
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import (
    MAX_QUERY_CHARS,
    MAX_REGIONS,
    Exchange,
    Task,
    TaskKind,
    check_num_turns,
)
from agent.region_cache import CacheStats
from agent.settings import ServiceSettings
from agent.streaming.feature_reuse import Reused
from agent.streaming.motion import Affine
from agent.streaming.policy import Priority
from agent.streaming.session import StandingQuery, check_names
from deployments.observability.metrics import CallCounts, ServiceTotals
from deployments.observability.stage_meter import StageMeter
from groundstream.enums import VideoCodec
from groundstream.errors import InvalidBoxes, InvalidQuery, InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

STATUS = {status: f"ANSWER_STATUS_{status.name}" for status in AnswerStatus}


def members_by_number(wire: Any, ours: type[E], unspecified: E) -> dict[int, E]:
    """Our members by the numbers of a protobuf enum; what its zero, UNSPECIFIED, means is given."""
    prefix = wire.Name(0).removesuffix("UNSPECIFIED")
    return {0: unspecified} | {wire.Value(f"{prefix}{member.value}"): member for member in ours}


_PRIORITY = members_by_number(pb.FramePriority, Priority, Priority.NORMAL)
_KNOWN_TASK = members_by_number(pb.TaskKind, TaskKind, TaskKind.DETECT)
_MAX_ID_CHARS = 200
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_VIDEO_CODEC = {pb.VideoCodec.Value(f"VIDEO_CODEC_{codec.value}"): codec for codec in VideoCodec}


@dataclass(frozen=True)
class ReceivedFrame:
    """A frame with what only the wire knows about it."""

    frame: Picture
    boxes: FloatArray | None
    """(n, 4) pixels inside the frame, sent by the client to be used instead of proposals."""
    received_time_ns: int
    """By the service's steady clock (`agent.clock`)."""
    priority: Priority = Priority.NORMAL
    ego_motion: Affine | None = None
    """(2, 3) how the camera moved since the frame sent before."""


# ---- wire to agent ----


def frame_from_message(
    message: pb.Frame, *, limits: FrameLimits, received_time_ns: int
) -> ReceivedFrame:
    """A frame whose header has been read and whose size is within the limits.

    Raises:
        InvalidFrame: not an image.
        FrameTooLarge: beyond the limits.
        InvalidBoxes: more boxes than the limits allow, or one that is no part of the frame.
        InvalidRequest: a priority or a motion without meaning.
    """
    frame = read_frame(
        message.encoded_image,
        limits=limits,
        index=message.sequence,
        capture_time_ns=message.capture_time_ns,
    )
    boxes = None
    if message.HasField("boxes"):
        # Here, for a frame that is only tracked never comes to the stages, which look again.
        sent = boxes_from_message(message.boxes, most=limits.max_boxes)
        boxes = validate_boxes(sent, width=frame.width, height=frame.height)
    return ReceivedFrame(
        frame,
        boxes,
        received_time_ns,
        priority=known_value(_PRIORITY, message.priority, "priority"),
        ego_motion=ego_motion_from_message(message),
    )


def codec_from_message(message: pb.StartVideo) -> VideoCodec:
    """What the packets that follow hold.

    Raises:
        InvalidRequest: no codec that this service knows.
    """
    return known_value(_VIDEO_CODEC, message.codec, "video codec")


def priority_from_message(message: pb.VideoPacket) -> Priority:
    """How much a packet's picture matters.

    Raises:
        InvalidRequest: a priority without meaning.
    """
    return known_value(_PRIORITY, message.priority, "priority")


def ego_motion_from_message(message: pb.Frame) -> Affine | None:
    """(2, 3) affine map, if the client knows how its camera moved.

    Raises:
        InvalidRequest: not finite.
    """
    if not message.HasField("ego_motion"):
        return None
    m = message.ego_motion
    affine = np.array([[m.xx, m.xy, m.x0], [m.yx, m.yy, m.y0]], dtype=np.float64)
    if not np.isfinite(affine).all():
        raise InvalidRequest("ego_motion contains NaN or infinity; leave it out when unknown")
    return affine


def boxes_from_message(message: pb.BoxList, *, most: int) -> FloatArray:
    """(n, 4) float32 pixels, as they came.

    Raises:
        InvalidBoxes: more than `most`.
    """
    if len(message.boxes) > most:
        raise InvalidBoxes(f"{len(message.boxes)} boxes, the limit is {most}; send the best")
    rows = [(box.x1, box.y1, box.x2, box.y2) for box in message.boxes]
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def task_from_message(message: pb.Query, *, max_new_tokens: int) -> Task:
    """The question a query asks.

    Args:
        message: the query.
        max_new_tokens: the service's limit and default.

    Raises:
        InvalidRequest: a task kind this service does not know.
        InvalidQuery: no text, too long a text, or no region where one is needed.
    """
    kind = _KNOWN_TASK.get(message.task)
    if kind is None:
        names = ", ".join(known.name for known in TaskKind)
        raise InvalidRequest(f"task {int(message.task)} is unknown; known: {names}")
    if kind.needs_region and not message.HasField("region_index"):
        raise InvalidQuery(f"{kind.name} needs region_index: which box is meant?")
    task = _task(kind, message)
    if message.max_new_tokens > max_new_tokens:
        raise InvalidQuery(
            f"max_new_tokens is {message.max_new_tokens}, the limit is {max_new_tokens}"
        )
    return dataclasses.replace(
        task,
        max_new_tokens=message.max_new_tokens or max_new_tokens,
        constrained=message.constrained,
    )


def _task(kind: TaskKind, message: pb.Query) -> Task:
    # Also where the kind makes no use of them: they would be read all the same.
    check_num_turns(len(message.history))
    if len(message.mentioned_regions) > MAX_QUERY_CHARS // 2:
        raise InvalidQuery(
            f"{len(message.mentioned_regions)} regions are mentioned, more than a question has "
            "room for placeholders '{}'"
        )
    regions = tuple(message.mentioned_regions)
    history = tuple(Exchange(turn.question, turn.answer) for turn in message.history)
    match kind:
        case TaskKind.DETECT:
            return Task.detect(message.text)
        case TaskKind.REFER:
            return Task.refer(message.text)
        case TaskKind.COUNT:
            return Task.count(message.text)
        case TaskKind.REASON:
            return Task.reason(message.text, regions=regions)
        case TaskKind.CHAT:
            return Task.chat(message.text, regions=regions, history=history)
        case TaskKind.GROUNDED_CAPTION:
            return Task.describe_image()
        case _:
            return Task(kind, region=message.region_index)


def tasks_from_messages(
    messages: Sequence[pb.Query], *, max_new_tokens: int
) -> list[tuple[str, Task]]:
    """(name, task) of each query; an unnamed query is called by its position.

    Raises:
        InvalidRequest, InvalidQuery: see `task_from_message`, the message names the query; or two
            queries have one name.
    """
    named = [(message.id or str(index), message) for index, message in enumerate(messages)]
    tasks = [
        (name, named_task_from_message(name, message, max_new_tokens=max_new_tokens))
        for name, message in named
    ]
    check_names([name for name, _ in tasks])
    return tasks


def named_task_from_message(name: str, message: pb.Query, *, max_new_tokens: int) -> Task:
    """`task_from_message` whose errors say which query they are about.

    Raises:
        InvalidRequest, InvalidQuery: also where the name is too long.
    """
    if len(name) > _MAX_ID_CHARS:
        raise InvalidQuery(f"a query id has {len(name)} characters, the limit is {_MAX_ID_CHARS}")
    try:
        return task_from_message(message, max_new_tokens=max_new_tokens)
    except (InvalidQuery, InvalidRequest) as error:
        raise type(error)(f"query {name!r}: {error}") from None


# ---- agent to wire ----


def detections_to_messages(detections: Detections, proposals: Proposals) -> list[pb.Detection]:
    """One message per box of a single call, as seen on the whole frame."""
    return [
        pb.Detection(
            box=box_to_message(box),
            label=label,
            confidence=confidence,
            region_index=region,
            objectness=proposals.objectness[region],
            source=pb.ANSWER_SOURCE_GROUNDED,
            proposal_box=box_to_message(proposals.xyxy[region].tolist()),
        )
        for box, label, confidence, region in zip(
            detections.xyxy.tolist(),
            detections.label,
            detections.confidence.tolist(),
            detections.region.tolist(),
            strict=True,
        )
    ]


def answer_to_message(query: StandingQuery, answer: Answer, proposals: Proposals) -> pb.QueryResult:
    """One question's answer in a single call."""
    return pb.QueryResult(
        query_id=query.id,
        epoch=query.epoch,
        status=STATUS[answer.status],
        text=answer.text,
        detections=detections_to_messages(answer.detections, proposals),
        num_unknown_regions=answer.num_unknown_regions,
        num_prefix_tokens_reused=answer.num_prefix_tokens_reused,
        num_passes=answer.num_passes,
        source=pb.ANSWER_SOURCE_GROUNDED,
        reply=answer.reply,
        thought=answer.thought,
        count=answer.count,
        num_regions_seen=answer.num_proposals,
        num_drafted_tokens=answer.num_drafted_tokens,
    )


def box_to_message(box: Sequence[float]) -> pb.Box:
    x1, y1, x2, y2 = box
    return pb.Box(x1=x1, y1=y1, x2=x2, y2=y2)


def timings_to_message(
    timings: StageTimings, *, queue_s: float, follow_s: float = 0.0
) -> pb.StageTimings:
    """Seconds to milliseconds."""
    return pb.StageTimings(
        queue_ms=1e3 * queue_s,
        cache_ms=1e3 * timings.cache_s,
        propose_ms=1e3 * timings.propose_s,
        primary_ms=1e3 * timings.primary_s,
        auxiliary_ms=1e3 * timings.auxiliary_s,
        language_ms=1e3 * timings.language_s,
        total_ms=1e3 * timings.total_s,
        follow_ms=1e3 * follow_s,
    )


def result_to_message(
    received: ReceivedFrame,
    results: Sequence[pb.QueryResult],
    grounding: Grounding | None,
    *,
    epoch: int,
    answered_time_ns: int,
    queue_s: float = 0.0,
    follow_s: float = 0.0,
    reused: Reused | None = None,
) -> pb.FrameResult:
    """One frame's result with those answers that are to be delivered.

    Args:
        received: the frame.
        results: the answers.
        grounding: what the stages did for this frame; None when they did nothing.
        epoch: of the standing queries.
        answered_time_ns: the service's steady clock now.
        queue_s: time the frame waited.
        follow_s: time it took to follow the tracks to it.
        reused: whose features stood in for this frame's.
    """
    frame = received.frame
    timings = StageTimings() if grounding is None else grounding.timings
    return pb.FrameResult(
        sequence=frame.index,
        epoch=epoch,
        clocks=pb.Clocks(
            capture_time_ns=frame.capture_time_ns,
            received_time_ns=stamp_ns(received.received_time_ns),
            answered_time_ns=stamp_ns(answered_time_ns),
        ),
        width=frame.width,
        height=frame.height,
        results=results,
        cache_hit=grounding is not None and grounding.cache_hit,
        num_proposals=0 if grounding is None else len(grounding.proposals),
        timings=timings_to_message(timings, queue_s=queue_s, follow_s=follow_s),
        reused=None
        if reused is None
        else pb.ReusedFeatures(sequence=reused.sequence, difference=reused.difference),
    )


def capabilities_to_message(
    settings: ServiceSettings, model: ModelDirectory, *, service_version: str
) -> pb.Capabilities:
    """What the service can do; a model may have been trained for some tasks only."""
    trained = model.tasks
    known = [kind for kind in TaskKind if not trained or kind.name in trained]
    video = settings.stream.video
    return pb.Capabilities(
        service_version=service_version,
        model_name=model.name,
        model_digest=model.digest,
        tasks=[f"TASK_KIND_{kind.name}" for kind in known],
        image_formats=_IMAGE_FORMATS,
        max_frame_bytes=settings.frame.max_bytes,
        max_frame_pixels=settings.frame.max_pixels,
        max_queries=settings.stream.max_queries,
        max_query_chars=MAX_QUERY_CHARS,
        max_regions=MAX_REGIONS,
        max_new_tokens=settings.stream.max_new_tokens,
        max_window=settings.stream.max_window,
        video_codecs=[f"VIDEO_CODEC_{codec.value}" for codec in VideoCodec if video.enabled],
        max_video_pixels=video.max_pixels,
    )


def stats_to_message(
    totals: ServiceTotals,
    calls: CallCounts,
    cache: CacheStats,
    meters: Iterable[StageMeter] = (),
) -> pb.ServiceStats:
    """What this front-end replica has done."""
    return pb.ServiceStats(
        **dataclasses.asdict(totals),
        stage_calls=pb.StageCalls(**dataclasses.asdict(calls)),
        cache=_cache_to_message(cache),
        stages=[_stage_to_message(meter) for meter in meters],
    )


def _cache_to_message(stats: CacheStats) -> pb.CacheStats:
    """Entries; bytes are on the metrics page alone."""
    names = pb.CacheStats.DESCRIPTOR.fields_by_name
    return pb.CacheStats(**{name: getattr(stats, name) for name in names})


def _stage_to_message(meter: StageMeter) -> pb.StageLoad:
    """Seconds to milliseconds."""
    counts = dataclasses.asdict(meter.counts)
    sums = {name: 1e3 * counts.pop(f"{name}_s") for name in ("call", "queue", "compute")}
    return pb.StageLoad(
        name=meter.name,
        **counts,
        **{f"{name}_ms": value for name, value in sums.items()},
        expected_ms=1e3 * meter.expected_s(),
    )


def known_value(table: Mapping[Any, T], value: int, what: str) -> T:
    """What an enum value means.

    Raises:
        InvalidRequest: nothing that this service knows.
    """
    if value not in table:
        raise InvalidRequest(f"{what} {value} is unknown to this service")
    return table[value]
