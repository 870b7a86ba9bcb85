"""Too much to do: who is refused, when and with what words, and who goes first."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from agent.features import Generation
from agent.frame import Frame, read_frame
from agent.prompts import Task
from agent.settings import KeyframeSettings, ServiceSettings, SharingSettings
from agent.urgency import Limits, Urgency
from deployments.observability.metrics import ServiceMetrics
from groundstream import aio
from groundstream.errors import Overloaded, StageUnavailable
from groundstream.events import StreamError
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import FramePriority, FrameResult, StreamPolicy
from tests.fakes import BUSY_RETRY_S, SLOW_S, FakePrimaryEncoder
from tests.handles import ServiceHere, remote_pipeline
from tests.in_process import GROUND, SETTINGS, conversation, running_service
from tests.pictures import encoded_image

ENCODE_S = 0.1


class SlowEncoder(FakePrimaryEncoder):
    """One frame after the other."""

    def start(self, frame: object) -> object:
        """Takes its time."""
        time.sleep(ENCODE_S)
        return super().start(frame)


class Line:
    """Watches a replica's line."""

    def __init__(self, replica: Any) -> None:
        self.waited: dict[str, int] = {}
        """By a frame's digest: how many passes began while it stood in line."""
        self._standing: dict[str, int] = {}
        self._start, self._run_together = replica.stage.start, replica.queue.run_together
        replica.stage.start, replica.queue.run_together = self._begun, self._arrived

    async def _arrived(self, ticket: Any, method: Any, frame: Frame, *, limit: int) -> Any:
        self._standing[frame.digest] = 0
        return await self._run_together(ticket, method, frame, limit=limit)

    def _begun(self, frames: list[Frame]) -> Any:
        for frame in frames:
            # Those that came before the watch began are not in it.
            if frame.digest in self._standing:
                self.waited[frame.digest] = self._standing.pop(frame.digest)
        for digest in list(self._standing):
            self._standing[digest] += 1
        return self._start(frames)


def full_language(metrics: ServiceMetrics) -> ServiceHere:
    """A service whose last stage takes no calls."""
    service = remote_pipeline(metrics)
    service.languages.max_calls = 0
    return service


async def test_a_full_queue_is_overloaded_with_a_hint_and_never_internal() -> None:
    async with (
        running_service(grounder=full_language) as service,
        grpc.aio.insecure_channel(service.target) as channel,
        aio.Client(service.target) as client,
    ):
        request = pb.GroundRequest(
            frame=pb.Frame(encoded_image=encoded_image(1)), queries=[pb.Query(text="dog")]
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await pb_grpc.VisionAgentStub(channel).Ground(request)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = dict(raised.value.trailing_metadata())
        assert metadata["groundstream-error"] == "OVERLOADED"
        assert int(metadata["grpc-retry-pushback-ms"]) >= 0
        with pytest.raises(Overloaded, match="queue is full") as ours:
            await client.ground(encoded_image(1), ["dog"])
        assert ours.value.retry_after_s is not None
        language = (await client.stats()).stages[-1]
        assert (language.name, language.num_refused, language.in_flight) == ("language", 2, 0)
        async with conversation(client, "dog") as talk:
            talk.send(0)
            error = await talk.next()
            assert isinstance(error, StreamError)
            assert (error.code, error.sequence) == ("OVERLOADED", 0)
            assert error.retry_after_ms is not None


async def test_a_call_without_enough_time_is_refused_before_its_deadline() -> None:
    async with (
        running_service(grounder=remote_pipeline) as service,
        aio.Client(service.target) as client,
    ):
        # Once known to be slow, a question with less time is not even begun.
        await client.ground(encoded_image(1), ["slow dog"])
        asked = (await client.stats()).stage_calls
        started_s = time.monotonic()
        with pytest.raises(Overloaded, match="are left") as raised:
            await client.ground(encoded_image(2), ["slow cat"], timeout_s=SLOW_S / 2)
        assert time.monotonic() - started_s < SLOW_S / 4
        assert raised.value.retry_after_s is not None
        assert raised.value.retry_after_s > 0.0
        assert (await client.stats()).stage_calls == asked
        with pytest.raises(Overloaded):
            [piece async for piece in client.ask(encoded_image(2), "cat", timeout_s=SLOW_S / 2)]
        assert (await client.ground(encoded_image(2), ["slow cat"], timeout_s=5.0)).results


async def test_a_slow_reader_gets_a_typed_error_and_its_time_is_not_the_stages() -> None:
    (language,) = remote_pipeline(ServiceMetrics()).languages.replicas
    stages, task = language._stages, Task.chat("how are you?")  # About no picture.

    async def read_slowly(pieces: AsyncIterator[str | Generation]) -> list[str | Generation]:
        read = []
        async for piece in pieces:
            read.append(piece)
            await asyncio.sleep(0.25)
        return read

    hurried = stages.within(Limits.starting_now(0.2))
    with pytest.raises(Overloaded, match="before the deadline"):
        await read_slowly(hurried.write_answer(None, task))
    assert language.meters.language.counts.in_flight == 0
    patient = stages.within(Limits.starting_now(None, Urgency.STANDING))
    patient._timeout_s = 0.2
    read = await read_slowly(patient.write_answer(None, task))
    assert isinstance(read[-1], Generation)


@pytest.mark.parametrize("left_s", [None, 60.0])
async def test_a_single_call_waits_as_long_as_its_client_does(left_s: float | None) -> None:
    service = remote_pipeline(ServiceMetrics())
    (language,) = service.languages.replicas
    service._timeout_s = language._stages._timeout_s = SLOW_S / 10
    frame, asked = read_frame(encoded_image(1)), Task.detect("slow dog")
    grounding = await service.within(Limits.starting_now(left_s)).ground(frame, [asked])
    assert grounding.answers[0].detections


async def test_a_stream_gives_a_slow_stage_more_time_after_each_try() -> None:
    service = remote_pipeline(ServiceMetrics())
    (language,) = service.languages.replicas
    service._timeout_s = 10.0
    language._stages._timeout_s = SLOW_S / 4
    stream = service.within(Limits(urgency=Urgency.STANDING))
    frame, asked = read_frame(encoded_image(1)), Task.detect("slow dog")
    with pytest.raises(StageUnavailable, match="language stage did not answer"):
        await stream.ground(frame, [asked])
    assert (await stream.ground(frame, [asked])).answers[0].detections


async def test_work_for_a_hurried_caller_goes_on_for_a_patient_one() -> None:
    """A stream with little time left must not make a call about the same picture fail."""
    encoder = f"{__name__}:{SlowEncoder.__name__}"
    service = remote_pipeline(ServiceMetrics(), primary_encoder=encoder)
    frame, task = read_frame(encoded_image(1)), Task.detect("dog")
    hurried = service.within(Limits.starting_now(ENCODE_S / 2, Urgency.STANDING))
    first = asyncio.ensure_future(hurried.ground(frame, [task]))
    await asyncio.sleep(ENCODE_S / 4)
    patient = service.within(Limits.starting_now(60.0))
    grounding = await patient.ground(frame, [task])
    assert grounding.answers[0].detections
    with pytest.raises(Overloaded, match="before the deadline"):
        await first


async def test_deadlines_and_urgency_reach_the_stages() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        await client.ground(encoded_image(1), ["dog"], timeout_s=7.0)
        one_off = service.stages.limits[-1]
        assert one_off.urgency is Urgency.ONE_OFF
        assert 5.0 < one_off.left_s < 7.1  # gRPC rounds up.
        await client.ground(encoded_image(1), ["dog"], timeout_s=None)
        assert service.stages.limits[-1].left_s == float("inf")
        policy = dataclasses.replace(GROUND, max_age_ms=4000.0)
        async with conversation(client, "dog", policy=policy) as talk:
            talk.send(0)
            assert isinstance(await talk.next(), FrameResult)
        standing = service.stages.limits[-1]
        assert standing.urgency is Urgency.STANDING
        assert 2.0 < standing.left_s < 4.0


async def test_a_one_off_question_does_not_wait_behind_key_frames() -> None:
    # So many key frames at once that they fill the line before the encoder.
    sharing = SharingSettings(keyframes_at_once=10)
    settings = dataclasses.replace(
        SETTINGS, stream=dataclasses.replace(SETTINGS.stream, sharing=sharing)
    )
    services: list[ServiceHere] = []

    def slow(metrics: ServiceMetrics) -> ServiceHere:
        encoder = f"{__name__}:{SlowEncoder.__name__}"
        services.append(remote_pipeline(metrics, primary_encoder=encoder))
        return services[0]

    async with (
        running_service(settings=settings, grounder=slow) as service,
        aio.Client(service.target) as client,
    ):

        async def ground_frames(number: int) -> None:
            async with conversation(client, "dog") as talk:
                for frame in range(3):
                    talk.send(100 * number + frame)
                    assert isinstance(await talk.next(), FrameResult)

        streams = [asyncio.create_task(ground_frames(number)) for number in range(1, 9)]
        async with asyncio.timeout(5):
            (language,) = services[0].languages.replicas
            while language.meters.primary_encoder.counts.in_flight < 6:
                await asyncio.sleep(0.01)
        encoder = services[0].vision[1]
        assert encoder is not None
        line = Line(*encoder.replicas)
        questions = [encoded_image(5000 + number) for number in range(5)]
        for picture in questions:
            await client.ground(picture, ["dog"])
        await asyncio.gather(*streams)
    asked = {read_frame(picture).digest for picture in questions}
    # The pass that runs is not counted; another may begin in the moment in which one arrives.
    assert max(line.waited[digest] for digest in asked) <= 1
    # Key frames did wait meanwhile.
    assert max(waited for digest, waited in line.waited.items() if digest not in asked) >= 4


async def test_key_frames_that_nobody_asked_for_give_way_silently() -> None:
    follow = dataclasses.replace(
        SETTINGS.stream.follow, keyframe=KeyframeSettings(retry_after_s=0.01)
    )
    settings = ServiceSettings(
        server=SETTINGS.server, stream=dataclasses.replace(SETTINGS.stream, follow=follow)
    )
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
        conversation(client, "busy dog", policy=StreamPolicy(ack_window=0)) as talk,
    ):
        for number in range(3):
            talk.send(number, capture_time_ns=100_000_000 * (number + 1))
            assert isinstance(await talk.next(), FrameResult)
            await asyncio.sleep(0.05)
        assert service.stages.calls.answer >= 2  # It was tried again.
        # One that was asked for is told.
        talk.send(3, priority=FramePriority.HIGH)
        events = [await talk.next(), await talk.next()]
        error = next(event for event in events if isinstance(event, StreamError))
        assert (error.code, error.sequence) == ("OVERLOADED", 3)
        assert error.retry_after_ms == pytest.approx(1e3 * BUSY_RETRY_S)
        talk.end()
        await talk.rest()
        books = talk.stats[-1]
        assert (books.received, books.tracked_only, books.failed) == (4, 3, 1)


async def test_streams_that_wait_for_their_turn_are_answered_all_the_same() -> None:
    sharing = SharingSettings(keyframes_at_once=1)
    settings = dataclasses.replace(
        SETTINGS, stream=dataclasses.replace(SETTINGS.stream, sharing=sharing)
    )
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
    ):

        async def follow(number: int) -> tuple[int, int]:
            async with conversation(
                client, f"slow {number}", policy=StreamPolicy(ack_window=0)
            ) as talk:
                num_results = 0
                for frame in range(40):
                    talk.send(frame, capture_time_ns=50_000_000 * frame)
                    num_results += isinstance(await talk.next(), FrameResult)
                    await asyncio.sleep(0.05)
                talk.end()
                await talk.rest()
                return num_results, talk.stats[-1].activity.num_keyframes

        found = await asyncio.gather(*(follow(number) for number in range(4)))
        # Two seconds are room for six key frames of 0.3 s; each stream has its share of them.
        numbers = [num_keyframes for _, num_keyframes in found]
        assert min(numbers) >= 1, found
        assert max(numbers) - min(numbers) <= 1, found
        assert all(num_results >= 38 for num_results, _ in found), found
