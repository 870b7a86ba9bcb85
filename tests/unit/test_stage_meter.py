"""How long one more call would take, and which calls are refused for it."""

from __future__ import annotations

import pytest

from agent.urgency import Limits
from deployments.observability.stage_meter import Served, StageMeter
from groundstream.errors import Overloaded


class Stage:
    """Calls to a stage that computes for `compute_s` with so many hands, by a clock of its own."""

    def __init__(self, compute_s: float, hands: int = 1) -> None:
        self.now_s = 0.0
        self.meter = StageMeter("stage", clock=lambda: self.now_s)
        self._compute_s = compute_s
        self._free_s = [0.0] * hands
        self._calls: list[tuple[float, object, object, float]] = []

    def ask(self, num: int) -> None:
        """Calls that all come now."""
        for _ in range(num):
            hand = self._free_s.index(min(self._free_s))
            starts_s = max(self.now_s, self._free_s[hand])
            self._free_s[hand] = starts_s + self._compute_s
            call = self.meter.call()
            self._calls.append((self._free_s[hand], call, call.__enter__(), starts_s - self.now_s))

    def answer_until(self, now_s: float) -> None:
        """Time passes; what is done by then is answered."""
        for call in sorted(self._calls, key=lambda call: call[0]):
            done_s, context, served, queue_s = call
            if done_s <= now_s:
                self.now_s = done_s
                served(Served(None, queue_s=queue_s, compute_s=self._compute_s))
                context.__exit__(None, None, None)
                self._calls.remove(call)
        self.now_s = now_s


def test_nothing_is_refused_while_nothing_is_known() -> None:
    meter = StageMeter("stage")
    assert meter.expected_s() == 0.0
    meter.check(Limits.starting_now(0.001))


@pytest.mark.parametrize("hands", [1, 4])
def test_calls_in_flight_cost_what_the_stage_really_takes_for_them(hands: int) -> None:
    stage = Stage(0.1, hands)
    # A stage that is never idle shows how fast it works calls off.
    stage.ask(40)
    stage.answer_until(0.7)
    stage.ask(12)
    in_flight = stage.meter.counts.in_flight
    assert in_flight == 52 - 7 * hands
    expected_s = stage.meter.expected_s()
    assert expected_s == pytest.approx(0.1 + in_flight * 0.1 / hands, rel=0.45)


def test_a_call_that_cannot_be_done_in_time_is_refused_at_once_and_told_when_to_come_back() -> None:
    stage = Stage(0.1)
    stage.ask(10)
    stage.answer_until(0.5)
    stage.meter.check(Limits.starting_now(5.0))
    with pytest.raises(Overloaded, match=r"about 0\.60 s and 0\.2") as raised:
        stage.meter.check(Limits.starting_now(0.25))
    assert raised.value.retry_after_s == pytest.approx(0.35, abs=0.02)
    # What follows this stage counts, too.
    with pytest.raises(Overloaded):
        stage.meter.check(Limits.starting_now(0.8), beside_s=0.3)
    assert stage.meter.counts.num_refused == 2


def test_the_line_that_others_made_counts_until_it_is_gone() -> None:
    stage = Stage(0.1)
    stage.ask(2)
    # Another front end's calls lie before ours at the replica.
    with stage.meter.call() as served:
        served(Served(None, queue_s=3.0, compute_s=0.1))
    assert stage.meter.expected_s() == pytest.approx(3.1)
    stage.now_s = 2.0
    assert stage.meter.expected_s() == pytest.approx(1.1)


def test_one_slow_moment_does_not_refuse_calls_for_ever() -> None:
    stage = Stage(20.0)
    stage.ask(1)
    stage.answer_until(20.0)
    with pytest.raises(Overloaded):
        stage.meter.check(Limits.starting_now(5.0))
    stage.now_s = 60.0
    stage.meter.check(Limits.starting_now(5.0))
