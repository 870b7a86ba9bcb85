"""The tracking benchmark: an oracle without faults scores full marks, and worse ways score less."""

from __future__ import annotations

import numpy as np
import pytest

from agent.evaluation.moving_scenes import oracle_pipeline
from agent.evaluation.oracle import OracleSettings, OracleStages, TrueFrame
from agent.evaluation.tracking import (
    MovingSequence,
    run_every_frame,
    run_followed,
    run_last_held,
    scores_of,
)
from agent.frame import frame_from_rgb
from agent.pipeline import Pipeline
from agent.region_cache import MemoryRegionCache
from agent.settings import FollowSettings
from tests.moving_pictures import MovingPicture

FAULTLESS = OracleSettings(jitter=0.0, missed=0.0, appearance_noise=0.0)


@pytest.fixture(scope="module")
def sequence() -> MovingSequence:
    """Two seconds of one thing that crosses a panning picture."""
    picture, frames, truth = MovingPicture(), [], {}
    for index in range(60):
        at = (20 + 3 * index, 60 + index)
        grey = picture.grey(camera=(index, 0), at=at)
        rgb = np.repeat(grey[:, :, None], 3, axis=2)
        frames.append(frame_from_rgb(rgb, index=index, capture_time_ns=round(index / 30 * 1e9)))
        truth[index] = TrueFrame(picture.box(at)[None], ("thing",), np.array([5]))
    return MovingSequence(tuple(frames), truth, ("thing", "nothing"))


def faultless(sequence: MovingSequence) -> Pipeline:
    """The truth itself."""
    stages = OracleStages(sequence.truth, FAULTLESS)
    return Pipeline(stages, MemoryRegionCache(), model_digest="truth")


async def test_the_truth_on_every_frame_scores_full_marks(sequence: MovingSequence) -> None:
    run = await run_every_frame(sequence, faultless(sequence))
    scores = scores_of([(sequence, run)])
    assert (scores.hota, scores.idf1) == (pytest.approx(1.0), pytest.approx(1.0))


async def test_following_beats_holding_with_the_same_late_answers(
    sequence: MovingSequence,
) -> None:
    pipeline = faultless(sequence)
    followed = await run_followed(sequence, pipeline, latency_s=0.4, settings=FollowSettings())
    held = await run_last_held(sequence, pipeline, latency_s=0.4)
    follows, holds = scores_of([(sequence, followed)]), scores_of([(sequence, held)])
    # The first 0.4 s of 2 s nothing is known, by either.
    assert follows.pending == holds.pending == pytest.approx(0.2, abs=0.02)
    assert follows.idf1 > 0.8
    assert follows.hota > holds.hota + 0.3
    assert follows.keyframes_per_s <= holds.keyframes_per_s
    assert {n for seen in followed.reported["thing"] for n in seen.track_id} == {1}
    assert follows.age_p50_ms >= 400


async def test_the_oracle_repeats_itself(sequence: MovingSequence) -> None:
    runs = [
        await run_last_held(sequence, oracle_pipeline(sequence), latency_s=0.2) for _ in range(2)
    ]
    one, other = (scores_of([(sequence, run)]) for run in runs)
    assert one == other
    assert one.idf1 < 1.0
