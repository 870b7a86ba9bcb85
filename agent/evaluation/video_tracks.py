"""Following on a labelled video: key frames now and then against the model on every frame.

The labels are COCO's with a `frame_index` in each image entry and a `track_id` in each annotation.
The video is read once. Every frame is grounded once; the way that is measured takes the answers of
every n-th frame and follows in between, as a stream of the service does. HOTA and IDF1 are those of
the labelled frames alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from agent.evaluation.oracle import TrueFrame
from agent.evaluation.tracking import (
    MovingSequence,
    Run,
    TrackingScores,
    note_answer,
    note_grounding,
    scores_of,
    standing,
)
from agent.frame import Frame, frame_from_rgb
from agent.pipeline import Grounding, Pipeline
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence
from agent.streaming.follower import Follower, Keyframe
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.session import StandingQuery
from groundstream.errors import SourceError
from groundstream.video.sources import open_source


@dataclass(frozen=True)
class LabelledVideo:
    """A video and what is in some of its frames."""

    path: Path
    truth: dict[int, TrueFrame]
    """By frame, counted from 0."""
    queries: tuple[str, ...]
    """Names of everything that is labelled."""

    @property
    def num_frames(self) -> int:
        """Up to the last labelled one; what comes after is not looked at."""
        return max(self.truth) + 1

    def frames(self) -> Iterator[Frame]:
        """Its frames, with their times in the video."""
        pictures = zip(range(self.num_frames), open_source(str(self.path)), strict=False)
        for index, picture in pictures:
            at_ns = round(picture.pts_s * 1e9)
            yield frame_from_rgb(picture.rgb, index=index, capture_time_ns=at_ns, jpeg_quality=95)


def load_video(video: Path, annotations: Path) -> LabelledVideo:
    """A video and its labels.

    Raises:
        SourceError: a file cannot be read, is not what it should be, or the labels are about frames
            that the video does not have or that have another size.
    """
    sizes, truth, queries = _labels(annotations)
    found = LabelledVideo(video, truth, queries)
    number = 0
    for index, picture in zip(range(found.num_frames), open_source(str(video)), strict=False):
        number += 1
        height, width = picture.rgb.shape[:2]
        labelled = sizes.get(index, (width, height))
        if labelled != (width, height):
            raise SourceError(
                f"frame {index} of {video} is {width}x{height}, its labels are of "
                f"{labelled[0]}x{labelled[1]}; is it the video that was labelled?"
            )
    if number < found.num_frames:
        raise SourceError(
            f"{video} has {number} frames, but frame {found.num_frames - 1} is labelled; is it the "
            "video that was labelled?"
        )
    return found


def _labels(
    annotations: Path,
) -> tuple[dict[int, tuple[int, int]], dict[int, TrueFrame], tuple[str, ...]]:
    """Size and truth of each labelled frame, and the names of what is labelled."""
    try:
        raw = json.loads(annotations.read_text(encoding="utf-8"))
        names = {int(c["id"]): str(c["name"]) for c in raw["categories"]}
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in raw["annotations"]:
            rows.setdefault(row["image_id"], []).append(row)
        sizes, truth = {}, {}
        for image in raw["images"]:
            index = int(image["frame_index"])
            if index < 0:
                raise ValueError(f"frame_index {index} is negative")
            sizes[index] = (int(image["width"]), int(image["height"]))
            truth[index] = _true_frame(rows.get(image["id"], []), names)
    except OSError as error:
        raise SourceError(f"{annotations} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{annotations} is not a COCO file of tracks: images need frame_index, annotations "
            f"track_id ({error!r})"
        ) from error
    queries = sorted({label for frame in truth.values() for label in frame.label})
    if not queries:
        raise SourceError(f"{annotations} labels nothing; there is nothing to measure")
    return sizes, truth, tuple(queries)


def _true_frame(rows: Sequence[dict[str, Any]], names: dict[int, str]) -> TrueFrame:
    boxes = np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = [int(row["track_id"]) for row in rows]
    if len(set(ids)) < len(ids):
        raise ValueError("a track_id occurs twice in one frame")
    labels = tuple(names[int(row["category_id"])] for row in rows)
    return TrueFrame(boxes, labels, np.array(ids, dtype=np.int64))


@dataclass
class _Way:
    """A stream that is given the answers of every n-th frame, `latency_s` later."""

    queries: tuple[StandingQuery, ...]
    key_every: int
    latency_s: float
    run: Run
    follower: Follower = field(default_factory=lambda: Follower(FollowSettings()))
    coming: tuple[float, Keyframe, Grounding] | None = None

    def step(self, frame: Frame, grounding: Grounding | None, *, labelled: bool) -> None:
        """The next frame; its answers where it may be a key frame."""
        now_s = frame.capture_time_ns / 1e9
        self._finish(now_s)
        self.follower.observe(frame, received_ns=frame.capture_time_ns)
        if frame.index % self.key_every == 0 and self.coming is None and grounding is not None:
            evidence = Evidence(frame.index, frame.capture_time_ns)
            keyframe = self.follower.begin_keyframe(
                evidence, self.queries, KeyframeReason.REQUESTED
            )
            self.follower.start_keyframe()
            self.coming = (now_s + self.latency_s, keyframe, grounding)
            self.run.num_keyframes += 1
            if self.latency_s == 0.0:
                self._finish(now_s)
        if labelled:
            for answer in self.follower.answers(self.queries):
                note_answer(self.run, answer, frame.capture_time_ns)

    def _finish(self, now_s: float) -> None:
        if self.coming is not None and now_s >= self.coming[0]:
            self.follower.finish_keyframe(self.coming[1], self.coming[2], self.queries)
            self.coming = None


FOLLOWED = "followed"
TRACKED = "every frame grounded and followed"
GROUNDED = "every frame grounded"


async def measure_video(
    pipeline: Pipeline,
    video: LabelledVideo,
    *,
    key_every: int,
    latency_s: float = 0.0,
    every_frame: bool = True,
) -> dict[str, TrackingScores]:
    """Scores by way of answering.

    Args:
        pipeline: the model.
        video: what is played.
        key_every: the model sees one frame of so many.
        latency_s: from a key frame to its answer, in the video's time; a key frame that falls due
            before the last one is answered is left out, as in the service.
        every_frame: also the model on every frame, once with the same tracker and without delay,
            and once with the boxes numbered as they come.
    """
    queries = standing(video.queries)
    followed = _Way(queries, key_every, latency_s, _empty(video))
    tracked = _Way(queries, 1, 0.0, _empty(video))
    grounded = _empty(video)
    seen: list[Frame] = []
    frames = track(
        video.frames(), "video", total=video.num_frames, console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )  # fmt: skip
    for frame in frames:
        labelled = frame.index in video.truth
        grounding = None
        if every_frame or frame.index % key_every == 0:
            grounding = await pipeline.ground(frame, [query.task for query in queries])
        followed.step(frame, grounding, labelled=labelled)
        if every_frame:
            tracked.step(frame, grounding, labelled=labelled)
            grounded.num_keyframes += 1
            if labelled:
                note_grounding(grounded, queries, grounding, 0.0)
        if labelled:
            seen.append(frame)
    # Only what is labelled can be scored.
    sequence = MovingSequence(tuple(seen), video.truth, video.queries)
    runs = {FOLLOWED: followed.run}
    if every_frame:
        runs |= {TRACKED: tracked.run, GROUNDED: grounded}
    return {name: scores_of([(sequence, run)]) for name, run in runs.items()}


def _empty(video: LabelledVideo) -> Run:
    return Run({name: [] for name in video.queries})
