"""The door between the wire and the agent: pure functions from messages to types and back.

Nothing else in the service knows protobuf, and nothing here knows sessions, stages or Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.detections import Detections, FloatArray, Proposals
from agent.errors import InvalidQuery, InvalidRequest
from agent.features import StageTimings
from agent.frame import Frame, FrameLimits, read_frame
from agent.model_directory import ModelDirectory
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import MAX_QUERY_CHARS, MAX_REGIONS, Task, TaskKind
from agent.region_cache import CacheStats
from agent.settings import ServiceSettings
from agent.streaming.session import Books, StandingQuery
from deployments.metrics import ServiceTotals, StageCalls
from deployments.status import Failure
from protos import vision_agent_pb2 as pb

_STATUS = {
    AnswerStatus.OK: pb.ANSWER_STATUS_OK,
    AnswerStatus.NOT_PRESENT: pb.ANSWER_STATUS_NOT_PRESENT,
    AnswerStatus.UNSURE: pb.ANSWER_STATUS_UNSURE,
    AnswerStatus.TRUNCATED: pb.ANSWER_STATUS_TRUNCATED,
}
_TASK_KIND = {
    TaskKind.DETECT: pb.TASK_KIND_DETECT,
    TaskKind.COUNT: pb.TASK_KIND_COUNT,
    TaskKind.REGION_CAPTION: pb.TASK_KIND_NAME_REGION,
}
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True)
class ReceivedFrame:
    """A frame with what only the wire knows about it."""

    frame: Frame
    boxes: FloatArray | None
    """(n, 4) pixels, sent by the client to be used instead of proposals; not yet validated."""
    received_time_ns: int
    """The server's wall clock."""


# ---- wire to agent ----


def frame_from_message(
    message: pb.Frame, *, limits: FrameLimits, received_time_ns: int
) -> ReceivedFrame:
    """A frame whose header has been read and whose size is within the limits.

    Raises:
        InvalidFrame: not an image.
        FrameTooLarge: beyond the limits.
    """
    frame = read_frame(
        message.encoded_image,
        limits=limits,
        index=message.sequence,
        capture_time_ns=message.capture_time_ns,
    )
    boxes = boxes_from_message(message.boxes) if message.HasField("boxes") else None
    return ReceivedFrame(frame, boxes, received_time_ns)


def boxes_from_message(message: pb.BoxList) -> FloatArray:
    """(n, 4) float32 pixels, as they came."""
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
    if message.task in (pb.TASK_KIND_UNSPECIFIED, pb.TASK_KIND_DETECT):
        task = Task.detect(message.text)
    elif message.task == pb.TASK_KIND_COUNT:
        task = Task.count(message.text)
    elif message.task == pb.TASK_KIND_NAME_REGION:
        if not message.HasField("region_index"):
            raise InvalidQuery("NAME_REGION needs region_index: which box is meant?")
        task = Task.describe_region(message.region_index)
    else:
        raise InvalidRequest(
            f"task {int(message.task)} is unknown; known: DETECT, COUNT, NAME_REGION"
        )
    if message.max_new_tokens > max_new_tokens:
        raise InvalidQuery(
            f"max_new_tokens is {message.max_new_tokens}, the limit is {max_new_tokens}"
        )
    return dataclasses.replace(task, max_new_tokens=message.max_new_tokens or max_new_tokens)


def tasks_from_messages(
    messages: Sequence[pb.Query], *, max_new_tokens: int
) -> list[tuple[str, Task]]:
    """(name, task) of each query; an unnamed query is called by its position.

    Raises:
        InvalidRequest, InvalidQuery: see `task_from_message`; the message names the query.
    """
    tasks = []
    for index, message in enumerate(messages):
        name = message.id or str(index)
        tasks.append((name, named_task_from_message(name, message, max_new_tokens=max_new_tokens)))
    return tasks


def named_task_from_message(name: str, message: pb.Query, *, max_new_tokens: int) -> Task:
    """`task_from_message` whose errors say which query they are about."""
    try:
        return task_from_message(message, max_new_tokens=max_new_tokens)
    except (InvalidQuery, InvalidRequest) as error:
        raise type(error)(f"query {name!r}: {error}") from None


def request_kind(message: pb.WatchRequest) -> str | None:
    """Which of its messages a stream request holds; None when nothing we know."""
    kind: str | None = message.WhichOneof("message")
    return kind


# ---- agent to wire ----


def detections_to_messages(detections: Detections, proposals: Proposals) -> list[pb.Detection]:
    """One message per box."""
    return [
        pb.Detection(
            box=pb.Box(x1=x1, y1=y1, x2=x2, y2=y2),
            label=label,
            confidence=confidence,
            region_index=region,
            objectness=proposals.objectness[region],
        )
        for (x1, y1, x2, y2), label, confidence, region in zip(
            detections.xyxy.tolist(),
            detections.label,
            detections.confidence.tolist(),
            detections.region.tolist(),
            strict=True,
        )
    ]


def answer_to_message(query: StandingQuery, answer: Answer, proposals: Proposals) -> pb.QueryResult:
    """One question's answer."""
    return pb.QueryResult(
        query_id=query.id,
        epoch=query.epoch,
        status=_STATUS[answer.status],
        text=answer.text,
        detections=detections_to_messages(answer.detections, proposals),
        num_unknown_regions=answer.num_unknown_regions,
        num_prefix_tokens_reused=answer.num_prefix_tokens_reused,
        num_passes=answer.num_passes,
    )


def timings_to_message(timings: StageTimings, *, queue_s: float) -> pb.StageTimings:
    """Seconds to milliseconds."""
    return pb.StageTimings(
        queue_ms=1e3 * queue_s,
        decode_ms=1e3 * timings.decode_s,
        cache_ms=1e3 * timings.cache_s,
        propose_ms=1e3 * timings.propose_s,
        primary_ms=1e3 * timings.primary_s,
        auxiliary_ms=1e3 * timings.auxiliary_s,
        language_ms=1e3 * timings.language_s,
        total_ms=1e3 * timings.total_s,
    )


def result_to_message(
    received: ReceivedFrame,
    answered: Sequence[tuple[StandingQuery, Answer]],
    grounding: Grounding,
    *,
    epoch: int,
    answered_time_ns: int,
    queue_s: float = 0.0,
) -> pb.FrameResult:
    """One frame's result with those answers that are to be delivered."""
    frame = received.frame
    return pb.FrameResult(
        sequence=frame.index,
        epoch=epoch,
        clocks=pb.Clocks(
            capture_time_ns=frame.capture_time_ns,
            received_time_ns=received.received_time_ns,
            answered_time_ns=answered_time_ns,
        ),
        width=frame.width,
        height=frame.height,
        results=[answer_to_message(q, answer, grounding.proposals) for q, answer in answered],
        cache_hit=grounding.cache_hit,
        num_proposals=len(grounding.proposals),
        timings=timings_to_message(grounding.timings, queue_s=queue_s),
    )


def failure_to_message(
    failure: Failure, *, sequence: int | None = None, change_id: int | None = None
) -> pb.StreamError:
    """An error about one item of a stream."""
    return pb.StreamError(
        code=f"ERROR_CODE_{failure.code}",
        message=failure.message,
        sequence=sequence,
        change_id=change_id,
        request_id=failure.request_id,
    )


def books_to_message(books: Books) -> pb.StreamStats:
    """A stream's books."""
    return pb.StreamStats(**dataclasses.asdict(books))


def result_response(result: pb.FrameResult) -> pb.WatchResponse:
    """A result on a stream."""
    return pb.WatchResponse(result=result)


def ack_response(epoch: int, change_id: int, query_ids: Sequence[str]) -> pb.WatchResponse:
    """The standing queries have changed."""
    return pb.WatchResponse(
        ack=pb.QueriesAck(epoch=epoch, change_id=change_id, query_ids=query_ids)
    )


def failure_response(failure: Failure, **about: int) -> pb.WatchResponse:
    """An error on a stream; see `failure_to_message`."""
    return pb.WatchResponse(error=failure_to_message(failure, **about))


def books_response(books: Books) -> pb.WatchResponse:
    """The books on a stream."""
    return pb.WatchResponse(stats=books_to_message(books))


def drain_response(reason: str, grace_s: float) -> pb.WatchResponse:
    """This stream will end soon."""
    return pb.WatchResponse(drain=pb.Drain(reason=reason, grace_s=grace_s))


def capabilities_to_message(
    settings: ServiceSettings, model: ModelDirectory, *, service_version: str
) -> pb.Capabilities:
    """What the service can do."""
    return pb.Capabilities(
        service_version=service_version,
        model_name=model.name,
        model_digest=model.digest,
        tasks=[_TASK_KIND[kind] for kind in _TASK_KIND],
        image_formats=_IMAGE_FORMATS,
        max_frame_bytes=settings.frame.max_bytes,
        max_frame_pixels=settings.frame.max_pixels,
        max_queries=settings.stream.max_queries,
        max_query_chars=MAX_QUERY_CHARS,
        max_regions=MAX_REGIONS,
        max_new_tokens=settings.stream.max_new_tokens,
    )


def stats_to_message(
    totals: ServiceTotals, calls: StageCalls, cache: CacheStats
) -> pb.ServiceStats:
    """What this front-end replica has done."""
    return pb.ServiceStats(
        **dataclasses.asdict(totals),
        stage_calls=pb.StageCalls(**dataclasses.asdict(calls)),
        cache=pb.CacheStats(**dataclasses.asdict(cache)),
    )
