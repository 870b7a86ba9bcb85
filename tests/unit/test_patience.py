"""What is said, and learned, of a stage's call that ends without an answer."""

from __future__ import annotations

import time

import pytest

from agent.urgency import Limits, Urgency
from deployments.observability.stage_meter import Served, StageMeter
from deployments.stages.patience import in_time
from groundstream.errors import Overloaded, StageUnavailable

STREAM = Limits(urgency=Urgency.STANDING)
# uvloop counts milliseconds: a time limit may end a little before the deadline that it was set for.
EARLY_S = 0.0005


def test_a_deadline_says_nothing_about_how_long_the_stage_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meter, limits = StageMeter("stage"), Limits.starting_now(60.0)
    with meter.call() as served:
        served(Served(None, compute_s=0.1))

    def give_up() -> None:
        with in_time(meter, limits, 30.0):
            monkeypatch.setattr(time, "monotonic", lambda: limits.deadline_s - EARLY_S)
            raise TimeoutError

    with pytest.raises(Overloaded, match="before the deadline"):
        give_up()
    with meter.call():
        assert meter.expected_s() == pytest.approx(0.2)
    assert meter.silence_s(STREAM, 30.0) == 30.0


def test_after_a_call_that_was_silent_the_next_one_is_given_longer() -> None:
    meter = StageMeter("stage")
    with pytest.raises(StageUnavailable, match="within 30 s"), in_time(meter, STREAM, 30.0):
        raise TimeoutError
    assert meter.silence_s(STREAM, 30.0) == 240.0
