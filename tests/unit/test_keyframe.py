"""Which frames become key frames, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.settings import KeyframeSettings
from agent.streaming.keyframe import KeyframeReason, KeyframeSelector, Situation
from agent.streaming.policy import Priority

SETTINGS = KeyframeSettings(
    refresh_s=6.0, scene_change=0.02, uncertainty=0.3, busy_share=0.5, least_interval_s=0.2,
    retry_after_s=1.0,
)  # fmt: skip
CALM = Situation(now_s=1.0)


def idle_selector() -> KeyframeSelector:
    """One that has answered a key frame between 0.0 and 0.1 s."""
    selector = KeyframeSelector(SETTINGS)
    selector.started(0.0)
    selector.finished(0.1)
    return selector


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        (CALM, None),
        (replace(CALM, all_unanswered=True), KeyframeReason.FIRST),
        (replace(CALM, some_unanswered=True), KeyframeReason.QUERIES_CHANGED),
        (replace(CALM, change=0.02), KeyframeReason.SCENE_CHANGED),
        (replace(CALM, uncertainty=0.3), KeyframeReason.TRACK_UNCERTAIN),
        (replace(CALM, priority=Priority.HIGH), KeyframeReason.REQUESTED),
        (replace(CALM, now_s=6.0), KeyframeReason.REFRESH),
        # Evidence is renewed before the client would refuse it.
        (replace(CALM, max_age_s=2.0), KeyframeReason.REFRESH),
        (replace(CALM, change=1.0, priority=Priority.LOW), None),
        (replace(CALM, all_unanswered=True, has_queries=False), None),
        # Too soon after the last, for all but what cannot wait.
        (replace(CALM, now_s=0.15, change=1.0), None),
        (replace(CALM, now_s=0.15, some_unanswered=True), KeyframeReason.QUERIES_CHANGED),
    ],
)
def test_reasons(situation: Situation, reason: KeyframeReason | None) -> None:
    assert idle_selector().reason(situation) is reason


def test_one_at_a_time() -> None:
    selector = idle_selector()
    selector.started(1.0)
    assert selector.busy
    assert selector.reason(replace(CALM, priority=Priority.HIGH)) is None


def test_a_slow_model_is_left_its_share_of_the_time() -> None:
    selector = idle_selector()
    selector.started(1.0)
    selector.finished(3.0)
    assert selector.reason(Situation(now_s=4.9, change=1.0)) is None
    assert selector.reason(Situation(now_s=5.1, change=1.0)) is KeyframeReason.SCENE_CHANGED


def test_after_a_failure_there_is_a_pause_even_for_the_first() -> None:
    selector = idle_selector()
    selector.started(1.0)
    selector.finished(1.0, failed=True)
    assert selector.reason(Situation(now_s=1.9, all_unanswered=True)) is None
    assert selector.reason(Situation(now_s=2.1, all_unanswered=True)) is KeyframeReason.FIRST


def test_nothing_moves_for_ten_seconds_and_two_key_frames_are_enough() -> None:
    selector, count = KeyframeSelector(KeyframeSettings()), 0
    for frame in range(300):
        now_s = frame / 30
        if selector.reason(Situation(now_s=now_s, all_unanswered=count == 0)) is not None:
            selector.started(now_s)
            selector.finished(now_s)
            count += 1
    assert count == 2
