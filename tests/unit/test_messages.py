"""The wire's door: what goes in comes out, and what has no meaning is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detections import Detections, Proposals
from agent.features import StageTimings
from agent.frame import FrameLimits
from agent.model_directory import ModelDirectory
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import Exchange, Task, TaskKind
from agent.region_cache import CacheStats
from agent.settings import ServiceSettings, StreamSettings
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.policy import AnswerMode, DropPolicy, Priority, StreamPolicy
from agent.streaming.session import Books, StandingQuery
from deployments.front_end import ingress
from deployments.observability.metrics import CallCounts, ServiceMetrics
from deployments.wire import messages, status, stream_messages
from groundstream import conversions, events, types
from groundstream.errors import (
    FrameTooLarge,
    InvalidFrame,
    InvalidQuery,
    InvalidRequest,
    errors_by_code,
)
from groundstream.protos import vision_agent_pb2 as pb
from tests.pictures import encoded_image

LIMITS = FrameLimits()
SOME_POLICY = StreamPolicy(
    DropPolicy.LOSSLESS,
    AnswerMode.GROUND,
    window=3,
    max_age_s=0.25,
    ack_window=2,
    reuse_features=True,
)


def over_the_wire(message: pb.GroundResponse) -> pb.GroundResponse:
    """The message as the other side gets it."""
    return type(message).FromString(message.SerializeToString())


# ---- client to service ----


@given(
    text=st.text(min_size=1, max_size=50).filter(lambda text: "<" not in text and text.strip()),
    kind=st.sampled_from([types.TaskKind.DETECT, types.TaskKind.COUNT]),
    max_new_tokens=st.integers(0, 256),
)
def test_a_query_arrives_as_it_was_asked(
    text: str, kind: types.TaskKind, max_new_tokens: int
) -> None:
    query = types.Query(text, id="q", task=kind, max_new_tokens=max_new_tokens)
    sent = over_the_wire(conversions.query_to_message(query))
    task = messages.task_from_message(sent, max_new_tokens=256)
    assert task == Task(
        TaskKind[kind.name], " ".join(text.split()), max_new_tokens=max_new_tokens or 256
    )
    assert sent.id == "q"


def test_a_region_is_named_by_its_number_zero_included() -> None:
    query = types.Query("", id="r", task=types.TaskKind.REGION_CAPTION, region_index=0)
    sent = over_the_wire(conversions.query_to_message(query))
    assert messages.task_from_message(sent, max_new_tokens=9).region == 0


EARLIER = Exchange("Where?", "<ground>dog</ground><objects><region1></objects>")
EVERY_TASK = {
    "DETECT": Task.detect("dog"),
    "REFER": Task.refer("dog"),
    "COUNT": Task.count("dog"),
    "REGION_CAPTION": Task.describe_region(1),
    "DETAILED_REGION_CAPTION": Task.describe_region(1, detailed=True),
    "REGION_OCR": Task.read_region(1),
    "GROUNDED_CAPTION": Task.describe_image(),
    "VISUAL_PROMPT": Task.find_similar(1),
    "REASON": Task.reason("Is {} a dog?", regions=(2,)),
    "CHAT": Task.chat("Is {} a dog?", regions=(2,), history=(EARLIER,)),
}


@pytest.mark.parametrize("kind", types.TaskKind, ids=lambda kind: kind.value)
def test_every_task_arrives(kind: types.TaskKind) -> None:
    expected = EVERY_TASK[kind.value]
    query = types.Query(
        expected.query,
        id="q",
        task=kind,
        region_index=expected.region,
        mentioned_regions=expected.regions,
        history=tuple(types.Exchange(t.question, t.answer) for t in expected.history),
        constrained=True,
    )
    sent = over_the_wire(conversions.query_to_message(query))
    task = messages.task_from_message(sent, max_new_tokens=256)
    assert task == dataclasses.replace(expected, constrained=True)


def test_the_parsed_answer_arrives() -> None:
    answer = Answer(Task.count("dog"), "text", reply="There are 2", thought="hm", count=2,
                    num_proposals=130, num_drafted_tokens=5)  # fmt: skip
    sent = messages.answer_to_message(StandingQuery("q", answer.task, 1), answer, Proposals())
    result = conversions.query_result_from_message(over_the_wire(sent))
    assert (result.reply, result.thought, result.count) == ("There are 2", "hm", 2)
    assert (result.num_regions_seen, result.num_drafted_tokens) == (130, 5)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (pb.Query(text="x", task=99), InvalidRequest, "task 99 is unknown"),
        (pb.Query(text="x", task=-1), InvalidRequest, "task -1 is unknown"),
        (pb.Query(text=""), InvalidQuery, "empty"),
        (pb.Query(text=" \n "), InvalidQuery, "empty"),
        (pb.Query(text="x" * 10_000), InvalidQuery, "10000 characters"),
        (pb.Query(text="<region3>"), InvalidQuery, "control token"),
        (pb.Query(task=pb.TASK_KIND_REGION_CAPTION), InvalidQuery, "needs region_index"),
        (pb.Query(text="x", max_new_tokens=10_000), InvalidQuery, "limit is 256"),
    ],
)
def test_a_query_without_meaning_is_refused(
    query: pb.Query, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        messages.task_from_message(query, max_new_tokens=256)


def test_an_unset_task_means_detect() -> None:
    assert messages.task_from_message(pb.Query(text="dog"), max_new_tokens=8).kind is (
        TaskKind.DETECT
    )


def test_errors_say_which_query_and_unnamed_queries_are_numbered() -> None:
    queries = [pb.Query(text="dog"), pb.Query(text="")]
    with pytest.raises(InvalidQuery, match="query '1': the query is empty"):
        messages.tasks_from_messages(queries, max_new_tokens=8)
    named = messages.tasks_from_messages(
        [pb.Query(text="a"), pb.Query(id="b", text="b")], max_new_tokens=8
    )
    assert [name for name, _ in named] == ["0", "b"]


@given(
    sequence=st.integers(0, 2**64 - 1),
    capture_time_ns=st.integers(-(2**63), 2**63 - 1),
)
def test_sequence_and_capture_time_arrive_to_the_bit(sequence: int, capture_time_ns: int) -> None:
    outgoing = types.OutgoingFrame(encoded_image(), sequence, capture_time_ns)
    sent = over_the_wire(conversions.frame_to_message(outgoing))
    received = messages.frame_from_message(sent, limits=LIMITS, received_time_ns=5)
    assert received.frame.index == sequence
    assert received.frame.capture_time_ns == capture_time_ns
    assert received.received_time_ns == 5
    assert (received.frame.width, received.frame.height) == (96, 64)
    assert received.boxes is None


def test_boxes_given_and_none_given_are_different() -> None:
    for boxes in ((), ((1.0, 2.0, 3.0, 4.5),)):
        outgoing = types.OutgoingFrame(encoded_image(), boxes=boxes)
        sent = over_the_wire(conversions.frame_to_message(outgoing))
        received = messages.frame_from_message(sent, limits=LIMITS, received_time_ns=0)
        assert received.boxes is not None
        assert received.boxes.tolist() == [list(box) for box in boxes]


@pytest.mark.parametrize(
    ("encoded", "limits", "error"),
    [
        (b"", LIMITS, InvalidFrame),
        (b"not an image", LIMITS, InvalidFrame),
        (encoded_image(), FrameLimits(max_bytes=10), FrameTooLarge),
        (encoded_image(), FrameLimits(max_pixels=10), FrameTooLarge),
    ],
)
def test_a_bad_frame_is_refused(
    encoded: bytes, limits: FrameLimits, error: type[Exception]
) -> None:
    with pytest.raises(error):
        messages.frame_from_message(
            pb.Frame(encoded_image=encoded), limits=limits, received_time_ns=0
        )


def test_an_empty_stream_message_is_of_no_kind() -> None:
    assert stream_messages.request_kind(pb.WatchRequest()) is None
    assert stream_messages.request_kind(pb.WatchRequest(end=pb.End())) == "end"


# ---- service to client ----


def some_result() -> pb.FrameResult:
    """A result with every field set."""
    proposals = Proposals(
        np.array([[0, 1, 2, 3], [4, 5, 6.5, 7]], dtype=np.float32),
        np.array([0.5, 0.25], dtype=np.float32),
    )
    detections = Detections(
        xyxy=proposals.xyxy[[1]],
        confidence=np.array([0.75], dtype=np.float32),
        label=("dog",),
        region=np.array([1]),
    )
    answer = Answer(
        task=Task.detect("dog"),
        text="<ground>dog</ground>",
        detections=detections,
        status=AnswerStatus.OK,
        num_unknown_regions=2,
        num_prefix_tokens_reused=30,
        num_passes=4,
    )
    timings = StageTimings(
        cache_s=0.002, propose_s=0.003, primary_s=0.004, auxiliary_s=0.005,
        language_s=0.006, total_s=0.007,
    )  # fmt: skip
    received = messages.frame_from_message(
        pb.Frame(encoded_image=encoded_image(), sequence=8, capture_time_ns=-3),
        limits=LIMITS,
        received_time_ns=11,
    )
    return messages.result_to_message(
        received,
        [messages.answer_to_message(StandingQuery("q", answer.task, epoch=5), answer, proposals)],
        Grounding((answer,), proposals, cache_hit=True, timings=timings),
        epoch=6,
        answered_time_ns=12,
        queue_s=0.008,
    )


def test_a_result_arrives_as_it_was_found() -> None:
    result = conversions.result_from_message(over_the_wire(some_result()))
    assert result == types.FrameResult(
        sequence=8,
        epoch=6,
        capture_time_ns=-3,
        received_time_ns=11,
        answered_time_ns=12,
        width=96,
        height=64,
        results=(
            types.QueryResult(
                query_id="q",
                epoch=5,
                status=types.AnswerStatus.OK,
                text="<ground>dog</ground>",
                detections=(
                    types.Detection(
                        (4.0, 5.0, 6.5, 7.0),
                        "dog",
                        0.75,
                        1,
                        0.25,
                        proposal_box=(4.0, 5.0, 6.5, 7.0),
                    ),
                ),
                num_unknown_regions=2,
                num_prefix_tokens_reused=30,
                num_passes=4,
            ),
        ),
        cache_hit=True,
        num_proposals=2,
        timings=types.StageTimings(8.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
    )
    assert result["q"].detections[0].label == "dog"
    with pytest.raises(KeyError):
        result["other"]


@pytest.mark.parametrize("answer_status", list(AnswerStatus))
def test_every_status_has_its_counterpart(answer_status: AnswerStatus) -> None:
    answer = Answer(Task.detect("x"), "", status=answer_status)
    query = StandingQuery("q", answer.task, epoch=0)
    message = messages.answer_to_message(query, answer, Proposals())
    assert conversions.query_result_from_message(message).status.name == answer_status.name


def test_stream_events_arrive() -> None:
    books = Books(received=6, answered=1, superseded=2, rejected=1, failed=1, in_flight=1)
    failure = status.Failure("INVALID_FRAME", None, "bad", "id")  # type: ignore[arg-type]
    arrived = [
        conversions.event_from_message(over_the_wire(message))
        for message in (
            stream_messages.result_response(some_result()),
            stream_messages.ack_response(3, 9, ("a", "b")),
            stream_messages.books_response(books, pb.StreamActivity(num_keyframes=3, paused=True)),
            stream_messages.books_response(Books(), pb.StreamActivity(), ended=True),
            stream_messages.failure_response(failure, sequence=0),
            stream_messages.failure_response(failure, change_id=4),
            stream_messages.drain_response("bye", 2.5),
            stream_messages.policy_response(SOME_POLICY, 5),
            stream_messages.keyframe_response(some_result(), KeyframeReason.REFRESH),
            pb.WatchResponse(),
        )
    ]
    assert isinstance(arrived[0], types.FrameResult)
    assert arrived[1:] == [
        events.QueriesAck(3, 9, ("a", "b")),
        events.StreamStats(
            6, 1, 2, 1, 1, 1, activity=events.StreamActivity(num_keyframes=3, paused=True)
        ),
        events.StreamStats(ended=True),
        events.StreamError("INVALID_FRAME", "bad", sequence=0, request_id="id"),
        events.StreamError("INVALID_FRAME", "bad", change_id=4, request_id="id"),
        events.Drain("bye", 2.5),
        events.PolicyAck(
            types.StreamPolicy(
                types.DropPolicy.LOSSLESS, types.AnswerMode.GROUND, 3, 250.0, 2, True
            ),
            5,
        ),
        events.KeyframeAnswer(conversions.result_from_message(some_result()), "REFRESH"),
        None,
    ]


@given(
    policy=st.builds(
        types.StreamPolicy,
        drop=st.sampled_from(types.DropPolicy),
        mode=st.sampled_from(types.AnswerMode),
        window=st.integers(0, 64),
        max_age_ms=st.integers(0, 10_000).map(float),
        ack_window=st.integers(0, 100),
        reuse_features=st.booleans(),
    )
)
def test_a_policy_arrives_with_its_defaults_filled_in(policy: types.StreamPolicy) -> None:
    sent = over_the_wire(conversions.policy_to_message(policy))
    understood = stream_messages.policy_from_message(sent, StreamSettings())
    back = over_the_wire(stream_messages.policy_to_message(understood))
    window = policy.window or StreamSettings().window
    assert conversions.policy_from_message(back) == dataclasses.replace(policy, window=window)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (pb.StreamPolicy(drop=9), "drop policy 9 is unknown"),
        (pb.StreamPolicy(mode=9), "answer mode 9 is unknown"),
        (pb.StreamPolicy(window=65), "limit is 64"),
        (pb.StreamPolicy(max_age_ms=-1), "zero or positive"),
        (pb.StreamPolicy(max_age_ms=float("nan")), "zero or positive"),
    ],
)
def test_a_policy_without_meaning_is_refused(message: pb.StreamPolicy, error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        stream_messages.policy_from_message(message, StreamSettings())


def test_priority_and_camera_movement_arrive() -> None:
    motion = (1.0, 0.1, 2.0, -0.1, 1.0, 3.0)
    outgoing = types.OutgoingFrame(
        encoded_image(), priority=types.FramePriority.HIGH, ego_motion=motion
    )
    sent = over_the_wire(conversions.frame_to_message(outgoing))
    received = messages.frame_from_message(sent, limits=LIMITS, received_time_ns=0)
    assert received.priority is Priority.HIGH
    assert received.ego_motion is not None
    assert received.ego_motion.ravel().tolist() == list(motion)


@pytest.mark.parametrize(
    "message",
    [
        pb.Frame(encoded_image=encoded_image(), priority=9),
        pb.Frame(encoded_image=encoded_image(), ego_motion=pb.EgoMotion(xx=float("inf"))),
    ],
)
def test_a_frame_without_meaning_is_refused(message: pb.Frame) -> None:
    with pytest.raises(InvalidRequest):
        messages.frame_from_message(message, limits=LIMITS, received_time_ns=0)


def test_capabilities_and_stats_arrive(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"groundstream": {"tasks": ["COUNT", "DETECT"]}}')
    model = ModelDirectory(tmp_path, name="mine", digest="d")
    settings = ServiceSettings()
    sent = messages.capabilities_to_message(settings, model, service_version="1.2")
    capabilities = conversions.capabilities_from_message(over_the_wire(sent))
    assert capabilities.model_name == "mine"
    assert [kind.name for kind in capabilities.tasks] == ["DETECT", "COUNT"]
    assert capabilities.max_queries == settings.stream.max_queries
    assert "JPEG" in capabilities.image_formats
    assert capabilities.video_codecs == tuple(types.VideoCodec)
    assert capabilities.max_video_pixels == settings.stream.video.max_pixels

    totals = ServiceMetrics(clock=lambda: 1.0).totals()
    stats = conversions.stats_from_message(
        over_the_wire(messages.stats_to_message(totals, CallCounts(answer=3), CacheStats(hits=2)))
    )
    assert stats.stage_calls.answer == 3
    assert stats.cache.hits == 2


def test_a_code_newer_than_the_client_keeps_its_number() -> None:
    error = conversions.error_from_message(pb.StreamError(code=77, message="new"))
    assert error.code == "CODE_77"


def test_every_error_of_the_table_has_a_code_on_the_wire() -> None:
    for code in errors_by_code():
        assert f"ERROR_CODE_{code}" in pb.ErrorCode.DESCRIPTOR.values_by_name


def test_every_rpc_is_served_and_offered() -> None:
    rpcs = pb.DESCRIPTOR.services_by_name["VisionAgent"].methods_by_name
    offered = {
        "Ground": "ground",
        "GroundAnytime": "ground_anytime",
        "Ask": "ask",
        "Watch": "watch",
        "GetCapabilities": "capabilities",
        "GetStats": "stats",
        "ListStreams": "streams",
        "Observe": "observe",
    }
    assert set(rpcs) == set(offered)
    from groundstream import aio

    for rpc, method in offered.items():
        assert rpc in vars(ingress.VisionAgent)
        assert hasattr(aio.Client, method)


def test_the_dataclasses_follow_the_messages() -> None:
    pairs = [
        (types.FrameResult, pb.FrameResult, {"clocks"}),
        (types.QueryResult, pb.QueryResult, set()),
        (types.Detection, pb.Detection, set()),
        (types.StageTimings, pb.StageTimings, set()),
        (events.StreamStats, pb.StreamStats, set()),
        (events.StreamActivity, pb.StreamActivity, set()),
        (types.StreamPolicy, pb.StreamPolicy, set()),
        (events.StreamOpened, pb.StreamOpened, set()),
        (types.Transform, pb.Transform, set()),
        (types.ReusedFeatures, pb.ReusedFeatures, set()),
        (events.Gap, pb.Gap, set()),
        (events.StreamError, pb.StreamError, set()),
        (types.Capabilities, pb.Capabilities, set()),
        (types.ServiceStats, pb.ServiceStats, set()),
    ]
    for dataclass, message, replaced in pairs:
        ours = {field.name for field in dataclasses.fields(dataclass)}
        assert set(message.DESCRIPTOR.fields_by_name) - ours == replaced
