"""A session as bytes and back: queries, epochs, policy, books, tracks and what was last said.

JSON with a version; numbers of a feature are 16-bit floats in base64. Nothing is ever unpickled,
and a snapshot that cannot be read is no snapshot. Pictures are not kept: a resumed stream looks
for its objects where they were.
"""

from __future__ import annotations

import base64
import dataclasses
import json
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
    tracks = [(track, True) for track in follower.tracker.tracks]
    tracks += [(track, False) for track in follower.tracker.remembered]
    policy = dataclasses.asdict(session.policy)
    value = {
        "version": VERSION,
        "policy": policy | {"drop": policy["drop"].value, "mode": policy["mode"].value},
        "queries": [_query_to_json(query) for query in session.queries],
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
            for query, said in follower.last.items()
        ],
        "tracks": [_track_to_json(track) | {"in_sight": seen} for track, seen in tracks],
        "next_track_id": follower.tracker.next_id,
    }
    return json.dumps(value, separators=(",", ":")).encode()


def read_snapshot(encoded: bytes) -> Snapshot | None:
    """A snapshot from bytes; None when they are damaged or of another version."""
    try:
        value = json.loads(encoded)
        if value["version"] != VERSION:
            return None
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
            tracks=tuple((_track_from_json(t), bool(t["in_sight"])) for t in value["tracks"]),
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


def _track_to_json(track: Track) -> dict[str, Any]:
    return {
        "id": track.id,
        "box": track.box.xyxy.tolist(),
        "velocity": track.box.velocity.tolist(),
        "appearance": _to_base64(track.appearance),
        "misses": track.misses,
        "claims": [
            {
                **{name: getattr(claim, name) for name in ("label", "confidence", "region")},
                "objectness": claim.objectness,
                "proposal": claim.proposal,
                "query": _query_to_json(claim.query),
                "evidence": dataclasses.astuple(claim.evidence),
            }
            for claim in track.claims.values()
        ],
    }


def _track_from_json(value: dict[str, Any]) -> Track:
    box = BoxFilter(np.array(value["box"], dtype=np.float32).reshape(4), _RESTORED_NOISE)
    box.velocity = np.array(value["velocity"], dtype=np.float32).reshape(4)
    claims = [
        Claim(
            query=_query_from_json(claim["query"]),
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
