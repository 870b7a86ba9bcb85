"""The fast path of a stream: every frame answered at once from what key frames have found.

Key frames are answered elsewhere and later; in between, each frame is looked at for a few
milliseconds and all tracks are moved to it. Plain calls and no clock of its own, so that a
recorded stream replays to the bit. Knows no wire, no models and no event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, Proposals, box_iou
from agent.frame import Picture
from agent.frame_summary import FrameSummary
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.settings import FollowSettings
from agent.streaming.answers import Box, Claim, Evidence, FollowedBox, QueryAnswer, Source
from agent.streaming.box_filter import BoxFilter
from agent.streaming.keyframe import KeyframeReason, KeyframeSelector, Situation
from agent.streaming.motion import Affine, PointField, compose, identity
from agent.streaming.policy import Priority
from agent.streaming.session import StandingQuery
from agent.streaming.tracker import Observation, Tracker
from agent.streaming.view import Sketch, View

_SAME_THING_IOU = 0.85
"""Proposals of different queries that overlap this much are one thing."""
_MAX_STEP_S = 10.0
_DEFINITE = (AnswerStatus.OK, AnswerStatus.NOT_PRESENT)


@dataclass(frozen=True)
class Keyframe:
    """A frame on its way through the language model, and how things stood when it was taken."""

    evidence: Evidence
    queries: tuple[StandingQuery, ...]
    places: dict[int, FloatArray]
    """Where each track was."""
    reason: KeyframeReason
    sketch: Sketch | None
    """What the frame looked like."""
    size: FloatArray | None = None
    """(2,) the frame's width and height in pixels, where it was looked at."""


@dataclass(frozen=True)
class LastAnswer:
    """The newest thing the language model said to a query."""

    status: AnswerStatus
    text: str
    evidence: Evidence
    reply: str = ""
    """The words of `text`."""
    thought: str = ""
    count: int | None = None


@dataclass(frozen=True)
class _Reference:
    """The picture of the last key frame, to see what has changed since."""

    sketch: Sketch
    boxes: FloatArray
    camera: Affine
    """Movement since."""


class Follower:
    """What one stream knows about its scene."""

    def __init__(self, settings: FollowSettings, tracker: Tracker | None = None) -> None:
        self._settings = settings
        self.tracker = tracker or Tracker(settings.tracker)
        self.selector = KeyframeSelector(settings.keyframe)
        self.last: dict[StandingQuery, LastAnswer] = {}
        """By standing query."""
        self._points = PointField(settings.num_points)
        self._reference: _Reference | None = None
        self._sketch: Sketch | None = None
        self._clocks: tuple[int, int] | None = None
        self._size: FloatArray | None = None
        """(2,) width and height of the newest frame, pixels."""
        self._drift: NDArray[np.float64] = np.zeros(2)
        """Pixels per second by which the camera moves the middle of the picture."""
        self.now_s = 0.0
        """Time of the newest frame since the first, on the client's clock where it makes sense."""

    # ---- every frame ----

    def observe(
        self, frame: Picture, *, received_ns: int, ego_motion: Affine | None = None
    ) -> None:
        """Look at the next frame and move all tracks to it; takes a few milliseconds.

        Args:
            frame: the picture.
            received_ns: the server's clock when it came.
            ego_motion: (2, 3) how the camera moved since the frame observed before, if known.

        Raises:
            InvalidFrame: the body of the image is damaged; nothing has changed then.
        """
        view = View.of(frame, longest_px=self._settings.view_px)
        self.observe_view(
            view,
            capture_ns=frame.capture_time_ns,
            received_ns=received_ns,
            ego_motion=ego_motion,
        )

    def observe_view(
        self, view: View, *, capture_ns: int, received_ns: int, ego_motion: Affine | None = None
    ) -> None:
        """`observe` for a picture that has been decoded."""
        dt_s = self._step_s(capture_ns, received_ns)
        self.now_s += dt_s
        size = np.asarray(np.round(view.scale * view.grey.shape[::-1]), dtype=np.float32)
        if self._size is not None and not np.array_equal(size, self._size):
            self.tracker.rescale(size / self._size)
            self._points.rescale(size / self._size)
            ego_motion = None  # In which frame's pixels would it be?
        self._size = size
        motion = self._points.advance(view, self.tracker.boxes(), ego_motion)
        width, height = (round(side) for side in size.tolist())
        self.tracker.advance(dt_s, motion, width=width, height=height)
        self._drift = np.zeros(2)
        if motion is not None and dt_s > 0.0:
            self._drift = motion.shift_at(np.array([width, height]) / 2) / dt_s
        self._sketch = view.sketch()
        if self._reference is not None:
            step = identity() if motion is None else motion.camera
            old = self._reference
            self._reference = _Reference(old.sketch, old.boxes, compose(old.camera, step))

    def see_proposals(self, proposals: Proposals) -> None:
        """The newest frame's proposals, where they are quick enough to be had for every frame."""
        self.tracker.snap(proposals.xyxy)

    def ahead_s(self, *, capture_ns: int, received_ns: int) -> float:
        """How much later than the newest frame another one is, which nobody has looked at.

        By capture times, where they go forwards at all.
        """
        if self._clocks is None:
            return 0.0
        last = self._clocks
        captured_s, received_s = (capture_ns - last[0]) / 1e9, (received_ns - last[1]) / 1e9
        sensible = 0.0 < captured_s <= _MAX_STEP_S
        return captured_s if sensible else min(max(received_s, 0.0), _MAX_STEP_S)

    def answers(
        self, queries: Sequence[StandingQuery], *, ahead_s: float = 0.0
    ) -> list[QueryAnswer]:
        """What is known about the newest frame, one answer per query.

        Args:
            queries: the standing ones.
            ahead_s: about a frame so much later instead, if all goes on as it goes.
        """
        return [self._followed_answer(query, ahead_s) for query in queries]

    def keyframe_reason(
        self,
        queries: Sequence[StandingQuery],
        *,
        priority: Priority = Priority.NORMAL,
        max_age_s: float | None = None,
        ahead_s: float = 0.0,
    ) -> KeyframeReason | None:
        """Why the newest frame should be seen by the language model; None when it need not be.

        With `ahead_s`: a frame so much later, as far as that can be said before looking at it.
        """
        answered = [query in self.last for query in queries]
        return self.selector.reason(
            Situation(
                now_s=self.now_s + ahead_s,
                priority=priority,
                has_queries=bool(queries),
                all_unanswered=not any(answered),
                some_unanswered=not all(answered),
                change=self._change(),
                uncertainty=self.tracker.uncertainty(),
                max_age_s=max_age_s,
            )
        )

    # ---- key frames ----

    def begin_keyframe(
        self, evidence: Evidence, queries: Sequence[StandingQuery], reason: KeyframeReason
    ) -> Keyframe:
        """The newest frame is going to the language model, now or when that is free."""
        self._points.set_bookmark(evidence.sequence)
        if self._sketch is not None:
            self._reference = _Reference(self._sketch, self.tracker.boxes(), identity())
        places = self.tracker.places()
        return Keyframe(evidence, tuple(queries), places, reason, self._sketch, self._size)

    def expected(self, keyframe: Keyframe) -> list[FloatArray | None]:
        """Where the answer of each of a key frame's queries is likely to be in that frame.

        None for a query that has not been answered yet.
        """
        return [
            np.array(
                [keyframe.places[track.id] for track, _ in self.tracker.seen(query)
                 if track.id in keyframe.places],
                dtype=np.float32,
            ).reshape(-1, 4)
            if query in self.last
            else None
            for query in keyframe.queries
        ]  # fmt: skip

    def start_keyframe(self) -> None:
        """A key frame is before the language model from here on."""
        self.selector.started(self.now_s)

    def drop_keyframe(self, keyframe: Keyframe) -> None:
        """A key frame that has not been started will not be."""
        self._points.forget(keyframe.evidence.sequence)

    def finish_keyframe(
        self,
        keyframe: Keyframe,
        grounding: Grounding,
        standing: Sequence[StandingQuery],
        *,
        refused: Sequence[StandingQuery] = (),
    ) -> list[QueryAnswer]:
        """The language model has answered; returns its answers to the queries that still stand.

        Args:
            keyframe: from `begin_keyframe`.
            grounding: its answers, one for each of the key frame's queries.
            standing: the queries that stand now; what was said to others is dropped.
            refused: queries that could not be asked about this frame; they wait for the next key
                frame and call for none.
        """
        self.selector.finished(self.now_s)
        pairs = [
            (query, answer)
            for query, answer in zip(keyframe.queries, grounding.answers, strict=True)
            if query in standing
        ]
        appearance = _appearance(grounding.seen)
        found = _observations(pairs, grounding, keyframe.evidence, appearance)
        scale = self._scale_since(keyframe)
        boxes = np.array([seen.xyxy for seen in found], dtype=np.float32).reshape(-1, 4)
        since = self._points.since(keyframe.evidence.sequence, boxes * scale)
        looks = self._points.looks(keyframe.evidence.sequence, boxes)
        self._points.forget(keyframe.evidence.sequence)
        ids = self.tracker.update(
            [
                replace(seen, xyxy=seen.xyxy * scale, look=look)
                for seen, look in zip(found, looks, strict=True)
            ],
            asked=[query for query, answer in pairs if answer.status in _DEFINITE],
            places={number: box * scale for number, box in keyframe.places.items()},
            since=since,
            mean_appearance=appearance.mean(axis=0) if len(appearance) else None,
        )
        for query, answer in pairs:
            self.last[query] = LastAnswer(
                answer.status, answer.text, keyframe.evidence,
                answer.reply, answer.thought, answer.count,
            )  # fmt: skip
        for query in refused:
            self.last.setdefault(query, LastAnswer(AnswerStatus.PENDING, "", keyframe.evidence))
        self.keep_only(standing)
        return [_grounded_answer(query, answer, keyframe, found, ids) for query, answer in pairs]

    def abandon_keyframe(self, keyframe: Keyframe) -> None:
        """The language model could not answer."""
        self.selector.finished(self.now_s, failed=True)
        self._points.forget(keyframe.evidence.sequence)

    def keep_only(self, standing: Sequence[StandingQuery]) -> None:
        """Forget what was said to queries that no longer stand."""
        self.last = {query: said for query, said in self.last.items() if query in standing}
        self.tracker.keep_only(standing)

    def _followed_answer(self, query: StandingQuery, ahead_s: float) -> QueryAnswer:
        last = self.last.get(query)
        if last is None:
            return QueryAnswer(query, AnswerStatus.PENDING, Source.TRACKED)
        seen = [
            (_inside(self._ahead(track.box, ahead_s), self._size), track, claim)
            for track, claim in self.tracker.seen(query)
        ]
        boxes = tuple(
            FollowedBox(box, track.id, claim, Source.TRACKED)
            for box, track, claim in seen
            if box is not None
        )
        status = last.status
        if boxes and status in _DEFINITE:
            status = AnswerStatus.OK
        elif not boxes and status is AnswerStatus.OK and query.task.kind.searches:
            # It was there; nothing says where it is now.
            status = AnswerStatus.UNSURE
        return QueryAnswer(
            query, status, Source.TRACKED, last.text, boxes, last.evidence,
            reply=last.reply, thought=last.thought, count=last.count,
        )  # fmt: skip

    def _scale_since(self, keyframe: Keyframe) -> FloatArray:
        """(4,) what takes a key frame's pixels to the newest frame's, if its size is another."""
        if self._size is None or keyframe.size is None:
            return np.ones(4, dtype=np.float32)
        return np.tile(self._size / keyframe.size, 2)

    def _ahead(self, box: BoxFilter, ahead_s: float) -> FloatArray:
        """Where a box is some time later if it and the camera go on as they go."""
        if ahead_s <= 0.0:
            return box.xyxy
        shift = ahead_s * (box.velocity[:2] + self._drift)
        return np.asarray(box.xyxy + np.tile(shift, 2), dtype=np.float32)

    def _change(self) -> float:
        """Share of the picture that differs from the last key frame and that no track covers."""
        reference, now = self._reference, self._sketch
        if reference is None or now is None or not now.is_like(reference.sketch):
            return 1.0 if now is not None else 0.0
        expected, known = reference.sketch.moved(reference.camera)
        differs = np.abs(expected.blocks - now.blocks) > self._settings.block_change
        covered: NDArray[np.bool_] = now.mask(self.tracker.boxes())
        covered |= now.mask(_moved_boxes(reference.boxes, reference.camera))
        return float(((differs | ~known) & ~covered).mean())

    def _step_s(self, capture_ns: int, received_ns: int) -> float:
        """Time since the last frame: by capture times, where they go forwards at all."""
        step_s = self.ahead_s(capture_ns=capture_ns, received_ns=received_ns)
        self._clocks = (capture_ns, received_ns)
        return step_s


def _observations(
    pairs: Sequence[tuple[StandingQuery, Answer]],
    grounding: Grounding,
    evidence: Evidence,
    appearance: FloatArray,
) -> list[Observation]:
    """The things that were found, each with what every query says about it."""
    things: list[tuple[int, dict[str, Claim]]] = []
    for query, answer in pairs:
        found = answer.detections
        for box, label, confidence, region in zip(
            found.xyxy, found.label, found.confidence.tolist(), found.region.tolist(), strict=True
        ):
            claim = Claim(
                query=query,
                label=label,
                confidence=confidence,
                region=region,
                objectness=float(grounding.proposals.objectness[region]),
                proposal=_box(box),
                evidence=evidence,
            )
            _claims_of(things, region, query, grounding.proposals.xyxy)[query.id] = claim
    return [
        Observation(
            xyxy=grounding.proposals.xyxy[region],
            appearance=appearance[region],
            claims=claims,
        )
        for region, claims in things
    ]


def _claims_of(
    things: list[tuple[int, dict[str, Claim]]],
    region: int,
    query: StandingQuery,
    proposals: FloatArray,
) -> dict[str, Claim]:
    """The thing that a proposal is: one that another query named, or a new one."""
    for known, claims in things:
        if query.id in claims:
            continue
        overlap = box_iou(proposals[known][None], proposals[region][None])[0, 0]
        if known == region or overlap >= _SAME_THING_IOU:
            return claims
    things.append((region, {}))
    return things[-1][1]


def _grounded_answer(
    query: StandingQuery,
    answer: Answer,
    keyframe: Keyframe,
    found: Sequence[Observation],
    ids: Sequence[int],
) -> QueryAnswer:
    boxes = tuple(
        FollowedBox(box, track_id, claim, Source.GROUNDED)
        for seen, track_id in zip(found, ids, strict=True)
        if (claim := seen.claims.get(query.id)) is not None
        and (box := _inside(claim.proposal, keyframe.size)) is not None
    )
    return QueryAnswer(
        query=query,
        status=answer.status,
        source=Source.GROUNDED,
        text=answer.text,
        reply=answer.reply,
        thought=answer.thought,
        count=answer.count,
        boxes=boxes,
        evidence=keyframe.evidence,
        num_unknown_regions=answer.num_unknown_regions,
        num_prefix_tokens_reused=answer.num_prefix_tokens_reused,
        num_passes=answer.num_passes,
    )


def _appearance(seen: FrameSummary | None) -> FloatArray:
    """(num_proposals, d) what each proposal looks like."""
    if seen is None:
        return np.zeros((0, 0), dtype=np.float32)
    return seen.appearance.astype(np.float32)


def _moved_boxes(xyxy: FloatArray, camera: Affine) -> FloatArray:
    corners = xyxy.reshape(-1, 2) @ camera[:, :2].T + camera[:, 2]
    return np.asarray(corners, dtype=np.float32).reshape(-1, 4)


def _inside(xyxy: FloatArray | Box, size: FloatArray | None) -> Box | None:
    """What can be seen of a box; None where that is nothing, all of it where no size is known."""
    x1, y1, x2, y2 = (float(value) for value in xyxy)
    if size is None:
        return x1, y1, x2, y2
    width, height = size.tolist()
    x1, x2 = min(max(x1, 0.0), width), min(max(x2, 0.0), width)
    y1, y2 = min(max(y1, 0.0), height), min(max(y2, 0.0), height)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _box(xyxy: FloatArray) -> Box:
    x1, y1, x2, y2 = xyxy.tolist()
    return x1, y1, x2, y2
