"""A query that cannot be asked about a frame takes no other query with it."""

from __future__ import annotations

import pickle

import grpc
import pytest

from agent.detections import FloatArray
from agent.features import FrameFeatures, Generation
from agent.frame import read_frame
from agent.pipeline import Pipeline, QueriesRefused
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from groundstream import aio
from groundstream.enums import TaskKind
from groundstream.errors import InvalidQuery
from groundstream.events import KeyframeAnswer, StreamError
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import AnswerStatus, FrameResult, OutgoingFrame, Query
from tests.fakes import FakeStages
from tests.in_process import FOLLOW, GROUND, Service, conversation, still
from tests.pictures import encoded_image

BAD = Query("", id="bad", task=TaskKind.REGION_CAPTION, region_index=3)
BOXES = ((1.0, 1.0, 20.0, 20.0), (30.0, 10.0, 60.0, 50.0))
MORE = (*BOXES, (5.0, 5.0, 50.0, 50.0), (60.0, 5.0, 90.0, 50.0))


async def test_other_queries_of_the_frame_are_answered(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "dog", BAD, policy=GROUND) as talk:
        for number in (1, 2):
            talk.send_frame(OutgoingFrame(encoded_image(number), number, boxes=BOXES))
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence, error.change_id) == ("INVALID_QUERY", None, None)
        assert error.message == (
            "frame 1, query 'bad': region 3 does not exist: this frame has 2 boxes; use 0 to 1"
        )
        for number in (1, 2):  # It is told of once.
            result = await talk.next()
            assert isinstance(result, FrameResult)
            assert (result.sequence, [answer.query_id for answer in result.results]) == (
                number,
                ["dog"],
            )
        talk.send_frame(OutgoingFrame(encoded_image(3), 3, boxes=MORE))
        result = await talk.next()
        assert isinstance(result, FrameResult)
        assert result["bad"].text == "thing 3"
        talk.send_frame(OutgoingFrame(encoded_image(4), 4, boxes=BOXES))
        error = await talk.next()  # It could be answered in between.
        assert isinstance(error, StreamError)
        assert error.message.startswith("frame 4, query 'bad'")
        await talk.next()
        talk.end()
        await talk.rest()
    books = talk.stats[-1]
    assert (books.received, books.answered, books.rejected) == (4, 4, 0)
    # What cannot be answered is known before the language model is asked.
    assert service.stages.calls.answer == 5


async def test_behind_the_tracker_too_and_no_key_frame_more_comes_of_it(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "dog", BAD, policy=FOLLOW) as talk:
        seen: list[object] = []
        for number in range(1, 30):
            talk.send_frame(still(number, boxes=BOXES))
            seen.append(await talk.next())
        talk.end()
        seen += await talk.rest()
    errors = [event for event in seen if isinstance(event, StreamError)]
    keyframes = [event for event in seen if isinstance(event, KeyframeAnswer)]
    results = [event for event in seen if isinstance(event, FrameResult)]
    assert [error.message[:20] for error in errors] == ["frame 1, query 'bad'"]
    assert [keyframe.reason for keyframe in keyframes] == ["FIRST"]
    assert keyframes[0].result["dog"].status is AnswerStatus.OK
    assert results[-1]["dog"].detections
    assert results[-1]["bad"].status is AnswerStatus.PENDING


async def test_a_frame_of_which_nothing_can_be_asked_is_refused(client: aio.Client) -> None:
    async with conversation(client, BAD, policy=GROUND) as talk:
        talk.send_frame(OutgoingFrame(encoded_image(1), 1, boxes=BOXES))
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INVALID_QUERY", 1)
        assert error.message.startswith("query 'bad': region 3 does not exist")
        talk.end()
        await talk.rest()
    assert talk.stats[-1].rejected == 1


class Choosy(FakeStages):
    """Cannot ask what begins with "long"."""

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        if task.query.startswith("long"):
            raise InvalidQuery("too long for the model")
        return await super().answer(features, task)


@pytest.mark.parametrize("boxes", [None, BOXES])
async def test_all_that_cannot_be_asked_is_named(boxes: FloatArray | None) -> None:
    pipeline = Pipeline(Choosy(), MemoryRegionCache(), model_digest="m")
    frame = read_frame(encoded_image(1))
    tasks = [Task.detect("dog"), Task.detect("long"), Task.detect("cat"), Task.detect("long one")]
    with pytest.raises(QueriesRefused, match="too long") as raised:
        await pipeline.ground(frame, tasks, boxes=boxes)
    assert list(raised.value.reasons) == [1, 3]
    again = pickle.loads(pickle.dumps(raised.value))
    assert (again.reasons, str(again)) == (raised.value.reasons, str(raised.value))


@pytest.mark.parametrize("ids", [("a", "b", "a"), ("1", "")])
async def test_two_queries_of_one_name_are_refused(service: Service, ids: tuple[str, ...]) -> None:
    queries = [pb.Query(id=name, text="dog") for name in ids]
    frame = pb.Frame(sequence=1, encoded_image=encoded_image(1))
    async with grpc.aio.insecure_channel(service.target) as channel:
        agent = pb_grpc.VisionAgentStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match=f"2 queries are called '{ids[0]}'"):
            await agent.Ground(pb.GroundRequest(frame=frame, queries=queries))
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await agent.GroundAnytime(pb.GroundAnytimeRequest(frame=frame, queries=queries)).read()
        call = agent.Watch(timeout=10)
        change = pb.SetQueries(queries=queries, change_id=7)
        await call.write(pb.WatchRequest(set_queries=change))
        while not (response := await call.read()).HasField("error"):
            pass
        assert (response.error.code, response.error.change_id) == (pb.ERROR_CODE_INVALID_QUERY, 7)
        call.cancel()
    assert service.stages.calls.propose == 0
