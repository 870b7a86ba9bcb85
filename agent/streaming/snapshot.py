"""A session as bytes and back: queries, epochs, policy, books, tracks and what was last said.

JSON with a version; numbers of a feature are 16-bit floats in base64. Nothing is ever unpickled,
and a snapshot that cannot be read is no snapshot. Pictures are not kept: a resumed stream looks
for its objects where they were.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import to_json

from agent.detections import FloatArray
from agent.settings import FollowSettings
from agent.streaming.answers import Box, Claim, Evidence
from agent.streaming.box_filter import BoxFilter
from agent.streaming.follower import Follower, LastAnswer
from agent.streaming.policy import StreamPolicy
from agent.streaming.session import Books, Session, StandingQuery
from agent.streaming.tracker import Track, Tracker

VERSION: Literal[3] = 3
MAX_TRACKS = 400
"""Objects in one snapshot: those in sight before those out of it, new ones before old ones."""
MAX_BYTES = 2_000_000
"""Of the objects in one snapshot."""
_RESTORED_NOISE = 0.15
"""Standard deviation, in box sizes, of a box that nobody has seen for a while."""
_BEFORE_S = -0.01
"""A resumed stream's time begins at zero; its objects were seen before that."""


@dataclass(frozen=True)
class Snapshot:
    """What is needed to go on with a session elsewhere."""

    policy: StreamPolicy
    queries: tuple[StandingQuery, ...]
    epoch: int
    books: Books
    num_results: int
    last: dict[StandingQuery, LastAnswer]
    tracks: tuple[tuple[Track, bool], ...]
    """Each with whether it was in sight."""
    next_track_id: int

    def restore(self, session: Session[Any], settings: FollowSettings) -> Follower:
        """Fill a new session; returns the follower that goes with it."""
        session.set_policy(self.policy)
        session.restore(self.queries, self.epoch, self.books, self.num_results)
        tracker = Tracker(settings.tracker, self.tracks, self.next_track_id)
        follower = Follower(settings, tracker)
        follower.last.update(self.last)
        return follower


class SnapshotWriter:
    """Snapshots of one session, one after the other.

    What costs time is the features of its objects: they are encoded when they change, in a thread,
    and the least important objects are left out of a snapshot that would become too large.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._features: dict[int, tuple[FloatArray, str]] = {}
        """By track: what was encoded last, which is never changed in place, and its code."""

    def take(self, session: Session[Any], follower: Follower) -> Callable[[], bytes]:
        """The session as it is now: copies what moves, and returns the work that is left.

        The work belongs in a thread; one at a time.
        """
        live = [(track, True) for track in reversed(follower.tracker.tracks)]
        lost = [(track, False) for track in reversed(follower.tracker.remembered)]
        tracks = [_copied(track, seen) for track, seen in (live + lost)[:MAX_TRACKS]]
        stored = _StoredSession(
            version=VERSION,
            policy=session.policy,
            queries=tuple(session.queries),
            epoch=session.epoch,
            books=session.books,
            num_results=session.num_results,
            last=tuple(follower.last.items()),
            claimed=(),
            tracks=(),
            next_track_id=follower.tracker.next_id,
        )
        # The counters go on while the thread writes; everything else is replaced, never changed.
        return functools.partial(self._encode, _STORED.dump_python(stored, mode="json"), tracks)

    def _encode(self, value: dict[str, Any], tracks: list[_CopiedTrack]) -> bytes:
        known: dict[StandingQuery, int] = {}
        encoded: list[bytes] = []
        size, features = 0, {}
        for track in tracks:
            features[track.id] = self._feature(track)
            text = _STORED_TRACK.dump_json(_stored_track(track, features[track.id][1], known))
            size += len(text)
            if size > self._max_bytes:
                break
            encoded.append(text)
        self._features = features
        del value["tracks"]
        value["claimed"] = _QUERIES.dump_python(tuple(known), mode="json")
        head = to_json(value, inf_nan_mode="constants")
        # The oldest first, as they were.
        return head[:-1] + b',"tracks":[' + b",".join(reversed(encoded)) + b"]}"

    def _feature(self, track: _CopiedTrack) -> tuple[FloatArray, str]:
        before = self._features.get(track.id)
        if before is not None and before[0] is track.appearance:
            return before
        return track.appearance, _to_base64(track.appearance)


@dataclass(frozen=True)
class _CopiedTrack:
    """A track as it was at one moment; arrays of it are copies, or never change."""

    id: int
    box: FloatArray
    velocity: FloatArray
    appearance: FloatArray
    misses: dict[str, int]
    claims: tuple[Claim, ...]
    in_sight: bool


def _copied(track: Track, in_sight: bool) -> _CopiedTrack:
    return _CopiedTrack(
        track.id,
        track.box.xyxy.copy(),
        track.box.velocity.copy(),
        track.appearance,
        dict(track.misses),
        tuple(track.claims.values()),
        in_sight,
    )


def take_snapshot(session: Session[Any], follower: Follower) -> bytes:
    """The session as it is now, at once."""
    return SnapshotWriter().take(session, follower)()


def read_snapshot(encoded: bytes) -> Snapshot | None:
    """A snapshot from bytes; None when they are damaged or of another version."""
    try:
        stored = _STORED.validate_json(encoded)
        return Snapshot(
            policy=stored.policy,
            queries=stored.queries,
            epoch=stored.epoch,
            books=stored.books,
            num_results=stored.num_results,
            last=dict(stored.last),
            tracks=tuple(
                (_restored_track(track, stored.claimed), track.in_sight) for track in stored.tracks
            ),
            next_track_id=stored.next_track_id,
        )
    except (ValueError, ArithmeticError, IndexError):  # A ValidationError is a ValueError.
        return None


_CONFIG = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
_Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class _StoredClaim:
    """A claim whose query stands once for all claims, in the session's list."""

    query: Annotated[int, Field(ge=0)]
    label: str
    confidence: float
    region: int
    objectness: float
    proposal: Box
    evidence: Evidence


@dataclass(frozen=True)
class _StoredTrack:
    """A track without what only a running stream knows."""

    id: int
    box: _Corners
    velocity: _Corners
    appearance: str
    """16-bit floats, little-endian, in base64."""
    misses: dict[str, int]
    claims: tuple[_StoredClaim, ...]
    in_sight: bool

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class _StoredSession:
    """What is written, by name and type."""

    version: Literal[3]
    policy: StreamPolicy
    queries: tuple[StandingQuery, ...]
    epoch: int
    books: Books
    num_results: int
    last: tuple[tuple[StandingQuery, LastAnswer], ...]
    claimed: tuple[StandingQuery, ...]
    """Every query that a claim is about, once."""
    tracks: tuple[_StoredTrack, ...]
    next_track_id: int

    __pydantic_config__ = _CONFIG


_STORED = TypeAdapter(_StoredSession)
_STORED_TRACK = TypeAdapter(_StoredTrack)
_QUERIES = TypeAdapter(tuple[StandingQuery, ...])


def _stored_track(
    track: _CopiedTrack, appearance: str, known: dict[StandingQuery, int]
) -> _StoredTrack:
    """`known`: every query once, with its place; those of new claims are added."""
    claims = tuple(
        _StoredClaim(
            known.setdefault(claim.query, len(known)), claim.label, claim.confidence,
            claim.region, claim.objectness, claim.proposal, claim.evidence,
        )
        for claim in track.claims
    )  # fmt: skip
    return _StoredTrack(
        track.id, _corners(track.box), _corners(track.velocity), appearance, track.misses, claims,
        track.in_sight,
    )  # fmt: skip


def _restored_track(stored: _StoredTrack, claimed: tuple[StandingQuery, ...]) -> Track:
    box = BoxFilter(np.array(stored.box, dtype=np.float32), _RESTORED_NOISE)
    box.velocity = np.array(stored.velocity, dtype=np.float32)
    appearance = np.frombuffer(base64.b64decode(stored.appearance), dtype="<f2")
    claims = [
        Claim(
            query=claimed[claim.query], label=claim.label, confidence=claim.confidence,
            region=claim.region, objectness=claim.objectness, proposal=claim.proposal,
            evidence=claim.evidence,
        )
        for claim in stored.claims
    ]  # fmt: skip
    return Track(
        id=stored.id,
        box=box,
        appearance=appearance.astype(np.float32),
        claims={claim.query.id: claim for claim in claims},
        supported_s=_BEFORE_S,
        named_s=0.0,
        misses=stored.misses,
    )


def _to_base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()


def _corners(values: FloatArray) -> _Corners:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2
