"""Messages are bounded in bytes and counts before they are parsed."""

from __future__ import annotations

import time

import pytest

from deployments.wire.message_bounds import (
    Counts,
    bounds_by_method,
    check_message,
    first_field,
    number_in,
)
from groundstream.errors import AgentError, InvalidBoxes, InvalidQuery, InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb
from tests.wire_format import delimited

SHAPES = bounds_by_method(Counts(queries=16, boxes=1000))
GROUND = SHAPES["/vision_agent.v1.VisionAgent/Ground"]
WATCH = SHAPES["/vision_agent.v1.VisionAgent/Watch"]
MANY = 200_000
EMPTY_TURNS = delimited(7, b"") * MANY
EMPTY_QUERIES = delimited(1, b"") * MANY


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (delimited(2, EMPTY_TURNS), InvalidQuery, "more than 400 earlier turns"),
        (delimited(2, b"") * MANY, InvalidQuery, "more than 64 queries"),
        (delimited(2, delimited(6, bytes(MANY))), InvalidQuery, "more than 4000 mentioned regions"),
        (delimited(2, b"\x30\x00" * MANY), InvalidQuery, "more than 4000 mentioned regions"),
        (
            delimited(1, delimited(4, delimited(1, b"") * MANY)),
            InvalidBoxes,
            "more than 4000 boxes",
        ),
        (delimited(1, b"") * MANY, InvalidRequest, "the field frame stands more than once"),
        (delimited(15, b"") * MANY, InvalidRequest, "more than 64 fields are unknown"),
        (delimited(2, delimited(2, b"x" * 300_000)), InvalidRequest, "bytes beside its picture"),
        (b"\x0b" * MANY, InvalidRequest, "not the message"),
        (b"\xff" * MANY, InvalidRequest, "not the message"),
        (delimited(1, b"\x80" * MANY), InvalidRequest, "not the message"),
        (b"\x12\x7fabc", InvalidRequest, "not the message"),
    ],
)
def test_what_is_out_of_bounds_ends_the_walk(
    content: bytes, kind: type[AgentError], said: str
) -> None:
    started_s = time.process_time()
    with pytest.raises(kind, match=said):
        check_message(content, GROUND)
    assert time.process_time() - started_s < 0.1


def test_a_stream_message_is_bounded_too() -> None:
    with pytest.raises(InvalidQuery, match="more than 64 queries"):
        check_message(delimited(2, EMPTY_QUERIES), WATCH)
    with pytest.raises(InvalidQuery, match="more than 400 earlier turns"):
        check_message(delimited(3, delimited(1, EMPTY_TURNS)), WATCH)


def test_many_fields_within_their_counts_end_the_walk() -> None:
    query = delimited(7, delimited(1, b"q") + delimited(2, b"a")) * 300
    with pytest.raises(InvalidRequest, match="more than 10000 fields"):
        check_message(delimited(2, query) * 60, GROUND)


def test_what_callers_send_passes() -> None:
    turns = [pb.Exchange(question="q" * 100, answer="a")] * 100
    boxes = pb.BoxList(boxes=[pb.Box(x1=1, y1=2, x2=3, y2=4)] * 1000)
    request = pb.GroundRequest(
        frame=pb.Frame(
            sequence=3, encoded_image=bytes(2_000_000), boxes=boxes, ego_motion=pb.EgoMotion(xx=1)
        ),
        queries=[pb.Query(text="dog", history=turns, mentioned_regions=range(100))] * 16,
        zoom=pb.Zoom(budget_ms=1.0),
    )
    check_message(request.SerializeToString(), GROUND)
    check_message(b"", GROUND)


def test_a_refused_message_is_known_by_its_number() -> None:
    frame = pb.WatchRequest(frame=pb.Frame(sequence=70_000, encoded_image=b"x"))
    assert first_field(frame.SerializeToString()) == 1
    assert number_in(frame.SerializeToString(), 1, 1) == 70_000
    queries = [pb.Query(text="dog")] * 100
    change = pb.WatchRequest(set_queries=pb.SetQueries(queries=queries, change_id=9))
    assert number_in(change.SerializeToString(), 2, 2) == 9
    assert number_in(delimited(2, EMPTY_QUERIES), 2, 2) is None
    assert number_in(b"\x0a\x7f", 1, 1) is None
    # Ten bytes of a varint say 70 bits; protobuf keeps 64, and so do errors that repeat it.
    assert number_in(delimited(1, b"\x08" + b"\xff" * 9 + b"\x7f"), 1, 1) == 2**64 - 1
    assert first_field(b"\xff") is None
