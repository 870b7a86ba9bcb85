"""Bounds on a message's bytes and counts, checked in its wire format before it is parsed.

A message of 33 MB may hold one picture or sixteen million empty turns of a conversation; parsing
tells them apart too late. Here the fields are walked without being decoded: what is no picture
fits `max_bytes`, every repeated field has a count, every other field stands once, and the walk
itself ends after `_MAX_FIELDS`. Knows protobuf's wire format and our schema; knows no call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from groundstream.errors import AgentError, InvalidBoxes, InvalidQuery, InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb

MAX_BYTES = 256 * 1024
"""Default for all of a message but its picture."""
UNREADABLE = "the bytes of the request are not the message this method takes"

_MAX_FIELDS = 10_000
"""Of one message and those within it; walking one takes about a microsecond."""
_MAX_UNKNOWN = 64
"""Fields of a newer client, in each message."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a varint that is not over yet."""
_UINT64 = 2**64 - 1
"""Ten bytes hold 70 bits, of which protobuf keeps 64."""
_PICTURES = frozenset({"vision_agent.v1.Frame.encoded_image", "vision_agent.v1.VideoPacket.data"})
_FRAME, _PACKET = 1, 12
"""Members of a stream request that are frames in the books."""
_NOT_ENTERED = frozenset({"vision_agent.v1.Box"})
"""Messages of plain numbers, of which there may be many."""


@dataclass(frozen=True)
class Counts:
    """How many there may be of what repeats."""

    queries: int
    boxes: int
    turns: int = 100
    regions: int = 1000

    def by_field(self) -> Mapping[str, tuple[int, type[AgentError], str]]:
        """Most, the error of more, and what they are called, by a field's full name.

        A few more than allowed pass, so that the reader of the message can count them exactly.
        """
        queries = (4 * self.queries, InvalidQuery, "queries")
        return {
            "vision_agent.v1.GroundRequest.queries": queries,
            "vision_agent.v1.GroundAnytimeRequest.queries": queries,
            "vision_agent.v1.SetQueries.queries": queries,
            "vision_agent.v1.Query.history": (4 * self.turns, InvalidQuery, "earlier turns"),
            "vision_agent.v1.Query.mentioned_regions": (
                4 * self.regions,
                InvalidQuery,
                "mentioned regions",
            ),
            "vision_agent.v1.BoxList.boxes": (4 * self.boxes, InvalidBoxes, "boxes"),
        }


@dataclass(frozen=True)
class _Field:
    most: int
    error: type[AgentError]
    what: str
    is_picture: bool = False
    inner: Shape | None = None
    is_packed: bool = False


@dataclass
class Shape:
    """What one message type may hold; made once per type, see `shape_of`."""

    fields: dict[int, _Field] = field(default_factory=dict)


def shape_of(descriptor: Descriptor, counts: Counts) -> Shape:
    """The bounds of a message type and of all within it."""
    return _shape(descriptor, counts.by_field())


def _shape(
    descriptor: Descriptor, counts: Mapping[str, tuple[int, type[AgentError], str]]
) -> Shape:
    shape = Shape()
    for known in descriptor.fields:
        most, error, what = counts.get(known.full_name, (1, InvalidRequest, known.name))
        nested = known.message_type
        inner = None
        if nested is not None and nested.full_name not in _NOT_ENTERED:
            inner = _shape(nested, counts)
        is_number = known.type not in (
            FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES
        )  # fmt: skip
        shape.fields[known.number] = _Field(
            most,
            error,
            what,
            is_picture=known.full_name in _PICTURES,
            inner=inner,
            is_packed=is_number and known.is_repeated,
        )
    return shape


def check_message(content: bytes, shape: Shape, *, max_bytes: int = MAX_BYTES) -> None:
    """Walk a message and refuse what is out of bounds.

    Raises:
        InvalidRequest: not protobuf, too many bytes beside the picture, or too many fields.
        InvalidQuery, InvalidBoxes: too many of what repeats; the walk ends there.
    """
    walk = _Walk(content)
    walk.enter(shape, 0, len(content))
    beside = len(content) - walk.picture_bytes
    if beside > max_bytes:
        raise InvalidRequest(
            f"the message has {beside} bytes beside its picture, the limit is {max_bytes}; "
            "shorten what it says"
        )


def number_in(content: bytes, *path: int) -> int | None:
    """The varint at a path of field numbers, such as a frame's sequence; None: not found soon."""
    walk, start, end = _Walk(content), 0, len(content)
    try:
        for depth, wanted in enumerate(path):
            position = start
            while position < end:
                number, kind, start, position, value = walk.next_field(position, end)
                if number != wanted:
                    continue
                if depth == len(path) - 1:
                    return value & _UINT64 if kind == _VARINT else None
                end = position
                break
            else:
                return None
    except InvalidRequest:
        return None
    return None


class RefusedMessage(Exception):
    """A message of a stream that was not parsed, with what its sender knows it by."""

    def __init__(self, error: AgentError, content: bytes) -> None:
        super().__init__(str(error))
        self.error = error
        member = first_field(content)
        self.is_packet = member == _PACKET
        self.is_frame = self.is_packet or member == _FRAME
        self.sequence = number_in(content, member or 0, 1) if self.is_frame else None
        """Of a frame; frames write it first."""
        self.change_id = None if self.is_frame else number_in(content, member or 0, 2)
        """Of a change of the queries or the policy."""


def first_field(content: bytes) -> int | None:
    """The number of the first field: which member of its `oneof` a stream request holds."""
    try:
        return _Walk(content).next_field(0, len(content))[0] if content else None
    except InvalidRequest:
        return None


class _Walk:
    """One pass over a message."""

    def __init__(self, content: bytes) -> None:
        self.picture_bytes = 0
        self._content = content
        self._num_fields = 0

    def enter(self, shape: Shape, position: int, end: int) -> None:
        counted: dict[int, int] = {}
        num_unknown = 0
        while position < end:
            number, kind, start, position, _ = self.next_field(position, end)
            known = shape.fields.get(number)
            if known is None:
                num_unknown += 1
                if num_unknown > _MAX_UNKNOWN:
                    raise InvalidRequest(f"more than {_MAX_UNKNOWN} fields are unknown here")
                continue
            count = counted.get(number, 0) + self._count(known, kind, start, position)
            counted[number] = count
            if count > known.most:
                raise known.error(_too_many(known))
            if kind != _BYTES:
                continue
            if known.is_picture:
                self.picture_bytes += position - start
            elif known.inner is not None:
                self.enter(known.inner, start, position)

    def next_field(self, position: int, end: int) -> tuple[int, int, int, int, int]:
        """(number, wire type, where its content begins, where it ends, its value if a varint)."""
        self._num_fields += 1
        if self._num_fields > _MAX_FIELDS:
            raise InvalidRequest(f"the message has more than {_MAX_FIELDS} fields; send fewer")
        tag, start = self._varint(position, end)
        number, kind = tag >> 3, tag & 7
        value, stop = 0, start
        if kind == _VARINT:
            value, stop = self._varint(start, end)
        elif kind == _BYTES:
            length, start = self._varint(start, end)
            stop = start + length
        elif kind == _FIXED32:
            stop = start + 4
        elif kind == _FIXED64:
            stop = start + 8
        else:
            # Groups, which our schema never had, nest without bound.
            raise InvalidRequest(UNREADABLE)
        if stop > end or number == 0:
            raise InvalidRequest(UNREADABLE)
        return number, kind, start, stop, value

    def _count(self, known: _Field, kind: int, start: int, stop: int) -> int:
        if not (known.is_packed and kind == _BYTES):
            return 1
        if stop - start > 10 * known.most:
            return known.most + 1
        return len(self._content[start:stop].translate(None, _CONTINUED))

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        content, value, shift = self._content, 0, 0
        while position < end and shift < 70:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise InvalidRequest(UNREADABLE)


def _too_many(known: _Field) -> str:
    if known.most == 1:
        return f"the field {known.what} stands more than once"
    return f"more than {known.most} {known.what} in one message; send fewer"


def bounds_by_method(counts: Counts) -> dict[str, Shape]:
    """The bounds of every RPC of ours, by its path."""
    service = pb.DESCRIPTOR.services_by_name["VisionAgent"]
    return {
        f"/{service.full_name}/{method.name}": shape_of(method.input_type, counts)
        for method in service.methods
    }
