"""A session as bytes and back: queries, epochs, policy, books, tracks and what was last said.

JSON with a version; numbers of a feature are 16-bit floats in base64. Nothing is ever unpickled,
and a snapshot that cannot be read is no snapshot. Pictures are not kept: a resumed stream looks
for its objects where they were.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from agent.detections import FloatArray
from agent.settings import FollowSettings
from agent.streaming.answers import Claim
from agent.streaming.box_filter import BoxFilter
from agent.streaming.follower import Follower, LastAnswer
from agent.streaming.policy import StreamPolicy
from agent.streaming.session import Books, Session, StandingQuery
from agent.streaming.tracker import Track, Tracker

VERSION: Literal[2] = 2
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


def take_snapshot(session: Session[Any], follower: Follower) -> bytes:
    """The session as it is now."""
    tracks = [_stored_track(track, in_sight=True) for track in follower.tracker.tracks]
    tracks += [_stored_track(track, in_sight=False) for track in follower.tracker.remembered]
    stored = _StoredSession(
        version=VERSION,
        policy=session.policy,
        queries=tuple(session.queries),
        epoch=session.epoch,
        books=session.books,
        num_results=session.num_results,
        last=tuple(follower.last.items()),
        tracks=tuple(tracks),
        next_track_id=follower.tracker.next_id,
    )
    return _STORED.dump_json(stored)


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
            tracks=tuple((_restored_track(track), track.in_sight) for track in stored.tracks),
            next_track_id=stored.next_track_id,
        )
    except (ValueError, ArithmeticError):  # A ValidationError is a ValueError.
        return None


_CONFIG = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
_Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class _StoredTrack:
    """A track without what only a running stream knows."""

    id: int
    box: _Corners
    velocity: _Corners
    appearance: str
    """16-bit floats, little-endian, in base64."""
    misses: dict[str, int]
    claims: tuple[Claim, ...]
    in_sight: bool


@dataclass(frozen=True)
class _StoredSession:
    """What is written, by name and type."""

    version: Literal[2]
    policy: StreamPolicy
    queries: tuple[StandingQuery, ...]
    epoch: int
    books: Books
    num_results: int
    last: tuple[tuple[StandingQuery, LastAnswer], ...]
    tracks: tuple[_StoredTrack, ...]
    next_track_id: int

    __pydantic_config__ = _CONFIG


_STORED = TypeAdapter(_StoredSession)


def _stored_track(track: Track, *, in_sight: bool) -> _StoredTrack:
    return _StoredTrack(
        track.id,
        _corners(track.box.xyxy),
        _corners(track.box.velocity),
        base64.b64encode(track.appearance.astype("<f2").tobytes()).decode(),
        dict(track.misses),
        tuple(track.claims.values()),
        in_sight,
    )


def _restored_track(stored: _StoredTrack) -> Track:
    box = BoxFilter(np.array(stored.box, dtype=np.float32), _RESTORED_NOISE)
    box.velocity = np.array(stored.velocity, dtype=np.float32)
    appearance = np.frombuffer(base64.b64decode(stored.appearance), dtype="<f2")
    return Track(
        id=stored.id,
        box=box,
        appearance=appearance.astype(np.float32),
        claims={claim.query.id: claim for claim in stored.claims},
        supported_s=_BEFORE_S,
        named_s=0.0,
        misses=stored.misses,
    )


def _corners(values: FloatArray) -> _Corners:
    x1, y1, x2, y2 = values.tolist()
    return x1, y1, x2, y2
