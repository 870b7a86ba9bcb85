"""Standing queries on composed moving scenes: HOTA and IDF1 of the whole stream.

A scene plays in simulated time: a key frame's answer takes effect a given latency after the frame,
as it does in the service, and everything between is the service's own `Follower`. Beside it stand
(a) the model on every frame without tracking, however long that takes, and (b) the model as often
as it can, its last answer held until the next. HOTA (Luiten et al., 2021) and IDF1 (Ristani et
al., 2016) come from TrackEval.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, box_iou
from agent.evaluation.oracle import TrueFrame
from agent.frame import Frame
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding, Pipeline
from agent.prompts import Task
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence, QueryAnswer
from agent.streaming.follower import Follower, Keyframe
from agent.streaming.session import StandingQuery
from groundstream.errors import SettingsError


@dataclass(frozen=True)
class MovingSequence:
    """One moving scene: its frames, their truth and what is asked."""

    frames: tuple[Frame, ...]
    """With index, and capture time in nanoseconds from the first."""
    truth: dict[int, TrueFrame]
    queries: tuple[str, ...]


@dataclass(frozen=True)
class Reported:
    """Boxes of one query in one frame, as a client would see them."""

    xyxy: FloatArray
    track_id: tuple[int, ...]


@dataclass
class Run:
    """Everything one way of answering reported about one sequence."""

    reported: dict[str, list[Reported]] = field(default_factory=dict)
    """By query, one entry per frame."""
    ages_s: list[float] = field(default_factory=list)
    """Age of the evidence of every answer that had any."""
    num_pending: int = 0
    num_answers: int = 0
    num_keyframes: int = 0


@dataclass(frozen=True)
class TrackingScores:
    """Figures over all sequences; shares are in 0..1."""

    hota: float
    det_a: float
    ass_a: float
    idf1: float
    keyframes_per_s: float
    age_p50_ms: float
    age_p95_ms: float
    age_p99_ms: float
    pending: float
    """Share of answers that came before anything was known."""


async def run_followed(
    sequence: MovingSequence, pipeline: Pipeline, *, latency_s: float, settings: FollowSettings
) -> Run:
    """The service's way: key frames where they are due, tracks between."""
    queries = standing(sequence.queries)
    follower, run = Follower(settings), Run({name: [] for name in sequence.queries})
    pending: tuple[float, Keyframe, Grounding] | None = None
    for frame in sequence.frames:
        now_ns = frame.capture_time_ns
        if pending is not None and now_ns / 1e9 >= pending[0]:
            follower.finish_keyframe(pending[1], pending[2], queries)
            pending = None
        follower.observe(frame, received_ns=now_ns)
        reason = follower.keyframe_reason(queries)
        if reason is not None:
            keyframe = follower.begin_keyframe(Evidence(frame.index, now_ns), queries, reason)
            follower.start_keyframe()
            grounding = await _ground(pipeline, frame, queries)
            pending = (now_ns / 1e9 + latency_s, keyframe, grounding)
            run.num_keyframes += 1
        for answer in follower.answers(queries):
            note_answer(run, answer, now_ns)
    return run


async def run_every_frame(sequence: MovingSequence, pipeline: Pipeline) -> Run:
    """Baseline (a): the model on every frame, numbers by rank in the answer."""
    queries = standing(sequence.queries)
    run = Run({name: [] for name in sequence.queries}, num_keyframes=len(sequence.frames))
    for frame in sequence.frames:
        grounding = await _ground(pipeline, frame, queries)
        note_grounding(run, queries, grounding, 0.0)
    return run


async def run_last_held(sequence: MovingSequence, pipeline: Pipeline, *, latency_s: float) -> Run:
    """Baseline (b): the model without a pause, its last answer shown until the next."""
    queries = standing(sequence.queries)
    run = Run({name: [] for name in sequence.queries})
    held: tuple[float, Grounding] | None = None
    coming: tuple[float, Grounding] | None = None
    for frame in sequence.frames:
        now_s = frame.capture_time_ns / 1e9
        if coming is not None and now_s >= coming[0] + latency_s:
            held, coming = coming, None
        if coming is None:
            coming = (now_s, await _ground(pipeline, frame, queries))
            run.num_keyframes += 1
        if held is None:
            note_grounding(run, queries, None, 0.0)
        else:
            note_grounding(run, queries, held[1], now_s - held[0])
    return run


def check_metrics() -> None:
    """Before a long run.

    Raises:
        SettingsError: TrackEval is not installed.
    """
    _metrics()


def scores_of(runs: Sequence[tuple[MovingSequence, Run]]) -> TrackingScores:
    """HOTA, IDF1 and what they cost, over all sequences and queries together."""
    hota, identity = _metrics()
    parts: dict[str, Any] = {}
    for number, (sequence, run) in enumerate(runs):
        for query in sequence.queries:
            data = _trackeval_data(sequence, query, run.reported[query])
            if data["num_gt_dets"] or data["num_tracker_dets"]:
                parts[f"{number}/{query}"] = (
                    hota.eval_sequence(data),
                    identity.eval_sequence(data),
                )
    of_hota = hota.combine_sequences({name: part[0] for name, part in parts.items()})
    of_identity = identity.combine_sequences({name: part[1] for name, part in parts.items()})
    ages_ms = 1e3 * np.array([age for _, run in runs for age in run.ages_s] or [0.0])
    duration_s = sum(sequence.frames[-1].capture_time_ns / 1e9 for sequence, _ in runs)
    p50, p95, p99 = np.percentile(ages_ms, (50, 95, 99)).tolist()
    return TrackingScores(
        hota=float(np.mean(of_hota["HOTA"])),
        det_a=float(np.mean(of_hota["DetA"])),
        ass_a=float(np.mean(of_hota["AssA"])),
        idf1=float(of_identity["IDF1"]),
        keyframes_per_s=sum(run.num_keyframes for _, run in runs) / max(duration_s, 1e-3),
        age_p50_ms=p50,
        age_p95_ms=p95,
        age_p99_ms=p99,
        pending=sum(run.num_pending for _, run in runs)
        / max(1, sum(run.num_answers for _, run in runs)),
    )


def standing(names: Iterable[str]) -> tuple[StandingQuery, ...]:
    """A standing query for each name."""
    return tuple(StandingQuery(name, Task.detect(name), epoch=1) for name in names)


async def _ground(pipeline: Pipeline, frame: Frame, queries: Sequence[StandingQuery]) -> Grounding:
    return await pipeline.ground(frame, [query.task for query in queries])


def note_answer(run: Run, answer: QueryAnswer, now_ns: int) -> None:
    """Write down what the tracker says to one query about the newest frame."""
    run.num_answers += 1
    run.num_pending += answer.status is AnswerStatus.PENDING
    if answer.evidence is not None:
        run.ages_s.append(answer.evidence.age_s(now_ns))
    boxes = np.array([box.box for box in answer.boxes], dtype=np.float32).reshape(-1, 4)
    ids = tuple(box.track_id for box in answer.boxes)
    run.reported[answer.query.id].append(Reported(boxes, ids))


def note_grounding(
    run: Run, queries: Sequence[StandingQuery], grounding: Grounding | None, age_s: float
) -> None:
    """Write down what the model said to all queries, its boxes numbered as they come."""
    for index, query in enumerate(queries):
        run.num_answers += 1
        if grounding is None:
            run.num_pending += 1
            empty = np.zeros((0, 4), dtype=np.float32)
            run.reported[query.id].append(Reported(empty, ()))
            continue
        answer: Answer = grounding.answers[index]
        run.ages_s.append(age_s)
        boxes = answer.detections.xyxy
        run.reported[query.id].append(Reported(boxes, tuple(range(1, len(boxes) + 1))))


def _trackeval_data(
    sequence: MovingSequence, query: str, reported: Sequence[Reported]
) -> dict[str, Any]:
    """One query's boxes as TrackEval's metrics take them: numbers from zero without holes."""
    true_ids: list[NDArray[np.int64]] = []
    similarity: list[FloatArray] = []
    for frame, seen in zip(sequence.frames, reported, strict=True):
        truth = sequence.truth[frame.index]
        rows = [row for row, label in enumerate(truth.label) if label == query]
        true_ids.append(truth.track_id[rows])
        similarity.append(box_iou(truth.xyxy[rows], seen.xyxy))
    gt_ids, num_gt_ids = _renumbered(true_ids)
    ids = [np.array(seen.track_id, dtype=np.int64) for seen in reported]
    tracker_ids, num_tracker_ids = _renumbered(ids)
    return {
        "num_timesteps": len(reported),
        "num_gt_ids": num_gt_ids,
        "num_tracker_ids": num_tracker_ids,
        "num_gt_dets": sum(map(len, gt_ids)),
        "num_tracker_dets": sum(map(len, tracker_ids)),
        "gt_ids": gt_ids,
        "tracker_ids": tracker_ids,
        "similarity_scores": similarity,
    }


def _renumbered(ids: Sequence[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], int]:
    known = {
        number: index for index, number in enumerate(sorted({int(n) for row in ids for n in row}))
    }
    rows = [np.array([known[int(n)] for n in row], dtype=np.int64) for row in ids]
    return rows, len(known)


def _metrics() -> tuple[Any, Any]:
    """TrackEval's HOTA and Identity.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        # It prints on import and on construction.
        with contextlib.redirect_stdout(io.StringIO()):
            from trackeval.metrics import HOTA, Identity

            return HOTA(), Identity({"PRINT_CONFIG": False})
    except ImportError:
        raise SettingsError(
            "trackeval is not installed; `pip install --no-deps -r requirements.no-deps.txt` (its "
            "dependencies would bring a second OpenCV)"
        ) from None
