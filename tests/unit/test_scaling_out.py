"""What a cluster needs of us: replicas by open streams, one replica for questions about a frame."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.frame import read_frame
from agent.prompts import Task
from deployments.autoscaling import OPEN_STREAMS, OpenStreams
from deployments.observability.metrics import ServiceMetrics
from tests.handles import remote_pipeline
from tests.pictures import encoded_image


def context(current: int, *streams: float) -> SimpleNamespace:
    reported = {OPEN_STREAMS: {f"replica {n}": value for n, value in enumerate(streams)}}
    return SimpleNamespace(current_num_replicas=current, aggregated_metrics=reported)


@pytest.mark.parametrize(
    ("streams", "replicas"),
    [((0.0,), 1), ((32.0,), 1), ((33.0,), 2), ((40.0, 2.0), 2), ((60.0, 60.0, 9.0), 5)],
)
def test_open_streams_become_replicas(streams: tuple[float, ...], replicas: int) -> None:
    assert OpenStreams(streams_per_replica=32)(context(1, *streams)) == (replicas, {})


def test_without_a_report_nothing_changes() -> None:
    policy = OpenStreams()
    for reported in (None, {}, {"something else": {"replica": 99.0}}):
        unknown = SimpleNamespace(current_num_replicas=3, aggregated_metrics=reported)
        assert policy(unknown) == (3, {})


def test_a_replica_must_hold_something() -> None:
    with pytest.raises(ValueError, match="positive"):
        OpenStreams(streams_per_replica=0)


async def test_questions_about_a_frame_go_to_one_replica_and_its_features_nowhere() -> None:
    metrics = ServiceMetrics()
    service = remote_pipeline(metrics, num_languages=3)
    frames = [read_frame(encoded_image(number)) for number in range(12)]
    for frame in frames:
        await service.ground(frame, [Task.detect("dog"), Task.detect("cat")])
    assert metrics.stage_calls.encode_primary == len(frames)
    assert metrics.stage_calls.answer == 2 * len(frames)
    for frame in frames:
        grounding = await service.ground(frame, [Task.detect("bird")])
        assert grounding.cache_hit
        assert grounding.seen is not None
        assert len(grounding.seen.appearance) == len(grounding.proposals)
    assert metrics.stage_calls.encode_primary == len(frames), "each is known where it is asked"
    assert metrics.cache.hits == metrics.cache.misses == len(frames)


async def test_a_frame_that_was_begun_is_sent_once() -> None:
    service = remote_pipeline(ServiceMetrics())
    frame = read_frame(encoded_image(1, width=640, height=480))
    begun = service.begin(frame)
    await begun.result
    grounding = await service.ground(frame, [Task.detect("dog")], begun=begun)
    assert grounding.answers[0].detections
    assert not grounding.cache_hit
    assert grounding.timings.propose_s > 0.0
    assert len(frame.encoded) < service.languages.sent_bytes < len(frame.encoded) + 20_000


async def test_a_frame_whose_questions_find_another_replica_is_sent_again() -> None:
    service = remote_pipeline(ServiceMetrics())
    frame = read_frame(encoded_image(1))
    begun = service.begin(frame)
    await begun.result
    (other,) = remote_pipeline(ServiceMetrics()).languages.replicas
    service.languages.replicas = (other,)
    grounding = await service.ground(frame, [Task.detect("dog")], begun=begun)
    assert grounding.answers[0].detections
