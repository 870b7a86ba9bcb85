"""The wire of streams: control messages in, results and events out; pure functions.

What single calls share with streams is in `deployments/wire/messages.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from agent.settings import StreamSettings
from agent.streaming.answers import FollowedBox, QueryAnswer
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.policy import AnswerMode, DropPolicy, StreamPolicy
from agent.streaming.session import Books, Gap, Seen, Session
from deployments.observability.metrics import Activity
from deployments.wire.messages import STATUS, box_to_message, known_value, members_by_number
from deployments.wire.status import Failure
from groundstream.errors import InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb

_DROP = members_by_number(pb.DropPolicy, DropPolicy, DropPolicy.LATEST_WINS)
_MODE = members_by_number(pb.AnswerMode, AnswerMode, AnswerMode.FOLLOW)
_MAX_COUNT = 2**48
"""More frames than one stream could ever have."""


def policy_from_message(message: pb.StreamPolicy, settings: StreamSettings) -> StreamPolicy:
    """How a client wants its stream to be answered, defaults filled in.

    Raises:
        InvalidRequest: a value without meaning, or a window beyond the limit.
    """
    if message.window > settings.max_window:
        raise InvalidRequest(f"window is {message.window}, the limit is {settings.max_window}")
    if not math.isfinite(message.max_age_ms) or message.max_age_ms < 0:
        raise InvalidRequest(f"max_age_ms is {message.max_age_ms}; it must be zero or positive")
    return StreamPolicy(
        drop=known_value(_DROP, message.drop, "drop policy"),
        mode=known_value(_MODE, message.mode, "answer mode"),
        window=message.window or settings.window,
        max_age_s=message.max_age_ms / 1e3 or None,
        ack_window=message.ack_window or None,
        reuse_features=message.reuse_features,
    )


def seen_from_message(message: pb.OpenStream) -> Seen:
    """What a client that comes back has seen.

    Raises:
        InvalidRequest: more than can be, or a result of a frame that was not sent.
    """
    if max(message.num_sent, message.num_results) > _MAX_COUNT:
        raise InvalidRequest("num_sent and num_results say more than any stream can have had")
    last_result, last_sent = None, None
    if message.HasField("last_result_sequence"):
        last_result = message.last_result_sequence
    if message.HasField("last_sent_sequence"):
        last_sent = message.last_sent_sequence
    if last_result is not None and (last_sent is None or last_result > last_sent):
        raise InvalidRequest("last_result_sequence is beyond last_sent_sequence")
    return Seen(message.num_sent, message.num_results, last_result, last_sent)


def request_kind(message: pb.WatchRequest) -> str | None:
    """Which of its messages a stream request holds; None when nothing we know."""
    kind: str | None = message.WhichOneof("message")
    return kind


def is_report(message: Any) -> bool:
    """Whether a message only repeats how a stream stands, as it is told whatever happens."""
    return isinstance(message, pb.WatchResponse) and message.WhichOneof("message") == "stats"


def followed_to_message(answer: QueryAnswer, *, answered_ns: int) -> pb.QueryResult:
    """One standing query's answer on a stream."""
    evidence = answer.evidence
    return pb.QueryResult(
        query_id=answer.query.id,
        epoch=answer.query.epoch,
        status=STATUS[answer.status],
        text=answer.text,
        reply=answer.reply,
        thought=answer.thought,
        count=answer.count,
        detections=[_followed_box(box, answered_ns) for box in answer.boxes],
        num_unknown_regions=answer.num_unknown_regions,
        num_prefix_tokens_reused=answer.num_prefix_tokens_reused,
        num_passes=answer.num_passes,
        source=f"ANSWER_SOURCE_{answer.source.value}",
        evidence_sequence=0 if evidence is None else evidence.sequence,
        evidence_age_ms=0.0 if evidence is None else 1e3 * evidence.age_s(answered_ns),
    )


def _followed_box(box: FollowedBox, answered_ns: int) -> pb.Detection:
    claim = box.claim
    return pb.Detection(
        box=box_to_message(box.box),
        label=claim.label,
        confidence=claim.confidence,
        region_index=claim.region,
        objectness=claim.objectness,
        track_id=box.track_id,
        source=f"ANSWER_SOURCE_{box.source.value}",
        evidence_sequence=claim.evidence.sequence,
        evidence_age_ms=1e3 * claim.evidence.age_s(answered_ns),
        proposal_box=box_to_message(claim.proposal),
        transforms=[
            pb.Transform(
                kind=pb.TRANSFORM_KIND_MOTION,
                scale_x=scale_x,
                scale_y=scale_y,
                offset_x=offset_x,
                offset_y=offset_y,
            )
            for scale_x, scale_y, offset_x, offset_y in box.step
        ],
    )


def policy_to_message(policy: StreamPolicy) -> pb.StreamPolicy:
    """How a stream is answered."""
    return pb.StreamPolicy(
        drop=f"DROP_POLICY_{policy.drop.name}",
        mode=f"ANSWER_MODE_{policy.mode.name}",
        window=policy.window,
        max_age_ms=round(1e3 * (policy.max_age_s or 0.0), 6),
        ack_window=policy.ack_window or 0,
        reuse_features=policy.reuse_features,
    )


def result_response(result: pb.FrameResult) -> pb.WatchResponse:
    """A result on a stream."""
    return pb.WatchResponse(result=result)


def ack_response(epoch: int, change_id: int, query_ids: Sequence[str]) -> pb.WatchResponse:
    """The standing queries have changed."""
    return pb.WatchResponse(
        ack=pb.QueriesAck(epoch=epoch, change_id=change_id, query_ids=query_ids)
    )


def failure_response(
    failure: Failure, *, sequence: int | None = None, change_id: int | None = None
) -> pb.WatchResponse:
    """An error about one item of a stream."""
    error = pb.StreamError(
        code=f"ERROR_CODE_{failure.code}",
        message=failure.message,
        sequence=sequence,
        change_id=change_id,
        request_id=failure.request_id,
        retry_after_ms=None if failure.retry_after_s is None else 1e3 * failure.retry_after_s,
    )
    return pb.WatchResponse(error=error)


def keyframe_response(result: pb.FrameResult, reason: KeyframeReason) -> pb.WatchResponse:
    """What the language model said about a key frame."""
    kind = f"KEYFRAME_REASON_{reason.value}"
    return pb.WatchResponse(keyframe=pb.KeyframeAnswer(result=result, reason=kind))


def opened_response(token: str, session: Session[Any], *, resumed: bool, gap: Gap | None) -> Any:
    """The stream is open, for the first time or again."""
    return pb.WatchResponse(
        opened=pb.StreamOpened(
            resume_token=token,
            resumed=resumed,
            epoch=session.epoch,
            query_ids=session.query_ids,
            policy=policy_to_message(session.policy),
            gap=None if gap is None else pb.Gap(**dataclasses.asdict(gap)),
        )
    )


def policy_response(policy: StreamPolicy, change_id: int) -> pb.WatchResponse:
    """The stream's policy has changed."""
    ack = pb.PolicyAck(policy=policy_to_message(policy), change_id=change_id)
    return pb.WatchResponse(policy_ack=ack)


def activity_to_message(
    activity: Activity, session: Session[Any], *, num_tracks: int
) -> pb.StreamActivity:
    """What a stream did beside its books."""
    return pb.StreamActivity(
        **dataclasses.asdict(activity),
        num_unacknowledged=session.num_unacknowledged,
        num_tracks=num_tracks,
        paused=session.paused,
    )


def books_response(
    books: Books, activity: pb.StreamActivity, *, ended: bool = False
) -> pb.WatchResponse:
    """A stream's books and what else it did; `ended`: nothing follows."""
    stats = pb.StreamStats(**dataclasses.asdict(books), activity=activity, ended=ended)
    return pb.WatchResponse(stats=stats)


def drain_response(reason: str, grace_s: float) -> pb.WatchResponse:
    """This stream will end soon."""
    return pb.WatchResponse(drain=pb.Drain(reason=reason, grace_s=grace_s))
