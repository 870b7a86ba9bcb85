"""Composed moving scenes as sequences to be tracked: 30 frames a second, a panning camera,
objects that hide one another, enter and leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.evaluation.oracle import OracleSettings, OracleStages, TrueFrame
from agent.evaluation.tracking import (
    MovingSequence,
    Run,
    TrackingScores,
    run_every_frame,
    run_followed,
    run_last_held,
    scores_of,
)
from agent.frame import frame_from_rgb
from agent.pipeline import Pipeline
from agent.region_cache import MemoryRegionCache
from agent.settings import FollowSettings
from agent.training.artwork import Atlas, everyday_concepts, load_concepts
from agent.training.moving import MovingScene, MovingSettings

_NUM_LABELS = 4
_SETTINGS = MovingSettings(fps=30.0, duration_s=10.0, num_objects=8)


def moving_sequence(
    atlas: Atlas, seed: int, *, concepts: tuple[int, ...], duration_s: float = 10.0
) -> MovingSequence:
    """One sequence of a seed: four labels, two objects of each, all four asked.

    Args:
        atlas: artwork to draw from.
        seed: chooses everything.
        concepts: ids to choose from.
        duration_s: length.
    """
    rng = np.random.default_rng((30, seed))
    chosen = tuple(int(c) for c in rng.choice(concepts, _NUM_LABELS, replace=False))
    settings = MovingSettings(
        size=_SETTINGS.size,
        fps=_SETTINGS.fps,
        duration_s=duration_s,
        num_objects=_SETTINGS.num_objects,
        concepts=chosen,
    )
    labels = [concept.label for concept in load_concepts()]
    frames, truth = [], {}
    for index, picture in enumerate(MovingScene(atlas, (), settings, seed)):
        frames.append(
            frame_from_rgb(
                picture.rgb,
                index=index,
                capture_time_ns=round(picture.time_s * 1e9),
                jpeg_quality=90,
            )
        )
        truth[index] = TrueFrame(
            picture.xyxy,
            tuple(labels[concept] for concept in picture.concept.tolist()),
            picture.track_id,
        )
    return MovingSequence(tuple(frames), truth, tuple(labels[concept] for concept in chosen))


async def measure_tracking(
    artwork: Path,
    pipeline: Pipeline | None,
    *,
    num: int,
    duration_s: float,
    latency_s: float,
    baselines: bool,
) -> dict[str, TrackingScores]:
    """Scores by way of answering, over sequences of seeds 0, 1, ...

    Args:
        artwork: folder of `groundstream train artwork`.
        pipeline: the model; None: an oracle that knows the truth but for some noise.
        num: sequences.
        duration_s: length of each.
        latency_s: from a key frame to its answer.
        baselines: also measure the model on every frame, and its last answer held.
    """
    atlas = Atlas.load(artwork)
    drawable = np.asarray(atlas.valid.all(axis=0))
    concepts = tuple(concept for concept in everyday_concepts() if drawable[concept])
    runs: dict[str, list[tuple[MovingSequence, Run]]] = {}
    for seed in range(num):
        sequence = moving_sequence(atlas, seed, concepts=concepts, duration_s=duration_s)
        answering = pipeline or oracle_pipeline(sequence)
        followed = await run_followed(
            sequence, answering, latency_s=latency_s, settings=FollowSettings()
        )
        runs.setdefault("followed", []).append((sequence, followed))
        if baselines:
            every = await run_every_frame(sequence, answering)
            held = await run_last_held(sequence, answering, latency_s=latency_s)
            runs.setdefault("model on every frame", []).append((sequence, every))
            runs.setdefault("last answer held", []).append((sequence, held))
    return {name: scores_of(of_way) for name, of_way in runs.items()}


def oracle_pipeline(sequence: MovingSequence) -> Pipeline:
    """The pipeline with the truth in place of the model."""
    stages = OracleStages(sequence.truth, OracleSettings())
    return Pipeline(stages, MemoryRegionCache(), model_digest="oracle")
