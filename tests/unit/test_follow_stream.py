"""Streams that are followed, over a real channel, with the fake stages in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import grpc
import pytest

from agent.settings import FollowSettings, KeyframeSettings, ServiceSettings
from groundstream import aio
from groundstream.events import (
    KeyframeAnswer,
    PolicyAck,
    QueriesAck,
    StreamError,
)
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import (
    AnswerMode,
    AnswerSource,
    AnswerStatus,
    DropPolicy,
    FramePriority,
    FrameResult,
    OutgoingFrame,
    Query,
    StreamPolicy,
)
from tests.fakes import SLOW_S
from tests.in_process import (
    FOLLOW,
    SETTINGS,
    Service,
    answer_of,
    conversation,
    running_service,
    still,
)
from tests.pictures import encoded_image


async def test_frames_are_answered_at_once_and_grounded_behind(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "slow dog", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        first = await talk.next()
        assert isinstance(first, FrameResult)
        assert first["slow dog"].status is AnswerStatus.PENDING
        assert first["slow dog"].source is AnswerSource.TRACKED
        talk.send_frame(still(1))
        second = await talk.next()
        assert isinstance(second, FrameResult)  # Though frame 0 is still being grounded.
        keyframe = await answer_of(talk, KeyframeAnswer)
        assert isinstance(keyframe, KeyframeAnswer)
        assert (keyframe.result.sequence, keyframe.reason) == (0, "FIRST")
        grounded = keyframe.result["slow dog"].detections[0]
        assert grounded.source is AnswerSource.GROUNDED
        assert grounded.box == grounded.proposal_box == (0.0, 0.0, 48.0, 32.0)
        assert grounded.transforms == ()
        talk.send_frame(still(2))
        third = await talk.next()
        assert isinstance(third, FrameResult)
        answer = third["slow dog"]
        assert (answer.status, answer.source) == (AnswerStatus.OK, AnswerSource.TRACKED)
        assert answer.evidence_sequence == 0
        assert answer.evidence_age_ms >= 1e3 * SLOW_S
        followed = answer.detections[0]
        assert followed.track_id == grounded.track_id == 1
        assert followed.label == "slow dog"
        assert followed.box == pytest.approx(grounded.box, abs=1.5)
        check_transforms(followed)
        talk.end()
        await talk.rest()
    books = talk.stats[-1]
    assert (books.received, books.answered, books.tracked_only) == (3, 1, 2)
    assert books.activity.num_keyframes == 1
    assert service.stages.calls.encode_primary == 1


def check_transforms(detection: object) -> None:
    """The transforms lead from the proposal to the box."""
    x1, y1, x2, y2 = detection.proposal_box
    for step in detection.transforms:
        x1, x2 = (step.scale_x * x + step.offset_x for x in (x1, x2))
        y1, y2 = (step.scale_y * y + step.offset_y for y in (y1, y2))
    assert (x1, y1, x2, y2) == pytest.approx(detection.box, abs=1e-3)


async def test_nothing_moves_and_the_model_sees_one_frame(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "dog", policy=FOLLOW) as talk:
        for number in range(60):
            talk.send_frame(still(number))
            assert isinstance(await answer_of(talk, FrameResult), FrameResult)
        talk.end()
        await talk.rest()
    assert talk.stats[-1].activity.num_answers == 1
    assert (service.stages.calls.answer, service.stages.calls.encode_primary) == (1, 1)


async def test_an_answer_older_than_asked_is_expired(client: aio.Client) -> None:
    policy = dataclasses.replace(FOLLOW, max_age_ms=100.0)
    async with conversation(client, "slow dog", policy=policy) as talk:
        talk.send_frame(still(0))
        keyframe = await answer_of(talk, KeyframeAnswer)
        assert isinstance(keyframe, KeyframeAnswer)
        assert keyframe.result["slow dog"].status is AnswerStatus.EXPIRED
        talk.send_frame(still(1))
        result = await answer_of(talk, FrameResult)
        assert isinstance(result, FrameResult)
        assert result["slow dog"].status is AnswerStatus.EXPIRED
        assert result["slow dog"].detections == ()
        assert result["slow dog"].evidence_age_ms > 100.0
        talk.end()
        await talk.rest()
    assert talk.stats[-1].expired == 2


async def test_a_query_changed_meanwhile_gets_no_older_answer(client: aio.Client) -> None:
    async with conversation(client, Query("slow dog", id="q"), policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        assert isinstance(await talk.next(), FrameResult)
        await talk.stream.put_query(Query("absent cat", id="q"))
        assert await talk.next() == QueriesAck(2, 2, ("q",))
        await asyncio.sleep(1.2 * SLOW_S)
        talk.send_frame(still(1))
        talk.end()
        events = await talk.rest()
    results = [event for event in events if isinstance(event, FrameResult)]
    keyframes = [event.result for event in events if isinstance(event, KeyframeAnswer)]
    assert [result["q"].status for result in results] == [AnswerStatus.PENDING]
    assert [(k.sequence, k["q"].epoch, k["q"].status) for k in keyframes] == [
        (1, 2, AnswerStatus.NOT_PRESENT)
    ]
    assert (talk.stats[-1].superseded, talk.stats[-1].answered) == (1, 1)


async def test_a_frame_that_matters_is_grounded_though_another_is(
    client: aio.Client,
) -> None:
    async with conversation(client, "slow dog", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        await asyncio.sleep(0.1)
        for number in (1, 2):
            talk.send_frame(still(number, priority=FramePriority.HIGH))
            await asyncio.sleep(0.05)
        talk.end()
        events = await talk.rest()
    keyframes = [event for event in events if isinstance(event, KeyframeAnswer)]
    assert [(k.result.sequence, k.reason) for k in keyframes] == [(0, "FIRST"), (2, "REQUESTED")]
    assert (talk.stats[-1].answered, talk.stats[-1].tracked_only) == (2, 1)


async def test_a_frame_that_matters_takes_the_place_of_one_that_waits_for_its_turn(
    service: Service, client: aio.Client
) -> None:
    turns = service.agent.scheduler.keyframes
    async with conversation(client, "slow dog", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        await asyncio.sleep(0.1)
        talk.send_frame(still(1, priority=FramePriority.HIGH))
        # Another stream has the next turn, so that frame 1 waits though frame 0 is answered.
        await turns.take("another stream", rank=-1)
        talk.send_frame(still(2, priority=FramePriority.HIGH))
        while not isinstance(event := await talk.next(), FrameResult) or event.sequence < 2:
            pass
        turns.give_back("another stream")
        talk.end()
        rest = await talk.rest()
    assert not [event for event in rest if isinstance(event, StreamError)]
    keyframes = [event for event in rest if isinstance(event, KeyframeAnswer)]
    assert [(k.result.sequence, k.reason) for k in keyframes] == [(2, "REQUESTED")]
    assert (talk.stats[-1].answered, talk.stats[-1].tracked_only) == (2, 1)


async def test_a_change_to_ground_mode_waits_for_the_key_frame_under_way() -> None:
    sharing = dataclasses.replace(SETTINGS.stream.sharing, keyframes_at_once=2)
    stream = dataclasses.replace(SETTINGS.stream, sharing=sharing)
    settings = dataclasses.replace(SETTINGS, stream=stream)
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
        conversation(client, "slow dog", policy=FOLLOW) as talk,
    ):
        talk.send_frame(still(0))
        assert isinstance(await talk.next(), FrameResult)
        await talk.stream.set_policy(StreamPolicy(mode=AnswerMode.GROUND))
        talk.send_frame(still(1))
        talk.end()
        answered = [
            event.result.sequence if isinstance(event, KeyframeAnswer) else event.sequence
            for event in await talk.rest()
            if isinstance(event, KeyframeAnswer | FrameResult)
        ]
    assert answered == [0, 1]
    assert talk.stats[-1].answered == 2


async def test_a_grounding_that_fails_is_reported_and_the_frames_go_on(
    client: aio.Client,
) -> None:
    async with conversation(client, "crash", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        error = await answer_of(talk, StreamError)
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INTERNAL", 0)
        talk.send_frame(still(1))
        assert isinstance(await talk.next(), FrameResult)
        talk.end()
        await talk.rest()
    assert (talk.stats[-1].failed, talk.stats[-1].tracked_only) == (1, 1)


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, math.nan, 1.0), (9.0, 9.0, 1.0, 1.0), (500.0, 500.0, 600.0, 600.0)]
)
async def test_the_boxes_of_every_frame_are_checked(
    client: aio.Client, box: tuple[float, float, float, float]
) -> None:
    async with conversation(client, "dog", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        await answer_of(talk, KeyframeAnswer)
        for number in range(1, 4):  # Frames that would only be tracked.
            talk.send_frame(still(number, boxes=(box,)))
            error = await talk.next()
            assert isinstance(error, StreamError)
            assert (error.code, error.sequence) == ("INVALID_BOXES", number)
        talk.send_frame(still(4, boxes=((-5.0, 0.0, 20.0, 20.0),)))
        assert isinstance(await talk.next(), FrameResult)
        talk.end()
        await talk.rest()
    books = talk.stats[-1]
    assert (books.received, books.rejected, books.failed) == (5, 3, 0)


async def test_a_lossless_stream_loses_nothing(client: aio.Client) -> None:
    policy = StreamPolicy(drop=DropPolicy.LOSSLESS, window=2)
    async with conversation(client, "dog", policy=policy) as talk:
        for number in range(30):
            talk.send_frame(still(number))
        talk.end()
        events = await talk.rest()
    sequences = [event.sequence for event in events if isinstance(event, FrameResult)]
    assert sequences == list(range(30))
    assert not [event for event in events if isinstance(event, StreamError)]


async def test_too_many_frames_ahead_are_refused_by_name(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call = pb_grpc.VisionAgentStub(channel).Watch()
        policy = pb.StreamPolicy(drop=pb.DROP_POLICY_LOSSLESS, mode=pb.ANSWER_MODE_GROUND, window=1)
        await call.write(pb.WatchRequest(open=pb.OpenStream(policy=policy)))
        await call.write(
            pb.WatchRequest(set_queries=pb.SetQueries(queries=[pb.Query(text="slow")]))
        )
        for number in range(4):
            frame = pb.Frame(sequence=number, encoded_image=encoded_image(number))
            await call.write(pb.WatchRequest(frame=frame))
            await asyncio.sleep(0.02)
        await call.write(pb.WatchRequest(end=pb.End()))
        messages = [message async for message in call]
    errors = [message.error for message in messages if message.HasField("error")]
    assert [(e.code, e.sequence) for e in errors] == [
        (pb.ERROR_CODE_OVERLOADED, 2),
        (pb.ERROR_CODE_OVERLOADED, 3),
    ]
    assert messages[-1].stats.rejected == 2


async def test_a_reader_that_stops_is_sent_no_more_than_its_window(
    client: aio.Client, service: Service
) -> None:
    policy = StreamPolicy(ack_window=2)
    async with conversation(client, "dog", policy=policy) as talk:
        talk.send_frame(still(0))
        first = await answer_of(talk, FrameResult)
        assert isinstance(first, FrameResult)
        # Not asking for the next event is what acknowledges nothing.
        for number in range(1, 40):
            talk.send_frame(still(number))
            await asyncio.sleep(0.005)
        while service.metrics.totals().frames_received < 40:
            await asyncio.sleep(0.005)
        talk.end()
        events = await talk.rest()
    results = [event for event in events if isinstance(event, FrameResult)]
    assert len(results) <= 5
    assert talk.stats[-1].superseded >= 30


async def test_a_paused_stream_keeps_its_tracks(client: aio.Client) -> None:
    async with conversation(client, "dog", policy=FOLLOW) as talk:
        talk.send_frame(still(0))
        await answer_of(talk, KeyframeAnswer)
        await talk.stream.pause()
        talk.send_frame(still(1))
        await asyncio.sleep(0.1)
        await talk.stream.resume()
        await asyncio.sleep(0.05)
        talk.send_frame(still(2))
        result = await answer_of(talk, FrameResult)
        assert isinstance(result, FrameResult)
        assert result.sequence == 2
        assert result["dog"].detections[0].track_id == 1
        talk.end()
        await talk.rest()
    assert talk.stats[-1].superseded == 1


async def test_ids_start_anew_in_every_session(client: aio.Client) -> None:
    ids = []
    async with (
        conversation(client, "dog", policy=FOLLOW) as one,
        conversation(client, "cat", policy=FOLLOW) as two,
    ):
        for talk in (one, two):
            talk.send_frame(still(0))
            keyframe = await answer_of(talk, KeyframeAnswer)
            assert isinstance(keyframe, KeyframeAnswer)
            ids.append([d.track_id for d in keyframe.result.results[0].detections])
    assert ids == [[1], [1]]


async def test_a_policy_can_change_and_a_bad_one_changes_nothing(
    client: aio.Client,
) -> None:
    async with conversation(client, "dog", policy=FOLLOW) as talk:
        change = await talk.stream.set_policy(StreamPolicy(max_age_ms=50.0, ack_window=0))
        ack = await talk.next()
        assert isinstance(ack, PolicyAck)
        assert (ack.change_id, ack.policy.max_age_ms) == (change, 50.0)
        change = await talk.stream.set_policy(StreamPolicy(window=10_000))
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.change_id) == ("INVALID_ARGUMENT", change)


async def test_features_of_a_frame_that_barely_changed_are_reused_if_allowed() -> None:
    keyframe = KeyframeSettings(refresh_s=0.0, least_interval_s=0.0, busy_share=1.0)
    stream = dataclasses.replace(SETTINGS.stream, follow=FollowSettings(keyframe=keyframe))
    settings: ServiceSettings = dataclasses.replace(SETTINGS, stream=stream)
    # The same picture, encoded otherwise: other bytes, another cache key.
    pictures = [encoded_image(1, kind=kind) for kind in ("JPEG", "PNG")] + [encoded_image(2)]
    for allowed, encoded in ((True, 2), (False, 3)):
        policy = dataclasses.replace(FOLLOW, reuse_features=allowed)
        async with (
            running_service(settings=settings) as service,
            aio.Client(service.target) as client,
            conversation(client, "dog", policy=policy) as talk,
        ):
            reused = []
            for number, picture in enumerate(pictures):
                talk.send_frame(OutgoingFrame(picture, number))
                answer = await answer_of(talk, KeyframeAnswer)
                assert isinstance(answer, KeyframeAnswer)
                reused.append(answer.result.reused)
            assert service.stages.calls.encode_primary == encoded
            if allowed:
                assert reused[1] is not None
                assert reused[1].sequence == 0
                assert 0.0 < reused[1].difference < 0.05
            else:
                assert reused[1] is None
            assert (reused[0], reused[2]) == (None, None)
