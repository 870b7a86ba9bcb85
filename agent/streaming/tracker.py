"""Objects over time: one number for one thing, from its first answer until it is forgotten.

A track is moved by optical flow, coasts where flow fails, and is corrected by answers. Answers come
late: they are compared with where the tracks were when their frame was taken and carried to where
things are now. Time is in seconds throughout, because frames come irregularly. Knows no pictures
and no sessions; one tracker belongs to one session, and so do its numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.detections import FloatArray, box_area, box_iou, clip_boxes
from agent.settings import TrackerSettings
from agent.streaming.answers import Claim
from agent.streaming.association import best_pairs, likeness, place_affinity
from agent.streaming.box_filter import BoxFilter
from agent.streaming.motion import Motion
from agent.streaming.session import StandingQuery

_FLOW_DRIFT = 0.008
_ANSWER_NOISE = 0.02
_PROPOSAL_NOISE = 0.04
"""Standard deviations in box sizes."""
_APPEARANCE_WEIGHT = 0.3
_OTHER_QUERY_PENALTY = 0.3
_LEAST_AFFINITY = 0.15
_SAME_BOX_AFFINITY = 0.7
"""A box that overlaps this much is the same object, whatever it was called before."""
_HIDDEN_IOU = 0.5
"""Two boxes of one query that overlap by more may be one thing."""
_APPEARANCE_MEMORY = 0.7
_MEAN_MEMORY = 0.9
_LEAST_VISIBLE = 0.25
_RECENT_S = 3.0
_LEAST_PLACE_IF_RECENT = 0.3


@dataclass(frozen=True)
class Observation:
    """One thing in a key frame that at least one query asked for."""

    xyxy: FloatArray
    """(4,) pixels of the key frame."""
    appearance: FloatArray
    """(d,) its region feature."""
    claims: Mapping[str, Claim]
    """By query id; never empty."""
    look: FloatArray | None = None
    """How it looked in the key frame (`agent.streaming.view.View.look`)."""


@dataclass
class Track:
    """One object."""

    id: int
    box: BoxFilter
    appearance: FloatArray
    claims: dict[str, Claim]
    supported_s: float
    """When the picture last agreed with where it is."""
    named_s: float
    """When it last was the answer to a standing query."""
    misses: dict[str, int] = field(default_factory=dict)
    """Answers in a row that did not name it, by query id."""
    look: FloatArray | None = None
    """How it looked when it was last the answer."""


@dataclass
class LostTrack:
    """An object that is out of sight."""

    track: Track
    lost_s: float


class Tracker:
    """All objects of one session."""

    def __init__(
        self,
        settings: TrackerSettings,
        tracks: Iterable[tuple[Track, bool]] = (),
        next_id: int = 1,
    ) -> None:
        """An empty tracker, or one that goes on.

        Args:
            settings: how long things are believed in.
            tracks: known objects, each with whether it was in sight; their times are zero.
            next_id: number of the next new object.
        """
        self._settings = settings
        self._live: dict[int, Track] = {}
        self._lost: dict[int, LostTrack] = {}
        for track, in_sight in tracks:
            if in_sight:
                self._live[track.id] = track
            else:
                self._lost[track.id] = LostTrack(track, lost_s=0.0)
        self.next_id = next_id
        """Number of the next new object."""
        self._mean: FloatArray | None = None
        self._now_s = 0.0

    # ---- reading ----

    @property
    def tracks(self) -> tuple[Track, ...]:
        """Objects that are being followed, oldest first."""
        return tuple(self._live.values())

    @property
    def remembered(self) -> tuple[Track, ...]:
        """Objects out of sight, the one lost first comes first."""
        return tuple(lost.track for lost in self._lost.values())

    def boxes(self) -> FloatArray:
        """(n, 4) where the followed objects are."""
        return _stack([track.box.xyxy for track in self._live.values()])

    def places(self) -> dict[int, FloatArray]:
        """Where each followed object is, by its number."""
        return {track.id: track.box.xyxy for track in self._live.values()}

    def seen(self, query: StandingQuery) -> list[tuple[Track, Claim]]:
        """The objects that answer exactly this query and can be seen now.

        What the query's newest answer passed over is not there where it named something else: it
        is hidden, or the same thing. It stays known, and is seen again when the two part.
        """
        earliest_s = self._now_s - self._settings.show_coasting_s
        found = [
            (track, claim)
            for track in self._live.values()
            if (claim := track.claims.get(query.id)) is not None
            and claim.query == query
            and track.supported_s >= earliest_s
        ]
        boxes = _stack([track.box.xyxy for track, _ in found])
        told = np.array([claim.evidence.sequence for _, claim in found])
        is_behind = (box_iou(boxes, boxes) > _HIDDEN_IOU) & (told[:, None] < told)
        return [pair for pair, behind in zip(found, is_behind, strict=True) if not behind.any()]

    def uncertainty(self) -> float:
        """How unsure the least sure object is of its place, in box sizes."""
        return max((track.box.uncertainty for track in self._live.values()), default=0.0)

    # ---- from frame to frame ----

    def advance(self, dt_s: float, motion: Motion | None, *, width: int, height: int) -> None:
        """Move all objects to the next frame.

        Args:
            dt_s: time since the last frame.
            motion: how the picture moved; None when it cannot be compared with the last.
            width: of the frame, pixels.
            height: of the frame, pixels.
        """
        self._now_s += dt_s
        before = self.boxes()
        starts = [track.box.copy() for track in self._live.values()]
        for track in self._live.values():
            if motion is not None:
                track.box.move_with(motion.camera)
            track.box.predict(dt_s)
        if motion is not None and len(before):
            predicted = self.boxes()
            shift = (predicted - before).reshape(-1, 2, 2).mean(axis=1)
            expected = np.asarray(shift, dtype=np.float32)
            moved, support = motion.carry(before, expected)
            steps = zip(self._live.values(), starts, moved, support, strict=True)
            for track, start, box, agreement in steps:
                if agreement >= self._settings.least_support:
                    track.box = start
                    track.box.move_with(motion.camera)
                    track.box.follow(box, dt_s, _FLOW_DRIFT / float(agreement))
                    # Flow may have gone on with the background: then something else stands there.
                    likeness = motion.likeness(track.look, track.box.xyxy)
                    if likeness >= self._settings.least_likeness:
                        track.supported_s = self._now_s
        self._lose_those_out_of_sight(width, height)

    def rescale(self, factor: FloatArray) -> None:
        """From here on frames are (2,) times as wide and as high; things stay where they are."""
        for track in (*self.tracks, *self.remembered):
            track.box.rescale(factor)

    def snap(self, xyxy: FloatArray) -> None:
        """Correct all places by the newest frame's class-agnostic (n, 4) boxes.

        A box near enough to a track is that track, also where flow has lost it.
        """
        tracks = self.tracks
        if not tracks or not len(xyxy):
            return
        affinity = place_affinity(self.boxes(), xyxy)
        for row, column in best_pairs(affinity, self._settings.least_snap):
            tracks[row].box.correct(xyxy[column], _PROPOSAL_NOISE)
            tracks[row].supported_s = self._now_s

    def _lose_those_out_of_sight(self, width: int, height: int) -> None:
        earliest_s = self._now_s - self._settings.max_coasting_s
        for track in self.tracks:
            if track.claims:
                track.named_s = self._now_s
            elif track.named_s < self._now_s - self._settings.max_nameless_s:
                self._lose(track)
                continue
            box = track.box.xyxy[None]
            inside = box_area(clip_boxes(box, width=width, height=height))
            if inside[0] < _LEAST_VISIBLE * box_area(box)[0] or track.supported_s < earliest_s:
                self._lose(track)
        oldest_s = self._now_s - self._settings.memory_s
        for lost in list(self._lost.values()):
            if lost.lost_s < oldest_s:
                del self._lost[lost.track.id]
        while len(self._lost) > self._settings.max_remembered:
            del self._lost[next(iter(self._lost))]

    # ---- answers ----

    def update(
        self,
        observations: Sequence[Observation],
        *,
        asked: Collection[StandingQuery],
        places: Mapping[int, FloatArray],
        since: Motion,
        mean_appearance: FloatArray | None = None,
    ) -> list[int]:
        """The answers about a key frame; returns the number of each observation's object.

        Args:
            observations: what was found.
            asked: queries that were answered with yes or no; silence about an object of theirs
                counts against it.
            places: `places()` as it was when the key frame was taken.
            since: how the picture moved since then.
            mean_appearance: (d,) mean region feature of the key frame.
        """
        self._learn_mean(mean_appearance)
        moved, support = since.carry(_stack([seen.xyxy for seen in observations]))
        live = [track for track in self._live.values() if track.id in places]
        matched = self._match_live(live, observations, asked, places)
        named = {track.id for track in matched.values()}
        matched |= self._match_lost(
            [index for index in range(len(observations)) if index not in matched],
            observations,
            [t for t in live if t.id not in named and t.supported_s < self._now_s],
        )
        ids = []
        for index, seen in enumerate(observations):
            track = matched.get(index)
            box = moved[index]
            if track is not None and support[index] == 0.0 and track.id in places:
                box = _same_step(seen.xyxy, places[track.id], track.box.xyxy)
            if track is None:
                is_there = since.likeness(seen.look, box) >= self._settings.least_likeness
                track = self._begin(seen, box, is_there=is_there)
            else:
                self._refresh(track, seen, box, asked)
            ids.append(track.id)
        named = set(ids)
        for track in live:
            if track.id not in named:
                self._count_misses(track, asked)
        return ids

    def keep_only(self, queries: Iterable[StandingQuery]) -> None:
        """Forget what was claimed for queries that no longer stand; the objects stay known."""
        standing = set(queries)
        for track in self.tracks:
            claims = {name: c for name, c in track.claims.items() if c.query in standing}
            if claims != track.claims:
                track.claims = claims
                track.misses = {name: n for name, n in track.misses.items() if name in claims}

    def _match_live(
        self,
        live: list[Track],
        observations: Sequence[Observation],
        asked: Collection[StandingQuery],
        places: Mapping[int, FloatArray],
    ) -> dict[int, Track]:
        """By place, then by looks: index of the observation to its track."""
        boxes = _stack([seen.xyxy for seen in observations])
        place = place_affinity(_stack([places[track.id] for track in live]), boxes)
        affinity = np.where(place > 0.0, place, -1.0)
        affinity += _APPEARANCE_WEIGHT * self._similarity(live, observations) * (place > 0.0)
        for row, track in enumerate(live):
            for column, seen in enumerate(observations):
                if _same_question(track, seen, asked) or not track.claims:
                    continue
                # Asked for the one, found the other: two things side by side, or a changed mind.
                same_box = place[row, column] >= _SAME_BOX_AFFINITY
                affinity[row, column] -= _OTHER_QUERY_PENALTY if same_box else 2.0
        pairs = best_pairs(affinity, _LEAST_AFFINITY)
        return {column: live[row] for row, column in pairs}

    def _match_lost(
        self, free: list[int], observations: Sequence[Observation], unsure: list[Track]
    ) -> dict[int, Track]:
        """Things that come back, by their looks, or by their place if they were gone briefly."""
        candidates = [lost.track for lost in self._lost.values()] + unsure
        new = [observations[index] for index in free]
        if not candidates or not new:
            return {}
        looks = self._similarity(candidates, new)
        affinity = np.where(looks >= self._settings.least_similarity, looks, -1.0)
        boxes = _stack([seen.xyxy for seen in new])
        place = place_affinity(_stack([track.box.xyxy for track in candidates]), boxes)
        for row, track in enumerate(candidates):
            recent = track.supported_s >= self._now_s - _RECENT_S
            for column, seen in enumerate(new):
                if not set(track.claims) & set(seen.claims):
                    affinity[row, column] = -1.0
                elif recent and place[row, column] >= _LEAST_PLACE_IF_RECENT:
                    affinity[row, column] = max(affinity[row, column], place[row, column])
        found = {free[column]: candidates[row] for row, column in best_pairs(affinity, 0.0)}
        for track in found.values():
            self._lost.pop(track.id, None)
        return found

    def _begin(self, seen: Observation, box: FloatArray, *, is_there: bool) -> Track:
        """A new object; one that has gone elsewhere since its key frame is not shown, until the
        picture supports it."""
        unseen_s = 0.0 if is_there else 2.0 * self._settings.show_coasting_s
        track = Track(
            id=self.next_id,
            box=BoxFilter(box, _ANSWER_NOISE),
            appearance=seen.appearance,
            claims=dict(seen.claims),
            supported_s=self._now_s - unseen_s,
            named_s=self._now_s,
            look=seen.look,
        )
        self.next_id += 1
        self._live[track.id] = track
        return track

    def _refresh(
        self, track: Track, seen: Observation, box: FloatArray, asked: Collection[StandingQuery]
    ) -> None:
        if track.id in self._live:
            track.box.correct(box, _ANSWER_NOISE)
        else:
            track.box = BoxFilter(box, _ANSWER_NOISE)
            track.claims = {}
            self._live[track.id] = track
        track.supported_s = self._now_s
        track.look = seen.look
        if track.appearance.shape == seen.appearance.shape:
            old = _APPEARANCE_MEMORY * track.appearance
            new = (1.0 - _APPEARANCE_MEMORY) * seen.appearance
            track.appearance = np.asarray(old + new, dtype=np.float32)
        else:
            track.appearance = seen.appearance
        self._count_misses(track, [q for q in asked if q.id not in seen.claims], keep_live=True)
        track.claims |= seen.claims
        for name in seen.claims:
            track.misses.pop(name, None)

    def _count_misses(
        self, track: Track, asked: Collection[StandingQuery], *, keep_live: bool = False
    ) -> None:
        for query in asked:
            claim = track.claims.get(query.id)
            if claim is None or claim.query != query:
                continue
            track.misses[query.id] = track.misses.get(query.id, 0) + 1
            if track.misses[query.id] >= self._settings.max_misses:
                if len(track.claims) == 1 and not keep_live:
                    self._lose(track)
                    return
                del track.claims[query.id], track.misses[query.id]

    def _lose(self, track: Track) -> None:
        """Out of sight, not out of mind; what was never named is not remembered."""
        del self._live[track.id]
        track.misses.clear()
        if track.claims:
            self._lost[track.id] = LostTrack(track, self._now_s)

    def _learn_mean(self, mean: FloatArray | None) -> None:
        if mean is None:
            return
        if self._mean is None or self._mean.shape != mean.shape:
            self._mean = mean
        else:
            old = _MEAN_MEMORY * self._mean
            self._mean = np.asarray(old + (1.0 - _MEAN_MEMORY) * mean, dtype=np.float32)

    def _similarity(
        self, tracks: Sequence[Track], observations: Sequence[Observation]
    ) -> FloatArray:
        return likeness(
            [track.appearance for track in tracks],
            [seen.appearance for seen in observations],
            self._mean,
        )


def _same_question(track: Track, seen: Observation, asked: Collection[StandingQuery]) -> bool:
    """Whether an answer can be about a track: one of its queries named it, or none was asked."""
    if set(track.claims) & set(seen.claims):
        return True
    return not any(claim.query in asked for claim in track.claims.values())


def _same_step(box: FloatArray, before: FloatArray, after: FloatArray) -> FloatArray:
    """`box` moved and scaled as `before` went to `after`."""
    scale = (after[2:] - after[:2]) / np.maximum(before[2:] - before[:2], 1e-6)
    corners = (box.reshape(2, 2) - before[:2]) * scale + after[:2]
    return np.asarray(corners, dtype=np.float32).reshape(4)


def _stack(boxes: Sequence[FloatArray]) -> FloatArray:
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)
