"""Composed high-resolution questions, and ways of answering them side by side.

Scenes of 2048 x 1536 with 6 to 12 things of 24 to 48 px, never trained on (the test split). A third
asks what stands in a given box, a third how many there are of something, a third where it is (a
quarter of these about something absent).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agent.detections import FloatArray
from agent.evaluation.detection import match_count
from agent.frame import Frame, frame_from_rgb
from agent.model_directory import find_model
from agent.parsing import Answer
from agent.pipeline import Pipeline
from agent.prompts import Task, TaskKind
from agent.revisions import Revision, first_revision
from agent.training.artwork import load_concepts
from agent.training.scenes import Scene
from agent.training.zoom_scenes import high_resolution_composer
from agent.zoom import RegionZoom
from agent.zoom_policy import Zoom, ZoomPolicy

_KINDS = (TaskKind.REGION_CAPTION, TaskKind.COUNT, TaskKind.DETECT)
_ABSENT = 0.25


@dataclass(frozen=True)
class SceneQuestion:
    """One question about one composed scene."""

    frame: Frame
    task: Task
    boxes: FloatArray | None
    """(1, 4) the box a region question is about; None: the model finds its own."""
    truth: FloatArray
    """(n, 4) the right boxes; empty where the thing is absent."""
    label: str

    def is_right(self, answer: Answer) -> bool:
        """The name, the number, or all boxes and no others (IoU 0.5)."""
        match self.task.kind:
            case TaskKind.REGION_CAPTION:
                return answer.reply.strip().rstrip(".").casefold() == self.label.casefold()
            case TaskKind.COUNT:
                return answer.count == len(self.truth)
            case _:
                return self.matched(answer) == len(self.truth) == len(answer.detections)

    def matched(self, answer: Answer) -> int:
        """Right boxes that were answered."""
        found = answer.detections
        return match_count(found.xyxy, found.confidence, self.truth)


@dataclass
class WayScores:
    """What one way of answering reached and cost; sums until `as_dict`."""

    num: int = 0
    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    matched: int = 0
    answered: int = 0
    objects: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def count(self, question: SceneQuestion, revision: Revision, seconds: float) -> None:
        """One more question and its last revision."""
        (answer,) = revision.grounding.answers
        kind = question.task.kind
        self.num += 1
        self.asked[kind.value] = self.asked.get(kind.value, 0) + 1
        self.right[kind.value] = self.right.get(kind.value, 0) + question.is_right(answer)
        self.tokens += revision.vision_tokens
        self.seconds += seconds
        if kind.searches:
            self.matched += question.matched(answer)
            self.answered += len(answer.detections)
            self.objects += len(question.truth)

    def as_dict(self) -> dict[str, float]:
        """Shares in 0..1; tokens and seconds per question."""
        found = 2 * self.matched / max(1, self.answered + self.objects)
        by_kind = {
            f"accuracy_{kind}": self.right[kind] / asked for kind, asked in self.asked.items()
        }
        return {
            "accuracy": sum(self.right.values()) / max(1, self.num),
            **by_kind,
            "grounding_f1": found,
            "vision_tokens": self.tokens / max(1, self.num),
            "seconds": self.seconds / max(1, self.num),
        }


Way = Callable[[SceneQuestion], Awaitable[Revision]]
"""Answers one question."""


class SceneQuestions:
    """Questions by number; the same number is the same question."""

    def __init__(self, artwork: Path) -> None:
        """`artwork`: folder of `groundstream train artwork`."""
        self._labels = [concept.label for concept in load_concepts()]
        self._composer = high_resolution_composer(artwork)
        self._concepts = self._composer.settings.concepts or ()

    def question(self, number: int) -> SceneQuestion:
        """One question."""
        scene = self._composer.compose_split("test", number)
        rng = np.random.default_rng((41, number))
        frame = frame_from_rgb(scene.rgb, index=number)
        kind = _KINDS[number % len(_KINDS)]
        chosen = int(rng.integers(len(scene.concept)))
        concept = int(scene.concept[chosen])
        if kind is TaskKind.REGION_CAPTION:
            box = scene.xyxy[chosen : chosen + 1]
            return SceneQuestion(frame, Task.describe_region(0), box, box, self._labels[concept])
        if kind is TaskKind.DETECT and rng.random() < _ABSENT:
            concept = self._absent(rng, scene)
        label = self._labels[concept]
        task = Task.count(label) if kind is TaskKind.COUNT else Task.detect(label)
        return SceneQuestion(frame, task, None, scene.xyxy[scene.concept == concept], label)

    def _absent(self, rng: np.random.Generator, scene: Scene) -> int:
        others = sorted(set(self._concepts) - set(scene.concept.tolist()))
        return int(rng.choice(others))


def coarse(pipeline: Pipeline) -> Way:
    """The reduced frame alone."""
    return zoomed(pipeline, Zoom(ZoomPolicy.OFF))


def zoomed(pipeline: Pipeline, zoom: Zoom) -> Way:
    """Region zoom."""
    zoomer = RegionZoom(pipeline)

    async def answer(question: SceneQuestion) -> Revision:
        looks = zoomer.look(question.frame, [question.task], zoom, boxes=question.boxes)
        return await _last(looks)

    return answer


def whole(pipeline: Pipeline) -> Way:
    """One pass over the whole frame, with the proposals that the scout finds in its parts.

    Left to itself the proposal network, which sees a square of fixed size, would find as little as
    on the reduced frame; this is the stronger thing to compare with.
    """
    zoomer = RegionZoom(pipeline)

    async def answer(question: SceneQuestion) -> Revision:
        boxes = question.boxes
        if boxes is None:
            boxes = (await zoomer.scout(question.frame, question.frame.rgb())).xyxy
        grounding = await pipeline.ground(question.frame, [question.task], boxes=boxes)
        return first_revision(grounding, final=True)

    return answer


async def compare_ways(
    questions: SceneQuestions, ways: dict[str, Way], *, num: int, first: int = 0
) -> AsyncIterator[dict[str, WayScores]]:
    """Every question answered every way, in turn; the scores after each question."""
    scores = {name: WayScores() for name in ways}
    for number in range(first, first + num):
        question = questions.question(number)
        for name, way in ways.items():
            started = time.perf_counter()
            revision = await way(question)
            scores[name].count(question, revision, time.perf_counter() - started)
        yield scores


def with_image_limit(model: str, max_long_side: int, folder: Path) -> Path:
    """The model's folder anew, its towers seeing images up to this long side, in pixels."""
    source = find_model(model).path
    target = folder / f"{source.name}-{max_long_side}"
    target.mkdir(parents=True)
    for path in _entries(source):
        (target / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text())
    config.setdefault("groundstream", {})["max_long_side"] = max_long_side
    (target / "config.json").write_text(json.dumps(config))
    return target


def _entries(source: Path) -> Iterator[Path]:
    return (path for path in sorted(source.iterdir()) if path.name != "config.json")


async def _last(revisions: AsyncIterator[Revision]) -> Revision:
    async for revision in revisions:
        standing = revision
    return standing


def table_rows(scores: dict[str, WayScores]) -> tuple[list[str], list[list[str]]]:
    """Ways and one row per figure."""
    figures = {name: score.as_dict() for name, score in scores.items()}
    names = list(next(iter(figures.values())))
    rows = [[name, *(f"{values[name]:.3f}" for values in figures.values())] for name in names]
    return list(figures), rows
