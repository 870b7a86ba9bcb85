"""The client's door to the wire: dataclasses to messages and back, pure functions."""

from __future__ import annotations

from typing import Any

from client import types
from protos import vision_agent_pb2 as pb

_STATUS = {
    pb.ANSWER_STATUS_OK: types.AnswerStatus.OK,
    pb.ANSWER_STATUS_NOT_PRESENT: types.AnswerStatus.NOT_PRESENT,
    pb.ANSWER_STATUS_UNSURE: types.AnswerStatus.UNSURE,
    pb.ANSWER_STATUS_TRUNCATED: types.AnswerStatus.TRUNCATED,
}


def query_to_message(query: types.Query) -> pb.Query:
    """A question, always named."""
    return pb.Query(
        id=query.name,
        text=query.text,
        task=f"TASK_KIND_{query.task.value}",
        region_index=query.region_index,
        max_new_tokens=query.max_new_tokens,
    )


def frame_to_message(frame: types.OutgoingFrame) -> pb.Frame:
    """A picture."""
    boxes = None
    if frame.boxes is not None:
        rows = [pb.Box(x1=x1, y1=y1, x2=x2, y2=y2) for x1, y1, x2, y2 in frame.boxes]
        boxes = pb.BoxList(boxes=rows)
    return pb.Frame(
        sequence=frame.sequence,
        capture_time_ns=frame.capture_time_ns,
        encoded_image=frame.encoded,
        boxes=boxes,
    )


def detection_from_message(message: pb.Detection) -> types.Detection:
    """One labelled box."""
    box = message.box
    return types.Detection(
        box=(box.x1, box.y1, box.x2, box.y2),
        label=message.label,
        confidence=message.confidence,
        region_index=message.region_index,
        objectness=message.objectness,
    )


def query_result_from_message(message: pb.QueryResult) -> types.QueryResult:
    """One question's answer; a status newer than this client reads as UNSURE."""
    return types.QueryResult(
        query_id=message.query_id,
        epoch=message.epoch,
        status=_STATUS.get(message.status, types.AnswerStatus.UNSURE),
        text=message.text,
        detections=tuple(map(detection_from_message, message.detections)),
        num_unknown_regions=message.num_unknown_regions,
        num_prefix_tokens_reused=message.num_prefix_tokens_reused,
        num_passes=message.num_passes,
    )


def result_from_message(message: pb.FrameResult) -> types.FrameResult:
    """One frame's answers."""
    return types.FrameResult(
        sequence=message.sequence,
        epoch=message.epoch,
        capture_time_ns=message.clocks.capture_time_ns,
        received_time_ns=message.clocks.received_time_ns,
        answered_time_ns=message.clocks.answered_time_ns,
        width=message.width,
        height=message.height,
        results=tuple(map(query_result_from_message, message.results)),
        cache_hit=message.cache_hit,
        num_proposals=message.num_proposals,
        timings=types.StageTimings(**_scalars(message.timings)),
    )


def event_from_message(message: pb.WatchResponse) -> types.StreamEvent | None:
    """What the server says on a stream; None for a kind newer than this client."""
    match message.WhichOneof("message"):
        case "result":
            return result_from_message(message.result)
        case "ack":
            ack = message.ack
            return types.QueriesAck(ack.epoch, ack.change_id, tuple(ack.query_ids))
        case "stats":
            return types.StreamStats(**_scalars(message.stats))
        case "error":
            return error_from_message(message.error)
        case "drain":
            return types.Drain(message.drain.reason, message.drain.grace_s)
        case _:
            return None


def error_from_message(message: pb.StreamError) -> types.StreamError:
    """An error about one item of a stream."""
    return types.StreamError(
        code=error_code_name(message.code),
        message=message.message,
        sequence=message.sequence if message.HasField("sequence") else None,
        change_id=message.change_id if message.HasField("change_id") else None,
        request_id=message.request_id,
    )


def error_code_name(code: int) -> str:
    """The code without its prefix; a code newer than this client keeps its number."""
    known = pb.ErrorCode.DESCRIPTOR.values_by_number.get(code)
    return known.name.removeprefix("ERROR_CODE_") if known else f"CODE_{code}"


def capabilities_from_message(message: pb.Capabilities) -> types.Capabilities:
    """What the service can do; tasks newer than this client are left out."""
    names = {f"TASK_KIND_{kind.value}": kind for kind in types.TaskKind}
    known = pb.TaskKind.DESCRIPTOR.values_by_number
    tasks = [names.get(known[task].name) for task in message.tasks if task in known]
    return types.Capabilities(
        **{
            **_scalars(message),
            "tasks": tuple(task for task in tasks if task is not None),
            "image_formats": tuple(message.image_formats),
        }
    )


def stats_from_message(message: pb.ServiceStats) -> types.ServiceStats:
    """What the replica has done."""
    return types.ServiceStats(
        **{
            **_scalars(message),
            "stage_calls": types.StageCalls(**_scalars(message.stage_calls)),
            "cache": types.CacheStats(**_scalars(message.cache)),
        }
    )


def _scalars(message: Any) -> dict[str, Any]:
    """All single fields of a message by name; our dataclasses use the wire's names."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
