"""Where the frames of a replica went."""

from __future__ import annotations

from agent.streaming.session import Books, Outcome
from deployments.observability.metrics import ServiceMetrics


def test_streams_count_while_open_and_after() -> None:
    metrics = ServiceMetrics(clock=iter([10.0, 12.0, 15.0]).__next__)
    books = Books(received=3, answered=1, in_flight=2)
    with metrics.stream(lambda: books):
        now = metrics.totals()
        assert (now.open_streams, now.frames_received, now.frames_in_flight) == (1, 3, 2)
        assert now.uptime_s == 2.0
    later = metrics.totals()
    assert (later.open_streams, later.frames_received, later.frames_answered) == (0, 3, 1)
    # What was under way when the client went is neither answered nor failed.
    assert (later.frames_abandoned, later.frames_in_flight) == (2, 0)


def test_calls_are_counted_by_how_they_ended() -> None:
    metrics = ServiceMetrics()
    for outcome in (Outcome.ANSWERED, Outcome.ANSWERED, Outcome.REJECTED, Outcome.FAILED):
        metrics.count_call(outcome)
    totals = metrics.totals()
    assert totals.frames_received == 4
    assert totals.frames_answered == 2
    assert totals.frames_rejected == 1
    assert totals.frames_failed == 1
