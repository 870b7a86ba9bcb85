"""Standing queries over composed moving scenes: what guessing the next answer is worth.

A scene plays in simulated time, as in `agent.evaluation.tracking`: key frames where the service's
own `Follower` wants them, answers taking effect a given latency later. Every key frame's questions
are answered twice from the same features: by the engine with its guesses (the answer's form, and
where the tracker expects the boxes), and plainly, one token a pass. The answers must be equal.
Scenes come from `groundstream train artwork`; without it, from the two videos of the demo. Prints
a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agent.detections import FloatArray
from agent.evaluation.moving_scenes import moving_sequence
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.model_directory import DEFAULT_MODEL, find_model
from agent.pipeline import Grounding, Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.settings import FollowSettings
from agent.stage_settings import EngineSettings
from agent.stages import LocalStages
from agent.streaming.answers import Evidence
from agent.streaming.follower import Follower, Keyframe
from agent.streaming.session import StandingQuery
from agent.tokenizer import PromptTokenizer
from agent.training.artwork import Atlas, everyday_concepts
from groundstream.video.sources import open_source

_ROOT = Path(__file__).parents[1]
_DEMO_QUERIES = ("dog", "automobile", "pizza", "balloon")


@dataclass(frozen=True)
class Scene:
    """Frames with index and capture time, and what is asked of them all the time."""

    frames: tuple[Frame, ...]
    queries: tuple[str, ...]


def scenes(artwork: Path, *, num: int, duration_s: float) -> Iterator[Scene]:
    """Composed scenes of seeds 0, 1, ...; the demo's two where there is no artwork."""
    if not (artwork / "READY").exists():
        for name in ("scene.mp4", "pedestrians.mp4")[:num]:
            pictures = enumerate(open_source(str(_ROOT / "demo" / name)))
            frames = tuple(
                frame_from_rgb(picture.rgb, index=index, capture_time_ns=round(index / 12 * 1e9))
                for index, picture in pictures
                if index / 12 < duration_s
            )
            yield Scene(frames, _DEMO_QUERIES)
        return
    atlas = Atlas.load(artwork)
    drawable = np.asarray(atlas.valid.all(axis=0))
    concepts = tuple(concept for concept in everyday_concepts() if drawable[concept])
    for seed in range(num):
        made = moving_sequence(atlas, seed, concepts=concepts, duration_s=duration_s)
        yield Scene(made.frames, made.queries)


@dataclass
class Tally:
    """What one way of decoding did."""

    passes: list[int] = field(default_factory=list)
    """By answer."""
    accepted: list[int] = field(default_factory=list)
    """Guessed tokens that were right, by answer."""
    num_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    """Forward passes of the engine, each shared by all questions of a key frame."""

    def figures(self) -> dict[str, float]:
        """For the table and the JSON line."""
        return {
            "passes_median": float(np.median(self.passes)),
            "passes_mean": round(float(np.mean(self.passes)), 2),
            "passes_p95": float(np.percentile(self.passes, 95)),
            "accepted_per_answer": round(float(np.mean(self.accepted)), 2),
            "accepted_share": round(sum(self.accepted) / self.num_tokens, 3),
            "answers_per_s": round(len(self.passes) / self.seconds, 1),
            "engine_passes_per_answer": round(self.steps / len(self.passes), 2),
        }


class Way:
    """One way of decoding: the stages it uses and what it did."""

    def __init__(self, stages: LocalStages, tokenizer: PromptTokenizer) -> None:
        self.stages = stages
        self.tally = Tally()
        self._tokenizer = tokenizer
        self._pipeline = Pipeline(stages, MemoryRegionCache(), model_digest="benchmark")

    async def ask(
        self,
        frame: Frame,
        tasks: list[Task],
        features: FrameFeatures,
        expected: list[FloatArray | None],
    ) -> Grounding:
        """All questions of one key frame; nothing of the frame is known to this language model."""
        tally, engine = self.tally, self.stages.language.engine
        steps, started = engine.counts["steps"], time.perf_counter()
        grounding = await self._pipeline.ground(frame, tasks, reuse=features, expected=expected)
        tally.seconds += time.perf_counter() - started
        tally.steps += engine.counts["steps"] - steps
        for answer in grounding.answers:
            tally.passes.append(answer.num_passes)
            tally.accepted.append(answer.num_drafted_tokens)
            tally.num_tokens += len(self._tokenizer.encode(answer.text))
        return grounding


@dataclass
class Comparison:
    """Key frames of some scenes, answered both ways."""

    drafted: Way
    plain: Way
    num_keyframes: int = 0
    num_different: int = 0

    async def play(self, scene: Scene, *, latency_s: float) -> None:
        """One scene from its first frame to its last."""
        queries = tuple(StandingQuery(name, Task.detect(name), epoch=1) for name in scene.queries)
        follower = Follower(FollowSettings())
        pending: tuple[float, Keyframe, Grounding] | None = None
        for frame in scene.frames:
            now_s = frame.capture_time_ns / 1e9
            if pending is not None and now_s >= pending[0]:
                follower.finish_keyframe(pending[1], pending[2], queries)
                pending = None
            follower.observe(frame, received_ns=frame.capture_time_ns)
            reason = follower.keyframe_reason(queries)
            if reason is None:
                continue
            evidence = Evidence(frame.index, frame.capture_time_ns)
            keyframe = follower.begin_keyframe(evidence, queries, reason)
            follower.start_keyframe()
            grounding = await self._answer(frame, queries, follower.expected(keyframe))
            pending = (now_s + latency_s, keyframe, grounding)

    async def _answer(
        self, frame: Frame, queries: tuple[StandingQuery, ...], expected: list[FloatArray | None]
    ) -> Grounding:
        tasks = [query.task for query in queries]
        seeing = Pipeline(self.drafted.stages, MemoryRegionCache(), model_digest="benchmark")
        features, _ = await seeing.features(frame)
        drafted = await self.drafted.ask(frame, tasks, features, expected)
        plain = await self.plain.ask(frame, tasks, features, expected)
        self.num_keyframes += 1
        self.num_different += sum(
            ours.text != theirs.text
            for ours, theirs in zip(drafted.answers, plain.answers, strict=True)
        )
        return drafted


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Both ways over all scenes, side by side."""
    model = find_model(options.model)
    tokenizer = PromptTokenizer.from_directory(model.path)
    drafted, plain = (
        LocalStages.from_pretrained(options.model, device=options.device, engine=engine)
        for engine in (EngineSettings(), EngineSettings(max_draft_tokens=0))
    )
    comparison = Comparison(Way(drafted, tokenizer), Way(plain, tokenizer))
    for scene in scenes(options.artwork, num=options.scenes, duration_s=options.duration_s):
        await comparison.play(scene, latency_s=options.latency_s)
    for stages in (drafted, plain):
        stages.close()
    ours, theirs = comparison.drafted.tally, comparison.plain.tally
    return {
        "key_frames": comparison.num_keyframes,
        "answers": len(ours.passes),
        "different_answers": comparison.num_different,
        "drafted": ours.figures(),
        "plain": theirs.figures(),
        "times_fewer_passes": round(sum(theirs.passes) / sum(ours.passes), 2),
        "model_digest": model.digest[:12],
    }


def main() -> None:
    """Measure on composed scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--artwork", type=Path, default=_ROOT / ".artwork")
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--latency-s", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = asyncio.run(measure(options))
    drafted, plain = result["drafted"], result["plain"]
    assert isinstance(drafted, dict)
    assert isinstance(plain, dict)
    table = Table("figure", "with guesses", "plain greedy")
    for name in drafted:
        table.add_row(name, str(drafted[name]), str(plain[name]))
    Console().print(table)
    print(json.dumps({"benchmark": "stream", **result}))


if __name__ == "__main__":
    main()
