"""The client's door to the wire: dataclasses to messages and back, pure functions."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from enum import Enum
from typing import Any, TypeVar

from groundstream import events, types
from groundstream.checks import INT64, UINT32, UINT64, check_text, check_whole
from groundstream.errors import AgentError, InvalidBoxes, InvalidQuery, InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb

E = TypeVar("E", bound=Enum)
M = TypeVar("M", pb.Box, pb.EgoMotion)


def query_to_message(query: types.Query) -> pb.Query:
    """A question, always named.

    Raises:
        InvalidQuery: a text that UTF-8 cannot write, or a number that a message cannot hold.
    """
    text, region = check_text(query.text, "the query"), query.region_index
    return pb.Query(
        id=check_text(query.name, "the query id"),
        text=text,
        task=f"TASK_KIND_{query.task.value}",
        region_index=None if region is None else _of_query(region, "region_index"),
        max_new_tokens=_of_query(query.max_new_tokens, "max_new_tokens"),
        mentioned_regions=[_of_query(n, "a mentioned region") for n in query.mentioned_regions],
        history=[_exchange_to_message(turn) for turn in query.history],
        constrained=query.constrained,
    )


def _of_query(number: int, what: str) -> int:
    return check_whole(number, what, UINT32, InvalidQuery)


def _exchange_to_message(turn: types.Exchange) -> pb.Exchange:
    return pb.Exchange(
        question=check_text(turn.question, "an earlier turn"),
        answer=check_text(turn.answer, "an earlier turn"),
    )


def frame_to_message(frame: types.OutgoingFrame) -> pb.Frame:
    """A picture.

    Raises:
        InvalidBoxes: a box that is not four numbers.
        InvalidRequest: a motion that is not six, or a number that a message cannot hold.
    """
    boxes, motion = None, None
    if frame.boxes is not None:
        boxes = pb.BoxList(boxes=[_box_to_message(box) for box in frame.boxes])
    if frame.ego_motion is not None:
        motion = _of_numbers(pb.EgoMotion, frame.ego_motion, "ego_motion", InvalidRequest)
    return pb.Frame(
        sequence=check_whole(frame.sequence, "sequence", UINT64),
        capture_time_ns=check_whole(frame.capture_time_ns, "capture_time_ns", INT64),
        encoded_image=frame.encoded,
        boxes=boxes,
        priority=f"FRAME_PRIORITY_{frame.priority.value}",
        ego_motion=motion,
    )


def format_to_message(video: types.VideoFormat) -> pb.StartVideo:
    """A video that begins."""
    codec = f"VIDEO_CODEC_{video.codec.value}"
    return pb.StartVideo(codec=codec, parameter_sets=video.parameter_sets)


def packet_to_message(packet: types.OutgoingPacket, *, packet_number: int) -> pb.VideoPacket:
    """A packet of it.

    Raises:
        InvalidRequest: a number that a message cannot hold.
    """
    return pb.VideoPacket(
        sequence=check_whole(packet.sequence, "sequence", UINT64),
        capture_time_ns=check_whole(packet.capture_time_ns, "capture_time_ns", INT64),
        data=packet.data,
        is_key=packet.is_key,
        priority=f"FRAME_PRIORITY_{packet.priority.value}",
        packet_number=packet_number,
    )


def zoom_to_message(zoom: types.Zoom | None) -> pb.Zoom | None:
    """How a single call is to be looked at; None: once.

    Raises:
        InvalidRequest: a number that a message cannot hold.
    """
    if zoom is None:
        return None
    return pb.Zoom(
        policy=f"ZOOM_POLICY_{zoom.policy.value}",
        max_vision_tokens=check_whole(zoom.max_vision_tokens, "max_vision_tokens", UINT32),
        budget_ms=zoom.budget_ms,
        arrangement=f"ZOOM_ARRANGEMENT_{zoom.arrangement.value}",
    )


def policy_to_message(policy: types.StreamPolicy) -> pb.StreamPolicy:
    """How the stream is to be answered.

    Raises:
        InvalidRequest: a number that a message cannot hold.
    """
    return pb.StreamPolicy(
        drop=f"DROP_POLICY_{policy.drop.value}",
        mode=f"ANSWER_MODE_{policy.mode.value}",
        window=check_whole(policy.window, "window", UINT32),
        max_age_ms=policy.max_age_ms,
        ack_window=check_whole(policy.ack_window, "ack_window", UINT32),
        reuse_features=policy.reuse_features,
    )


def policy_from_message(message: pb.StreamPolicy) -> types.StreamPolicy:
    """How the stream is answered."""
    drop = _named(pb.DropPolicy, message.drop, types.DropPolicy, types.DropPolicy.LATEST_WINS)
    mode = _named(pb.AnswerMode, message.mode, types.AnswerMode, types.AnswerMode.FOLLOW)
    return types.StreamPolicy(**{**_scalars(message), "drop": drop, "mode": mode})


def detection_from_message(message: pb.Detection) -> types.Detection:
    """One labelled box and where it comes from."""
    return types.Detection(
        box=_box_from_message(message.box),
        label=message.label,
        confidence=message.confidence,
        region_index=message.region_index,
        objectness=message.objectness,
        track_id=message.track_id if message.HasField("track_id") else None,
        source=_source(message.source),
        evidence_sequence=message.evidence_sequence,
        evidence_age_ms=message.evidence_age_ms,
        proposal_box=_box_from_message(message.proposal_box),
        transforms=tuple(map(_transform_from_message, message.transforms)),
        crop_index=message.crop_index if message.HasField("crop_index") else None,
    )


def query_result_from_message(message: pb.QueryResult) -> types.QueryResult:
    """One question's answer; a status newer than this client reads as UNSURE."""
    unsure = types.AnswerStatus.UNSURE
    return types.QueryResult(
        query_id=message.query_id,
        epoch=message.epoch,
        status=_named(pb.AnswerStatus, message.status, types.AnswerStatus, unsure),
        text=message.text,
        detections=tuple(map(detection_from_message, message.detections)),
        num_unknown_regions=message.num_unknown_regions,
        num_prefix_tokens_reused=message.num_prefix_tokens_reused,
        num_passes=message.num_passes,
        source=_source(message.source),
        evidence_sequence=message.evidence_sequence,
        evidence_age_ms=message.evidence_age_ms,
        reply=message.reply,
        thought=message.thought,
        count=message.count if message.HasField("count") else None,
        num_regions_seen=message.num_regions_seen,
        num_drafted_tokens=message.num_drafted_tokens,
    )


def result_from_message(message: pb.FrameResult) -> types.FrameResult:
    """One frame's answers."""
    reused = None
    if message.HasField("reused"):
        reused = types.ReusedFeatures(**_scalars(message.reused))
    revision = None
    if message.HasField("revision"):
        revision = types.Revision(**_scalars(message.revision))
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
        reused=reused,
        revision=revision,
        crops=tuple(
            types.Crop(_box_from_message(crop.box), crop.scale_x, crop.scale_y)
            for crop in message.crops
        ),
    )


def opened_from_message(message: pb.StreamOpened) -> events.StreamOpened:
    """The stream is open."""
    gap = events.Gap(**_scalars(message.gap)) if message.HasField("gap") else None
    return events.StreamOpened(
        resume_token=message.resume_token,
        resumed=message.resumed,
        epoch=message.epoch,
        query_ids=tuple(message.query_ids),
        policy=policy_from_message(message.policy),
        gap=gap,
    )


def event_from_message(message: pb.WatchResponse) -> events.StreamEvent | None:
    """What the server says on a stream; None for a kind newer than this client."""
    match message.WhichOneof("message"):
        case "result":
            return result_from_message(message.result)
        case "ack":
            ack = message.ack
            return events.QueriesAck(ack.epoch, ack.change_id, tuple(ack.query_ids))
        case "stats":
            return stats_of_stream(message.stats)
        case "error":
            return error_from_message(message.error)
        case "opened":
            return opened_from_message(message.opened)
        case "policy_ack":
            policy = policy_from_message(message.policy_ack.policy)
            return events.PolicyAck(policy, message.policy_ack.change_id)
        case "keyframe":
            keyframe = message.keyframe
            reason = _value_name(pb.KeyframeReason, keyframe.reason) or str(keyframe.reason)
            return events.KeyframeAnswer(result_from_message(keyframe.result), reason)
        case "drain":
            return events.Drain(message.drain.reason, message.drain.grace_s)
        case _:
            return None


def stats_of_stream(message: pb.StreamStats) -> events.StreamStats:
    """A stream's books and activity."""
    activity = events.StreamActivity(**_scalars(message.activity))
    return events.StreamStats(**{**_scalars(message), "activity": activity})


def error_from_message(message: pb.StreamError) -> events.StreamError:
    """An error about one item of a stream."""
    return events.StreamError(
        code=error_code_name(message.code),
        message=message.message,
        sequence=message.sequence if message.HasField("sequence") else None,
        change_id=message.change_id if message.HasField("change_id") else None,
        request_id=message.request_id,
        retry_after_ms=message.retry_after_ms if message.HasField("retry_after_ms") else None,
    )


def error_code_name(code: int) -> str:
    """The code without its prefix; a code newer than this client keeps its number."""
    return _value_name(pb.ErrorCode, code) or f"CODE_{code}"


def capabilities_from_message(message: pb.Capabilities) -> types.Capabilities:
    """What the service can do; tasks newer than this client are left out."""
    names = {f"TASK_KIND_{kind.value}": kind for kind in types.TaskKind}
    known = pb.TaskKind.DESCRIPTOR.values_by_number
    tasks = [names.get(known[task].name) for task in message.tasks if task in known]
    codecs = {
        pb.VideoCodec.Value(f"VIDEO_CODEC_{codec.value}"): codec for codec in types.VideoCodec
    }
    return types.Capabilities(
        **{
            **_scalars(message),
            "tasks": tuple(task for task in tasks if task is not None),
            "image_formats": tuple(message.image_formats),
            "video_codecs": tuple(codecs[n] for n in message.video_codecs if n in codecs),
        }
    )


def stats_from_message(message: pb.ServiceStats) -> types.ServiceStats:
    """What the replica has done."""
    return types.ServiceStats(
        **{
            **_scalars(message),
            "stage_calls": types.StageCalls(**_scalars(message.stage_calls)),
            "cache": types.CacheStats(**_scalars(message.cache)),
            "stages": tuple(types.StageLoad(**_scalars(stage)) for stage in message.stages),
        }
    )


def open_stream_from_message(message: pb.OpenStreamInfo) -> events.OpenStreamInfo:
    """A stream that may be looked at."""
    return events.OpenStreamInfo(
        message.number, message.age_s, tuple(message.query_ids), stats_of_stream(message.stats)
    )


def _scalars(message: Any) -> dict[str, Any]:
    """All single fields of a message by name; our dataclasses use the wire's names."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _value_name(enum: Any, number: int) -> str | None:
    """A value's name without its enum's prefix; None when it is newer than this client."""
    known = enum.DESCRIPTOR.values_by_number.get(number)
    if known is None:
        return None
    zero: str = enum.DESCRIPTOR.values_by_number[0].name
    name: str = known.name
    return name.removeprefix(zero.removesuffix("UNSPECIFIED"))


def _named(enum: Any, number: int, ours: type[E], otherwise: E) -> E:
    """Our member of that name."""
    return ours.__members__.get(_value_name(enum, number) or "", otherwise)


def _source(number: int) -> types.AnswerSource:
    grounded = types.AnswerSource.GROUNDED
    return _named(pb.AnswerSource, number, types.AnswerSource, grounded)


def _box_to_message(box: types.Box) -> pb.Box:
    return _of_numbers(pb.Box, box, "a box", InvalidBoxes)


def _of_numbers(made: type[M], numbers: Iterable[float], what: str, refused: type[AgentError]) -> M:
    """A message whose fields, in their order, are these numbers."""
    names = [field.name for field in made.DESCRIPTOR.fields]
    try:
        # Added to zero, for protobuf would take None for a field that is left out.
        return made(**dict(zip(names, (number + 0.0 for number in numbers), strict=True)))
    except (TypeError, ValueError, OverflowError):
        raise refused(
            f"{what} is {reprlib.repr(numbers)}; give {len(names)} numbers, {', '.join(names)}"
        ) from None


def _box_from_message(box: pb.Box) -> types.Box:
    return box.x1, box.y1, box.x2, box.y2


def _transform_from_message(message: pb.Transform) -> types.Transform:
    kind = _value_name(pb.TransformKind, message.kind) or str(message.kind)
    return types.Transform(**{**_scalars(message), "kind": kind})
