"""Zoom over a real channel: revisions, deadlines and provenance, with the fake stages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc
import pytest

from groundstream import aio
from groundstream.errors import InvalidFrame, InvalidQuery, StageUnavailable
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.rpc_errors import ServiceError
from groundstream.types import Detection, FrameResult, Query, TaskKind, Zoom, ZoomPolicy
from tests.fakes import SLOW_S
from tests.in_process import Service
from tests.pictures import encoded_image

LARGE = encoded_image(1, width=960, height=640)
ALWAYS = Zoom(ZoomPolicy.ALWAYS)


async def all_of(revisions: AsyncIterator[FrameResult]) -> list[FrameResult]:
    return [result async for result in revisions]


def moved(detection: Detection) -> tuple[float, ...]:
    """The proposal led through all transforms."""
    x1, y1, x2, y2 = detection.proposal_box
    for step in detection.transforms:
        x1, x2 = (step.scale_x * x + step.offset_x for x in (x1, x2))
        y1, y2 = (step.scale_y * y + step.offset_y for y in (y1, y2))
    return x1, y1, x2, y2


def assert_refined_boxes_lie_in_crops(result: FrameResult, query: str) -> None:
    refined = [d for d in result[query].detections if d.crop_index is not None]
    assert refined
    for detection in refined:
        left, top, right, bottom = result.crops[detection.crop_index].box
        x1, y1, x2, y2 = detection.box
        assert left - 1e-3 <= x1 < x2 <= right + 1e-3
        assert top - 1e-3 <= y1 < y2 <= bottom + 1e-3
        assert moved(detection) == pytest.approx(detection.box, abs=1e-2)
        assert [step.kind for step in detection.transforms] == ["RESIZE", "CROP"]


async def test_revisions_come_under_one_id_and_the_last_is_final(
    client: aio.Client,
) -> None:
    results = await all_of(client.ground_anytime(LARGE, ["dog"], zoom=ALWAYS))
    revisions = [result.revision for result in results]
    assert len({revision.answer_id for revision in revisions}) == 1
    assert [revision.number for revision in revisions] == list(range(len(results)))
    assert [revision.final for revision in revisions] == [False] * (len(results) - 1) + [True]
    assert not any(revision.cut_short for revision in revisions)
    assert results[0].crops == ()
    assert results[0]["dog"].detections[0].crop_index is None
    for result in results[1:]:
        assert_refined_boxes_lie_in_crops(result, "dog")
    other = await all_of(client.ground_anytime(LARGE, ["dog"], zoom=ALWAYS))
    assert other[0].revision.answer_id != revisions[0].answer_id


async def test_the_first_answer_does_not_wait_for_the_second(client: aio.Client) -> None:
    started = time.perf_counter()
    took = []
    async for _ in client.ground_anytime(LARGE, ["slow dog"], zoom=ALWAYS):
        took.append(time.perf_counter() - started)
    assert SLOW_S <= took[0] < 2 * SLOW_S <= took[-1]


async def test_a_deadline_that_cuts_the_refinement_leaves_the_coarse_answer(
    client: aio.Client, service: Service
) -> None:
    results = await all_of(
        client.ground_anytime(LARGE, ["slow dog"], zoom=ALWAYS, timeout_s=1.6 * SLOW_S)
    )
    first, last = results[0], results[-1]
    assert first["slow dog"].detections
    assert last["slow dog"].detections == first["slow dog"].detections
    assert last.crops == ()
    if len(results) > 1:  # unless the word that it is the last one came too late
        assert last.revision.cut_short
        assert last.revision.final


async def test_a_budget_cuts_within_the_deadline(client: aio.Client) -> None:
    zoom = Zoom(ZoomPolicy.ALWAYS, budget_ms=1.4e3 * SLOW_S)
    first, last = await all_of(client.ground_anytime(LARGE, ["slow dog"], zoom=zoom))
    assert (last.revision.number, last.revision.final, last.revision.cut_short) == (1, True, True)
    assert last["slow dog"].detections == first["slow dog"].detections


async def test_ground_returns_the_revision_that_time_allowed(client: aio.Client) -> None:
    everything = await client.ground(LARGE, ["slow dog"], zoom=ALWAYS)
    assert everything.revision.final
    assert not everything.revision.cut_short
    assert_refined_boxes_lie_in_crops(everything, "slow dog")
    zoom = Zoom(ZoomPolicy.ALWAYS, budget_ms=1.4e3 * SLOW_S)
    hurried = await client.ground(LARGE, ["slow dog"], zoom=zoom)
    assert hurried.revision.cut_short
    assert hurried.crops == ()
    assert hurried["slow dog"].detections


async def test_without_a_policy_there_is_one_look(client: aio.Client, service: Service) -> None:
    result = await client.ground(LARGE, ["dog"])
    assert (result.revision.number, result.revision.final, result.crops) == (0, True, ())
    assert service.stages.calls.answer == 1
    off = await all_of(client.ground_anytime(LARGE, ["dog"], zoom=Zoom(ZoomPolicy.OFF)))
    assert len(off) == 1


async def test_ask_writes_the_first_answer_and_revises_it(client: aio.Client) -> None:
    pieces = [piece async for piece in client.ask(LARGE, "dog", zoom=ALWAYS)]
    written = [piece for piece in pieces if isinstance(piece, str)]
    results = [piece for piece in pieces if isinstance(piece, FrameResult)]
    assert pieces == [*written, *results]
    assert "".join(written) == results[0]["dog"].text
    assert [result.revision.number for result in results] == list(range(len(results)))
    assert results[-1].revision.final
    assert_refined_boxes_lie_in_crops(results[-1], "dog")


async def test_several_questions_are_revised_together(client: aio.Client) -> None:
    queries = ["dog", Query("", id="what", task=TaskKind.REGION_CAPTION, region_index=1)]
    *_, last = await all_of(client.ground_anytime(LARGE, queries, zoom=ALWAYS))
    assert_refined_boxes_lie_in_crops(last, "dog")
    assert last["what"].text == "thing 0"  # its crop shows no other


async def test_errors_of_the_first_look_are_typed(client: aio.Client) -> None:
    with pytest.raises(InvalidFrame):
        await all_of(client.ground_anytime(b"no image", ["dog"]))
    with pytest.raises(InvalidQuery):
        await all_of(client.ground_anytime(LARGE, []))
    with pytest.raises((ServiceError, StageUnavailable)):
        await all_of(client.ground_anytime(LARGE, ["slow dog"], zoom=ALWAYS, timeout_s=0.05))


@pytest.mark.parametrize(
    "zoom",
    [
        pb.Zoom(policy=9),
        pb.Zoom(arrangement=9),
        pb.Zoom(budget_ms=-1.0),
        pb.Zoom(budget_ms=float("nan")),
    ],
)
async def test_a_zoom_without_meaning_is_refused(service: Service, zoom: pb.Zoom) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        request = pb.GroundRequest(
            frame=pb.Frame(encoded_image=LARGE), queries=[pb.Query(text="x")], zoom=zoom
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await pb_grpc.VisionAgentStub(channel).Ground(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
