"""Whatever comes from outside is either understood or refused by its own error, never a crash.

A hundred made-up inputs each in the gate; `make fuzz` tries 100,000 of each. What fuzzing found
stands as an example, so that it is tried every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

from agent.detections import Proposals
from agent.feature_codec import CorruptFeatures, decode_features, encode_features
from agent.features import FrameFeatures, Generation
from agent.parsing import parse_answer
from agent.prompts import Task
from agent.settings import StreamSettings
from agent.streaming.camera_path import CameraPath
from agent.streaming.session import Session, StandingQuery
from agent.streaming.snapshot import read_snapshot
from deployments.wire import messages, stream_messages, zoom_messages
from deployments.wire.message_bounds import Counts, bounds_by_method, check_message
from deployments.wire.status import failure_of
from groundstream.errors import AgentError, InvalidBoxes, InvalidQuery, InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb
from tests.fuzzing import LIMITS, PICTURES, mutated
from tests.wire_format import delimited, varint

pytestmark = [
    pytest.mark.fuzz,
    # Pillow complains of damaged metadata, and reads the picture all the same.
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

# ---- messages ----

_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["dog", "<region3>", "<|im_end|>", "{}", "\0", "x" * 3000]),
)
_INT = st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1))
_LONG = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
_SIGNED = st.integers(-(2**63), 2**63 - 1)
_FLOAT = st.one_of(st.floats(width=32), st.floats(0, 100, width=32))
_DOUBLE = st.floats()
_ENUM = st.one_of(st.integers(0, 12), st.integers(-(2**31), 2**31 - 1))
_QUERY = st.builds(
    pb.Query,
    id=_TEXT,
    text=_TEXT,
    task=_ENUM,
    region_index=st.none() | _INT,
    max_new_tokens=_INT,
    mentioned_regions=st.lists(_INT, max_size=3),
    history=st.lists(st.builds(pb.Exchange, question=_TEXT, answer=_TEXT), max_size=2),
    constrained=st.booleans(),
)
_BOXES = st.builds(
    pb.BoxList,
    boxes=st.lists(st.builds(pb.Box, x1=_FLOAT, y1=_FLOAT, x2=_FLOAT, y2=_FLOAT), max_size=4),
)
_MOTION = st.builds(
    pb.EgoMotion, xx=_DOUBLE, xy=_DOUBLE, x0=_DOUBLE, yx=_DOUBLE, yy=_DOUBLE, y0=_DOUBLE
)
_FRAME = st.builds(
    pb.Frame,
    sequence=_LONG,
    capture_time_ns=_SIGNED,
    encoded_image=st.sampled_from([*PICTURES, b"", b"no image"]),
    boxes=st.none() | _BOXES,
    priority=_ENUM,
    ego_motion=st.none() | _MOTION,
)
_POLICY = st.builds(
    pb.StreamPolicy,
    drop=_ENUM,
    mode=_ENUM,
    window=_INT,
    max_age_ms=_DOUBLE,
    ack_window=_INT,
    reuse_features=st.booleans(),
)
_OPEN = st.builds(
    pb.OpenStream,
    resume_token=_TEXT,
    num_sent=_LONG,
    num_results=_LONG,
    last_result_sequence=st.none() | _LONG,
    last_sent_sequence=st.none() | _LONG,
    policy=_POLICY,
)
_REQUEST = st.one_of(
    st.builds(pb.WatchRequest, frame=_FRAME),
    st.builds(
        pb.WatchRequest,
        set_queries=st.builds(pb.SetQueries, queries=st.lists(_QUERY, max_size=3), change_id=_LONG),
    ),
    st.builds(pb.WatchRequest, open=_OPEN),
    st.builds(pb.WatchRequest, set_policy=st.builds(pb.SetPolicy, policy=_POLICY, change_id=_LONG)),
)
_ZOOM = st.builds(
    pb.Zoom, policy=_ENUM, max_vision_tokens=_INT, budget_ms=_DOUBLE, arrangement=_ENUM
)


def take(request: pb.WatchRequest) -> Any:
    """What a stream does with a message before anything is computed, and what it would reply."""
    session: Session[Any] = Session(max_queries=4)
    if request.HasField("frame"):
        received = messages.frame_from_message(request.frame, limits=LIMITS, received_time_ns=0)
        path = CameraPath()
        for _ in range(3):
            path.step(received.ego_motion)
        session.offer(received, received.frame.index, received.priority)
        return stream_messages.books_response(session.books, pb.StreamActivity())
    if request.HasField("open"):
        policy = stream_messages.policy_from_message(request.open.policy, StreamSettings())
        session.set_policy(policy)
        gap = session.catch_up(stream_messages.seen_from_message(request.open))
        stream_messages.books_response(session.books, pb.StreamActivity())
        return stream_messages.opened_response("token", session, resumed=True, gap=gap)
    if request.HasField("set_queries"):
        tasks = messages.tasks_from_messages(request.set_queries.queries, max_new_tokens=256)
        return stream_messages.ack_response(
            session.set_queries(tasks), request.set_queries.change_id, session.query_ids
        )
    policy = stream_messages.policy_from_message(request.set_policy.policy, StreamSettings())
    return stream_messages.policy_response(policy, request.set_policy.change_id)


def reply(request: pb.WatchRequest) -> pb.WatchResponse:
    """The response to a message: never INTERNAL."""
    try:
        response: pb.WatchResponse = take(request)
    except AgentError as error:
        failure = failure_of(error)
        assert failure.code != "INTERNAL"
        assert len(failure.message) < 500
        response = stream_messages.failure_response(failure)
    return response


@given(request=_REQUEST, zoom=_ZOOM)
def test_messages(request: pb.WatchRequest, zoom: pb.Zoom) -> None:
    assert reply(request).SerializeToString()
    with contextlib.suppress(AgentError):
        zoom_messages.zoom_from_message(zoom)


SOME_REQUESTS = [
    pb.WatchRequest(
        frame=pb.Frame(
            sequence=7,
            capture_time_ns=-1,
            encoded_image=PICTURES[0],
            boxes=pb.BoxList(boxes=[pb.Box(x1=1, y1=1, x2=5, y2=5)]),
            ego_motion=pb.EgoMotion(xx=1, yy=1),
        )
    ),
    pb.WatchRequest(
        set_queries=pb.SetQueries(
            queries=[pb.Query(id="a", text="dog", task=2), pb.Query(text="cat", constrained=True)]
        )
    ),
    pb.WatchRequest(open=pb.OpenStream(resume_token="x", num_sent=3, last_sent_sequence=2)),
]
SERIALIZED = [request.SerializeToString() for request in SOME_REQUESTS]


@given(sent=st.one_of(mutated(SERIALIZED), st.binary(max_size=100)))
def test_bytes_of_messages(sent: bytes) -> None:
    try:
        request = pb.WatchRequest.FromString(sent)
    except DecodeError:
        return
    if request.WhichOneof("message") in ("frame", "set_queries", "open", "set_policy"):
        assert reply(request).SerializeToString()


# ---- shapes of messages: counts and nesting ----

SHAPES = bounds_by_method(Counts(queries=4, boxes=20, turns=5, regions=10))
_SHAPE_NAMES = st.sampled_from(sorted(SHAPES))
_MOST_FIELDS = 10_000


_LEAF = st.one_of(
    st.just(b""),
    st.binary(max_size=20),
    st.builds(lambda number, value: varint(number << 3) + varint(value), st.integers(1, 12), _LONG),
    st.builds(lambda number: varint(number << 3 | 1) + bytes(8), st.integers(1, 12)),
    st.builds(lambda number: varint(number << 3 | 5) + bytes(4), st.integers(1, 12)),
)
_COUNT = st.one_of(st.integers(0, 4), st.sampled_from([20, 100, 1000, 20_000]))
"""How often a field stands; what is within it stands as often as that times its own count."""


def _repeated(parts: list[tuple[int, bytes, int]]) -> bytes:
    """Fields one after the other, each so often, but in all no more than a megabyte."""
    out = bytearray()
    for number, content, count in parts:
        one = delimited(number, content)
        out += one * min(count, 1 + (1_000_000 - min(len(out), 1_000_000)) // len(one))
    return bytes(out)


_MESSAGE_SHAPE = st.recursive(
    _LEAF,
    lambda inner: st.builds(
        _repeated, st.lists(st.tuples(st.integers(1, 12), inner, _COUNT), max_size=3)
    ),
    max_leaves=6,
)


@given(name=_SHAPE_NAMES, content=_MESSAGE_SHAPE)
@example(
    name="/vision_agent.v1.VisionAgent/Watch", content=delimited(2, delimited(1, b"") * 200_000)
)
@example(
    name="/vision_agent.v1.VisionAgent/Ground", content=delimited(2, delimited(7, b"") * 200_000)
)
@example(name="/vision_agent.v1.VisionAgent/Ground", content=b"\x0b" * 100)
def test_shapes_of_messages(name: str, content: bytes) -> None:
    """What passes is small in every count; what does not was found out in a bounded walk."""
    started_s = time.thread_time()
    try:
        check_message(content, SHAPES[name])
    except (InvalidRequest, InvalidQuery, InvalidBoxes):
        return
    finally:
        # A microsecond or two for each field, and never for more than so many.
        assert time.thread_time() - started_s < 0.15
    kind = pb.DESCRIPTOR.services_by_name["VisionAgent"].methods_by_name[name.rsplit("/", 1)[1]]
    try:
        message = GetMessageClass(kind.input_type).FromString(content)
    except DecodeError:
        return
    assert _num_messages(message) <= _MOST_FIELDS


def _num_messages(message: Message) -> int:
    """A message and all within it."""
    total = 1
    for known, value in message.ListFields():
        if known.message_type is not None:
            several = value if known.is_repeated else [value]
            total += sum(_num_messages(inner) for inner in several)
    return total


# ---- answers ----

_PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["<ground>", "</ground>", "<objects>", "</objects>", "<think>", "</think>", "<answer>",
             "</answer>", "dog", " ", "<region0>", "<region2>", "<region99>", "<region",
             "1234567890", "٣", "²", "\n", ">"]
        ),
        st.text(max_size=5),
    ),
    max_size=20,
)  # fmt: skip
_TASKS = st.sampled_from(
    [Task.detect("dog"), Task.count("dog"), Task.describe_region(1), Task.describe_image(),
     Task.find_similar(0), Task.reason("Why?"), Task.chat("Hi")]
)  # fmt: skip
BOXES = Proposals(
    np.array([[0, 0, 5, 5], [5, 5, 9, 9], [1, 1, 3, 3]], dtype=np.float32),
    np.ones(3, dtype=np.float32),
)


@given(task=_TASKS, pieces=_PIECES, truncated=st.booleans())
@example(task=Task.count("dog"), pieces=["There are 99999999999 dogs"], truncated=False)
@example(
    task=Task.detect("dog"),
    pieces=["<ground>dog</ground><objects>", f"<region{'9' * 5000}>", "</objects>"],
    truncated=False,
)
def test_answers(task: Task, pieces: list[str], truncated: bool) -> None:
    generation = Generation(tuple(pieces), (0.5,) * len(pieces), truncated, 1, 0, 1)
    answer = parse_answer(task, generation, BOXES)
    assert set(answer.detections.region.tolist()) <= {0, 1, 2}
    query = StandingQuery("q", task, 0)
    assert messages.answer_to_message(query, answer, BOXES).SerializeToString()


# ---- what comes back from the cache's server ----

KEY = "key"
FEATURES = FrameFeatures(
    width=64,
    height=48,
    proposals=BOXES,
    image_tokens=np.ones((4, 2), dtype=np.float32),
    grid=(4, 4),
    primary_regions=np.ones((3, 2), dtype=np.float32),
    auxiliary_regions=np.ones((3, 2), dtype=np.float16),
    key=KEY,
)
ENTRY = encode_features(FEATURES, KEY)
_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 70), st.integers(), st.floats(),
        st.text(max_size=5),
        st.sampled_from(["F32", "BF16", "xyxy", KEY]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


def opened() -> tuple[dict[str, Any], bytes]:
    """The entry's header and what follows it."""
    start = 32 + 8
    end = start + int.from_bytes(ENTRY[32:start], "little")
    return json.loads(ENTRY[start:end]), ENTRY[end:]


def signed(header: bytes, buffers: bytes) -> bytes:
    """An entry by somebody who knows how to compute the checksum."""
    body = len(header).to_bytes(8, "little") + header + buffers
    return hashlib.blake2b(body, digest_size=32).digest() + body


def forged(name: str = "xyxy", shape: object = None, **changed: object) -> bytes:
    """The entry with something else in its header, or another shape of one of its arrays."""
    header, buffers = opened()
    if shape is not None:
        header[name]["shape"] = shape
    about = json.loads(header["__metadata__"]["features"])
    header["__metadata__"]["features"] = json.dumps(about | changed)
    return signed(json.dumps(header).encode(), buffers)


@st.composite
def forged_entries(draw: st.DrawFn) -> bytes:
    """Entries whose checksum is right and whose header is not."""
    header, buffers = opened()
    about = json.loads(header["__metadata__"]["features"])
    for name in draw(st.lists(st.sampled_from(["key", "size", "grid", "seen"]), max_size=2)):
        about[name] = draw(_JSON)
    header["__metadata__"]["features"] = json.dumps(about)
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=2)):
        field = draw(st.sampled_from(["shape", "dtype", "data_offsets", ""]))
        if field and isinstance(header[name], dict) and field in header[name]:
            header[name][field] = draw(_JSON)
        else:
            header[name] = draw(_JSON)
    if draw(st.booleans()):
        buffers = buffers[: draw(st.integers(0, len(buffers)))]
    return signed(json.dumps(header).encode(), buffers)


@given(
    blob=st.one_of(
        mutated([ENTRY]), forged_entries(), st.builds(signed, st.binary(max_size=60), st.binary())
    )
)
@example(blob=signed(b"[" * 100_000, b""))
@example(blob=forged("objectness", shape=[1_745_509_011, "000"]))
@example(blob=forged("objectness", shape=[0]))
@example(blob=forged("primary_regions", shape=[1, 2]))
@example(blob=forged(size=[10**400, 48]))
def test_cache_entries(blob: bytes) -> None:
    try:
        features = decode_features(blob, KEY)
    except CorruptFeatures:
        return
    assert features.key == KEY
    num_boxes = len(features.proposals)
    assert features.proposals.xyxy.shape == (num_boxes, 4)
    assert len(features.primary_regions) == len(features.auxiliary_regions) == num_boxes
    assert features.image_tokens.ndim == features.primary_regions.ndim == 2
    assert min(features.width, features.height, *features.grid) >= 1
    assert all(math.isfinite(side) for side in features.grid)


_SNAPSHOT_KEYS = ["policy", "queries", "epoch", "books", "num_results", "tracks", "last"]
_SNAPSHOT = st.dictionaries(st.sampled_from(_SNAPSHOT_KEYS), _JSON).map(
    lambda value: json.dumps(value | {"version": 1}).encode()
)


@given(encoded=st.one_of(st.binary(max_size=60), _SNAPSHOT))
@example(encoded=b"[" * 100_000)
@example(encoded=json.dumps({"version": 1, "epoch": math.inf}).encode())
def test_snapshots(encoded: bytes) -> None:
    assert read_snapshot(encoded) is None
