"""What no message can hold is refused by the client, before anything is sent, in a sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstream import aio, conversions
from groundstream.checks import INT64, UINT32, UINT64, check_text, check_whole, strange_character
from groundstream.enums import TaskKind
from groundstream.errors import (
    AgentError,
    EventsError,
    InvalidBoxes,
    InvalidQuery,
    InvalidRequest,
)
from groundstream.rpc_errors import ServiceError
from groundstream.types import (
    Exchange,
    OutgoingFrame,
    OutgoingPacket,
    Query,
    StreamPolicy,
    VideoCodec,
    VideoFormat,
    Zoom,
)
from groundstream.zones import Line, Zone
from tests.in_process import GROUND, Service, conversation
from tests.pictures import encoded_image

STRANGE = "cat\ud800"
FRAME = OutgoingFrame(b"")
PACKET = OutgoingPacket(b"", VideoFormat(VideoCodec.H264), is_key=True, sequence=0)
BEYOND_32, BEYOND_64 = [-1, 2**32, 1.5, "1", None], [-1, 2**64, 1.5]
CORNER = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))


def packet_to_message(packet: OutgoingPacket) -> object:
    return conversions.packet_to_message(packet, packet_number=1)


@given(st.text(st.characters(codec="utf-8")))
def test_text_passes_as_it_is(text: str) -> None:
    assert check_text(text, "it") == text
    assert strange_character(text) is None


@pytest.mark.parametrize("query", [Query(None, id="w"), Query(b"dog", id="a"), Query(7, id="n")])  # type: ignore[arg-type]
def test_what_is_no_text_is_refused(query: Query) -> None:
    with pytest.raises(InvalidQuery, match="give a text"):
        conversions.query_to_message(query)


def test_what_is_no_character_is_shown_as_an_escape() -> None:
    wrong_bytes = b"cat\xff".decode(errors="surrogateescape")
    with pytest.raises(InvalidQuery) as raised:
        check_text(wrong_bytes, "the query")
    assert str(raised.value) == (
        r"the query contains '\udcff', which is no character; write it in UTF-8"
    )
    str(raised.value).encode("ascii")


@pytest.mark.parametrize(
    "query",
    [
        Query(STRANGE),
        Query("cat", id=STRANGE),
        Query("And now?", task=TaskKind.CHAT, history=(Exchange(STRANGE, "a"),)),
        Query("And now?", task=TaskKind.CHAT, history=(Exchange("q", STRANGE),)),
    ],
)
def test_no_text_of_a_query_may_hold_it(query: Query) -> None:
    with pytest.raises(InvalidQuery, match=r"'\\ud800', which is no character"):
        conversions.query_to_message(query)


@pytest.mark.parametrize("make", [lambda **m: Zone("z", CORNER, **m), 
                                  lambda **m: Line("l", CORNER[:2], **m)])  # fmt: skip
def test_nor_a_zone_or_a_line(make: Callable[..., Zone | Line]) -> None:
    with pytest.raises(EventsError, match="name of a query"):
        make(queries=(STRANGE,))
    with pytest.raises(EventsError, match="name of a zone or line"):
        dataclasses.replace(make(), name=STRANGE)


@pytest.mark.parametrize("within", [UINT32, UINT64, INT64])
def test_whole_numbers_pass_up_to_their_bounds(within: range) -> None:
    for number in (within[0], 0, within[-1]):
        assert check_whole(number, "it", within) == number
    for number in (within[0] - 1, within[-1] + 1):
        with pytest.raises(InvalidRequest, match=f"it is {number}; give a whole number from "):
            check_whole(number, "it", within)


def test_numbers_of_numpy_are_whole_too() -> None:
    assert check_whole(np.uint8(7), "it", UINT32) == 7
    with pytest.raises(InvalidRequest):
        check_whole(np.int64(-1), "it", UINT32)


@pytest.mark.parametrize(
    ("convert", "given", "name", "values", "error"),
    [
        (conversions.query_to_message, Query("a"), "region_index", [-1, 2**32, 1.5], InvalidQuery),
        (conversions.query_to_message, Query("a"), "max_new_tokens", BEYOND_32, InvalidQuery),
        (conversions.query_to_message, Query("a"), "mentioned_regions",
         [(n,) for n in BEYOND_32], InvalidQuery),
        (conversions.frame_to_message, FRAME, "sequence", BEYOND_64, InvalidRequest),
        (conversions.frame_to_message, FRAME, "capture_time_ns", [2**63, 1e18], InvalidRequest),
        (packet_to_message, PACKET, "sequence", BEYOND_64, InvalidRequest),
        (packet_to_message, PACKET, "capture_time_ns", [-(2**63) - 1], InvalidRequest),
        (conversions.zoom_to_message, Zoom(), "max_vision_tokens", BEYOND_32, InvalidRequest),
        (conversions.policy_to_message, StreamPolicy(), "window", BEYOND_32, InvalidRequest),
        (conversions.policy_to_message, StreamPolicy(), "ack_window", BEYOND_32, InvalidRequest),
    ],
)  # fmt: skip
def test_numbers_that_a_message_cannot_hold(
    convert: Callable[[object], object],
    given: Query,
    name: str,
    values: list[object],
    error: type[AgentError],
) -> None:
    for value in values:
        with pytest.raises(error, match="give a whole number from"):
            convert(dataclasses.replace(given, **{name: value}))


@pytest.mark.parametrize(
    "box",
    [(1.0, 2.0, 3.0), (1, 2, 3, 4, 5), ("1", "2", "3", "4"), "1234", 5.0, None,
     (None, 0, 1, 1), (0, 0, 1, 10**400), ([1], [2], [3], [4]), np.zeros((4, 2))],
)  # fmt: skip
def test_a_box_is_four_numbers(box: object) -> None:
    with pytest.raises(InvalidBoxes, match="give 4 numbers, x1, y1, x2, y2"):
        conversions.frame_to_message(dataclasses.replace(FRAME, boxes=(box,)))


def test_boxes_of_any_numbers_pass() -> None:
    boxes = (*np.array([[1, 2, 3, 4]], dtype=np.float32), [1, np.float64(2.0), np.uint8(3), 4.0])
    message = conversions.frame_to_message(dataclasses.replace(FRAME, boxes=boxes))
    assert [(b.x1, b.y1, b.x2, b.y2) for b in message.boxes.boxes] == [(1.0, 2.0, 3.0, 4.0)] * 2


def test_a_motion_is_six_numbers() -> None:
    with pytest.raises(InvalidRequest, match=r"ego_motion is .* give 6 numbers, xx, xy, x0,"):
        conversions.frame_to_message(dataclasses.replace(FRAME, ego_motion=(1, 0, 0, 0, 1)))
    moved = dataclasses.replace(FRAME, ego_motion=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    motion = conversions.frame_to_message(moved).ego_motion
    assert (motion.xx, motion.xy, motion.x0) == (1.0, 2.0, 3.0)
    assert (motion.yx, motion.yy, motion.y0) == (4.0, 5.0, 6.0)


async def test_calls_refuse_it_before_anything_is_sent() -> None:
    async with aio.Client("127.0.0.1:1") as client:
        with pytest.raises(InvalidQuery):
            await client.ground(encoded_image(1), ["dog", STRANGE])
        with pytest.raises(InvalidBoxes):
            await client.ground(encoded_image(1), ["dog"], boxes=[1, 2, 3, 4])
        with pytest.raises(InvalidQuery):
            client.watch(iter([FRAME]), [STRANGE])
        with pytest.raises(InvalidRequest):
            client.watch(iter([FRAME]), ["dog"], policy=StreamPolicy(window=-1))
        with pytest.raises(InvalidRequest):
            await anext(client.observe(-1))


async def test_a_change_that_cannot_be_sent_changes_nothing(client: aio.Client) -> None:
    async with conversation(client, "dog", policy=GROUND) as talk:
        for change in (talk.stream.set_queries([STRANGE]), talk.stream.put_query(STRANGE),
                       talk.stream.remove_query(STRANGE)):  # fmt: skip
            with pytest.raises(InvalidQuery):
                await change
        with pytest.raises(InvalidRequest):
            await talk.stream.set_policy(StreamPolicy(ack_window=2**32))
        assert list(talk.stream._queries) == ["dog"]
        assert talk.stream._policy is GROUND
        assert await talk.stream.put_query("cat") == 2
        talk.end()
        await talk.rest()


async def test_a_frame_that_cannot_be_sent_ends_the_stream_after_the_answers(
    client: aio.Client, service: Service
) -> None:
    frames = [OutgoingFrame(encoded_image(1)), OutgoingFrame(encoded_image(2), sequence=-1)]
    async with client.watch(iter(frames), ["dog"], policy=GROUND) as stream:
        results = stream.results()
        assert (await anext(results)).sequence == 0
        with pytest.raises(InvalidRequest, match="sequence is -1"):
            await anext(results)


@pytest.mark.parametrize("timeout_s", [0.0, 1e-9])
async def test_a_call_without_time_says_which_time_ran_out(
    service: Service, timeout_s: float
) -> None:
    says = f"not complete after {timeout_s:g} s; allow more time \\(timeout_s\\)"
    async with aio.Client(service.target) as client:
        with pytest.raises(ServiceError, match=says):
            await client.ground(encoded_image(1), ["slow dog"], timeout_s=timeout_s)
        with pytest.raises(ServiceError, match=says):
            [piece async for piece in client.ask(encoded_image(1), "dog", timeout_s=timeout_s)]


async def test_infinity_is_time_without_an_end(client: aio.Client) -> None:
    result = await client.ground(encoded_image(1), ["dog"], timeout_s=math.inf)
    assert result["dog"].detections
