"""Results as a service gives them, for tests of what events are told of them."""

from __future__ import annotations

from collections.abc import Iterable

from groundstream.enums import AnswerStatus, Source
from groundstream.event_detector import EventSettings
from groundstream.events import KeyframeAnswer, StreamEvent, StreamOpened
from groundstream.scene_events import SceneEvent
from groundstream.types import Detection, FrameResult, QueryResult, StageTimings, StreamPolicy
from groundstream.zones import Line, Zone

OK, ABSENT = AnswerStatus.OK, AnswerStatus.NOT_PRESENT
WIDTH, HEIGHT, FPS = 200, 100, 10
START_NS = 1_700_000_000_000_000_000
LEFT_HALF = Zone("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))
UPWARDS = Line("middle", ((0.5, 1.0), (0.5, 0.0)))
AT_ONCE = EventSettings(
    appear_s=0.0, leave_s=0.0, settle_s=0.0, answer_s=0.0, margin=0.0, counts=False,
    zone_counts=False,
)  # fmt: skip
QUIET = EventSettings(counts=False, zone_counts=False)

Places = dict[int, tuple[float, float]]
"""Where the bottom centre of each track is, pixels."""


def an_answer(
    places: Places,
    *,
    status: AnswerStatus | None = None,
    evidence: int = 0,
    source: Source = Source.TRACKED,
    query: str = "person",
    epoch: int = 1,
    text: str = "",
) -> QueryResult:
    """One answer, whose boxes are 10 px wide and 20 px high."""
    detections = tuple(
        Detection(
            box=(x - 5, y - 20, x + 5, y), label=query, confidence=0.9, region_index=0,
            objectness=0.9, track_id=number, source=source, evidence_sequence=evidence,
            evidence_age_ms=40.0,
        )
        for number, (x, y) in places.items()
    )  # fmt: skip
    return QueryResult(
        query_id=query,
        epoch=epoch,
        status=status or (OK if places else ABSENT),
        text=text,
        detections=detections,
        source=source,
        evidence_sequence=evidence,
        evidence_age_ms=40.0,
    )


def a_result(
    sequence: int,
    *answers: QueryResult,
    time_s: float | None = None,
    size: tuple[int, int] | None = None,
) -> FrameResult:
    """A frame; ten are a second unless a time is given."""
    capture_ns = START_NS + round((sequence / FPS if time_s is None else time_s) * 1e9)
    width, height = size or (WIDTH, HEIGHT)
    return FrameResult(
        sequence=sequence, epoch=1, capture_time_ns=capture_ns, received_time_ns=0,
        answered_time_ns=0, width=width, height=height, results=answers, cache_hit=False,
        num_proposals=0, timings=StageTimings(),
    )  # fmt: skip


def frames(tracks: Iterable[Places | AnswerStatus], first: int = 0) -> list[StreamEvent]:
    """One result per entry; a status stands for an answer that shows nothing."""
    return [
        a_result(
            first + index,
            an_answer({}, status=entry) if isinstance(entry, AnswerStatus) else an_answer(entry),
        )
        for index, entry in enumerate(tracks)
    ]


def spoken(sequence: int, places: Places, status: AnswerStatus | None = None) -> KeyframeAnswer:
    """What the model says about a key frame."""
    answer = an_answer(places, status=status, evidence=sequence, source=Source.GROUNDED)
    return KeyframeAnswer(a_result(sequence, answer), "REFRESH")


def opened(*, resumed: bool) -> StreamOpened:
    return StreamOpened("secret", resumed, 1, ("person",), StreamPolicy())


def kinds(events: Iterable[SceneEvent]) -> list[str]:
    return [event.kind.value for event in events]
