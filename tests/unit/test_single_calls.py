"""Single calls over a real channel, with the fake stages in this process."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from groundstream import aio
from groundstream.errors import InvalidBoxes, InvalidFrame, InvalidQuery
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.rpc_errors import ServiceError
from groundstream.types import (
    AnswerStatus,
    FrameResult,
    Query,
    TaskKind,
)
from tests.fakes import NUM_BOXES, SECRET
from tests.in_process import Service
from tests.pictures import encoded_image


async def test_ground_answers_every_query(client: aio.Client) -> None:
    queries = [
        "dog",
        Query("absent cat", id="cat"),
        Query("birds", task=TaskKind.COUNT),
        Query("", id="what", task=TaskKind.REGION_CAPTION, region_index=2),
    ]
    result = await client.ground(encoded_image(1), queries)
    assert (result.width, result.height) == (96, 64)
    assert result.num_proposals == NUM_BOXES
    assert [answer.query_id for answer in result.results] == ["dog", "cat", "birds", "what"]
    assert result["dog"].detections[0].box == (0.0, 0.0, 48.0, 32.0)
    assert result["dog"].status is AnswerStatus.OK
    assert result["cat"].status is AnswerStatus.NOT_PRESENT
    assert len(result["birds"].detections) == NUM_BOXES
    assert result["what"].text == "thing 2"


async def test_a_second_question_runs_no_proposals_and_no_encoders(
    client: aio.Client, service: Service
) -> None:
    first = await client.ground(encoded_image(1), ["dog"])
    second = await client.ground(encoded_image(1), ["cat"])
    assert (first.cache_hit, second.cache_hit) == (False, True)
    calls = (await client.stats()).stage_calls
    assert (calls.propose, calls.encode_primary, calls.encode_auxiliary) == (1, 1, 1)
    assert calls.answer == 2


async def test_client_boxes_replace_the_proposals(client: aio.Client, service: Service) -> None:
    result = await client.ground(encoded_image(1), ["dog"], boxes=[(1.0, 2.0, 30.0, 40.5)])
    assert result.num_proposals == 1
    assert result["dog"].detections[0].box == (1.0, 2.0, 30.0, 40.5)
    assert service.stages.calls.propose == 0


async def test_ask_tells_the_text_as_it_is_written(client: aio.Client) -> None:
    *pieces, result = [piece async for piece in client.ask(encoded_image(1), "dog")]
    assert len(pieces) > 1
    assert isinstance(result, FrameResult)
    assert "".join(map(str, pieces)) == result["dog"].text
    assert result["dog"].detections[0].box == (0.0, 0.0, 48.0, 32.0)


async def test_a_string_to_ask_is_a_free_question(client: aio.Client) -> None:
    question = "Is there a bus,  or\nisn't there?"
    free, chosen = Query(question, task=TaskKind.CHAT), Query(question, task=TaskKind.COUNT)
    replies = []
    for query in (question, free, chosen):
        *_, result = [piece async for piece in client.ask(encoded_image(1), query)]
        assert isinstance(result, FrameResult)
        replies.append(result[question])
    assert (replies[0].text, replies[0].count) == (replies[1].text, None)
    assert question in replies[0].text
    assert replies[2].count == NUM_BOXES


@pytest.mark.parametrize("single", ["bus", b"bus", Query("bus")])
async def test_a_single_query_in_place_of_a_list_is_refused(
    client: aio.Client, single: Any
) -> None:
    image = encoded_image(1)
    with pytest.raises(InvalidQuery, match=r"queries are a list.*not just b?'bus'"):
        await client.ground(image, single)
    with pytest.raises(InvalidQuery, match="queries are a list"):
        await anext(client.ground_anytime(image, single))
    with pytest.raises(InvalidQuery, match="queries are a list"):
        client.watch([], single)
    async with client.watch([], ["dog"]) as stream:
        with pytest.raises(InvalidQuery, match="queries are a list"):
            await stream.set_queries(single)
    assert (await client.stats()).frames_received == 0


async def test_a_bad_ask_ends_with_its_type(client: aio.Client) -> None:
    with pytest.raises(InvalidFrame):
        [piece async for piece in client.ask(b"no image", "dog")]
    with pytest.raises(ServiceError) as raised:
        [piece async for piece in client.ask(encoded_image(1), "crash")]
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("image", "queries", "boxes", "error"),
    [
        (b"", ["dog"], None, InvalidFrame),
        (b"no image", ["dog"], None, InvalidFrame),
        (encoded_image(1, kind="PNG")[:-30], ["dog"], None, InvalidFrame),  # truncated
        (encoded_image(1), [], None, InvalidQuery),
        (encoded_image(1), [""], None, InvalidQuery),
        (encoded_image(1), ["dog", "x" * 10_000], None, InvalidQuery),
        (encoded_image(1), ["a", "b", "c", "d", "e"], None, InvalidQuery),  # too many
        (encoded_image(1), ["dog"], [(5.0, 5.0, 1.0, 1.0)], InvalidBoxes),
        (encoded_image(1), ["dog"], [(0.0, 0.0, float("nan"), 1.0)], InvalidBoxes),
    ],
)
async def test_bad_calls_are_typed_errors_and_the_next_call_is_answered(
    client: aio.Client,
    image: bytes,
    queries: list[str],
    boxes: list[tuple[float, float, float, float]] | None,
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        await client.ground(image, queries, boxes=boxes)
    assert (await client.stats()).frames_rejected == 1
    assert (await client.ground(encoded_image(1), ["dog"]))["dog"].detections


async def test_a_bug_is_internal_and_says_nothing_of_the_inside(
    client: aio.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServiceError, match=r"INTERNAL.*request id") as raised:
        await client.ground(encoded_image(1), ["crash"])
    assert SECRET not in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert (await client.stats()).frames_failed == 1


async def test_an_unknown_task_kind_is_an_invalid_request(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        request = pb.GroundRequest(
            frame=pb.Frame(encoded_image=encoded_image(1)), queries=[pb.Query(text="x", task=42)]
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await pb_grpc.VisionAgentStub(channel).Ground(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "42" in str(raised.value.details())
    assert dict(raised.value.trailing_metadata())["groundstream-error"] == "INVALID_ARGUMENT"
