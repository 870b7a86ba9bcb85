"""A session as bytes and back: queries, epochs, policy, books, tracks and what was last said.

JSON with a version; numbers of a feature are 16-bit floats in base64. Nothing is ever unpickled,
and a snapshot that cannot be read is no snapshot. Pictures are not kept: a resumed stream looks
for its objects where they were.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.detections import FloatArray
from agent.errors import AgentError
from agent.parsing import AnswerStatus
from agent.prompts import Exchange, Task, TaskKind
from agent.settings import FollowSettings
from agent.streaming.answers import Claim, Evidence
from agent.streaming.box_filter import BoxFilter
from agent.streaming.follower import Follower, LastAnswer
from agent.streaming.policy import AnswerMode, DropPolicy, StreamPolicy
from agent.streaming.session import Books, Session, StandingQuery
from agent.streaming.tracker import Track, Tracker

VERSION = 2
_READABLE = (1, 2)
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
        """The session as it is now: holds still what moves, and returns the work that is left.

        The work belongs in a thread; one at a time.
        """
        live = [(track, True) for track in reversed(follower.tracker.tracks)]
        lost = [(track, False) for track in reversed(follower.tracker.remembered)]
        tracks = [_held(track, seen) for track, seen in (live + lost)[:MAX_TRACKS]]
        policy = dataclasses.asdict(session.policy)
        queries, last = session.queries, list(follower.last.items())
        value = {
            "version": VERSION,
            "policy": policy | {"drop": policy["drop"].value, "mode": policy["mode"].value},
            "queries": [_query_to_json(query) for query in queries],
            "epoch": session.epoch,
            "books": dataclasses.asdict(session.books),
            "num_results": session.num_results,
            "last": [
                [
                    _query_to_json(query),
                    said.status.value,
                    said.text,
                    dataclasses.astuple(said.evidence),
                ]
                for query, said in last
            ],
            "next_track_id": follower.tracker.next_id,
        }
        return functools.partial(self._encode, value, tracks)

    def _encode(self, value: dict[str, Any], tracks: list[_HeldTrack]) -> bytes:
        known: dict[StandingQuery, int] = {}
        encoded, size = [], 0
        features = {}
        for track in tracks:
            features[track.id] = self._feature(track)
            entry = _track_to_json(track, features[track.id][1], known)
            text = json.dumps(entry, separators=(",", ":"))
            size += len(text)
            if size > self._max_bytes:
                break
            encoded.append(text)
        self._features = features
        value["claimed"] = [_query_to_json(query) for query in known]
        head = json.dumps(value, separators=(",", ":"))
        # The oldest first, as they were.
        return f'{head[:-1]},"tracks":[{",".join(reversed(encoded))}]}}'.encode()

    def _feature(self, track: _HeldTrack) -> tuple[FloatArray, str]:
        before = self._features.get(track.id)
        if before is not None and before[0] is track.appearance:
            return before
        return track.appearance, _to_base64(track.appearance)


@dataclass(frozen=True)
class _HeldTrack:
    """A track as it was at one moment; arrays of it are copies, or never change."""

    id: int
    box: FloatArray
    velocity: FloatArray
    appearance: FloatArray
    misses: dict[str, int]
    claims: tuple[Claim, ...]
    in_sight: bool


def _held(track: Track, in_sight: bool) -> _HeldTrack:
    return _HeldTrack(
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
        value = json.loads(encoded)
        if value["version"] not in _READABLE:
            return None
        claimed = [_query_from_json(query) for query in value.get("claimed", ())]
        policy = value["policy"]
        drop, mode = DropPolicy(policy["drop"]), AnswerMode(policy["mode"])
        return Snapshot(
            policy=StreamPolicy(**(policy | {"drop": drop, "mode": mode})),
            queries=tuple(_query_from_json(query) for query in value["queries"]),
            epoch=int(value["epoch"]),
            books=Books(**value["books"]),
            num_results=int(value["num_results"]),
            last={
                _query_from_json(query): LastAnswer(AnswerStatus(status), text, Evidence(*evidence))
                for query, status, text, evidence in value["last"]
            },
            tracks=tuple(
                (_track_from_json(t, claimed), bool(t["in_sight"])) for t in value["tracks"]
            ),
            next_track_id=int(value["next_track_id"]),
        )
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
        AgentError,
    ):  # fmt: skip
        return None


def _query_to_json(query: StandingQuery) -> dict[str, Any]:
    task = dataclasses.asdict(query.task)
    return {"id": query.id, "epoch": query.epoch, "task": task | {"kind": query.task.kind.value}}


def _query_from_json(value: dict[str, Any]) -> StandingQuery:
    plain = value["task"]
    task = Task(
        **plain
        | {
            "kind": TaskKind(plain["kind"]),
            "regions": tuple(plain["regions"]),
            "history": tuple(Exchange(**turn) for turn in plain["history"]),
            "drafts": tuple(plain["drafts"]),
        }
    )
    return StandingQuery(value["id"], task, int(value["epoch"]))


def _track_to_json(
    track: _HeldTrack, feature: str, known: dict[StandingQuery, int]
) -> dict[str, Any]:
    """`known`: every query once, with its place; those of new claims are added."""
    return {
        "id": track.id,
        "box": track.box.tolist(),
        "velocity": track.velocity.tolist(),
        "appearance": feature,
        "misses": track.misses,
        "claims": [
            {
                **{name: getattr(claim, name) for name in ("label", "confidence", "region")},
                "objectness": claim.objectness,
                "proposal": claim.proposal,
                "query": known.setdefault(claim.query, len(known)),
                "evidence": dataclasses.astuple(claim.evidence),
            }
            for claim in track.claims
        ],
        "in_sight": track.in_sight,
    }


def _claimed_query(value: Any, claimed: list[StandingQuery]) -> StandingQuery:
    """The query of a claim: its place in the list, or, in the first version, itself."""
    if isinstance(value, dict):
        return _query_from_json(value)
    if not isinstance(value, int) or value < 0:
        raise ValueError("no place in the list of queries")
    return claimed[value]


def _track_from_json(value: dict[str, Any], claimed: list[StandingQuery]) -> Track:
    box = BoxFilter(np.array(value["box"], dtype=np.float32).reshape(4), _RESTORED_NOISE)
    box.velocity = np.array(value["velocity"], dtype=np.float32).reshape(4)
    claims = [
        Claim(
            query=_claimed_query(claim["query"], claimed),
            label=str(claim["label"]),
            confidence=float(claim["confidence"]),
            region=int(claim["region"]),
            objectness=float(claim["objectness"]),
            proposal=_box_of(claim["proposal"]),
            evidence=Evidence(*claim["evidence"]),
        )
        for claim in value["claims"]
    ]
    return Track(
        id=int(value["id"]),
        box=box,
        appearance=_from_base64(value["appearance"]),
        claims={claim.query.id: claim for claim in claims},
        supported_s=_BEFORE_S,
        named_s=0.0,
        misses={str(name): int(count) for name, count in value["misses"].items()},
    )


def _box_of(values: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def _to_base64(vector: FloatArray) -> str:
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()


def _from_base64(text: str) -> FloatArray:
    return np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float32)
