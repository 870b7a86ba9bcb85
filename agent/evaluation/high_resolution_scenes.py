"""Composed high-resolution questions, and ways of answering them side by side.

Scenes of 2048 x 1536 with 6 to 12 things of 24 to 48 px, never trained on (the test split). About
each scene three questions: what stands in a given box, how many there are of something, where it is
(a quarter of these about something absent).
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agent.detections import FloatArray
from agent.evaluation.coco_folder import CocoFolder
from agent.evaluation.detection import AskedLabels, match_count
from agent.evaluation.names import is_named, true_names
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb, load_frame
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
from groundstream.errors import SourceError

_KINDS = (TaskKind.REGION_CAPTION, TaskKind.COUNT, TaskKind.DETECT)
_ABSENT = 0.25


@dataclass(frozen=True)
class SceneQuestion:
    """One question about one composed scene."""

    frame: Frame
    task: Task
    boxes: FloatArray | None
    """(1, 4) the box a region question is about; None: the model finds its own."""
    region: FloatArray
    """(1, 4) the box that the scene's region question is about, whatever this one asks."""
    truth: FloatArray
    """(n, 4) the right boxes; empty where the thing is absent."""
    label: str

    def is_right(self, answer: Answer) -> bool:
        """The name, a synonym or a wider word; the number; or all boxes and no others (IoU 0.5)."""
        match self.task.kind:
            case TaskKind.REGION_CAPTION:
                return is_named(answer.reply, true_names(self.label))
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
        name = kind.value.lower()
        self.num += 1
        self.asked[name] = self.asked.get(name, 0) + 1
        self.right[name] = self.right.get(name, 0) + question.is_right(answer)
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


def read_sums(path: Path, ways: Iterable[str]) -> dict[str, WayScores]:
    """The sums a run has left, or those of one that begins.

    Raises:
        SourceError: the file holds something else, or other ways.
    """
    if not path.exists():
        return {name: WayScores() for name in ways}
    try:
        found = {name: WayScores(**sums) for name, sums in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} holds no sums of such a run: {error}") from None
    if list(found) != list(ways):
        raise SourceError(f"{path} is of a run that compared {', '.join(found)}; name another file")
    return found


def write_sums(path: Path, scores: dict[str, WayScores]) -> None:
    """For `read_sums`; a file that is there is replaced as a whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({name: asdict(sums) for name, sums in scores.items()}))
    partial.replace(path)


@dataclass(frozen=True)
class Reply:
    """The last revision of one question."""

    revision: Revision
    spared_s: float = 0.0
    """Longer it would have taken by itself, without what the scene's questions share."""


Way = Callable[[SceneQuestion], Awaitable[Reply]]
"""Answers one question."""


class SceneQuestions:
    """Questions by number; the same number is the same question."""

    def __init__(self, artwork: Path) -> None:
        """`artwork`: folder of `groundstream train artwork`."""
        self._labels = [concept.label for concept in load_concepts()]
        self._composer = high_resolution_composer(artwork)
        self._concepts = self._composer.settings.concepts or ()
        self._scene = functools.lru_cache(maxsize=1)(self._composed)

    def question(self, number: int) -> SceneQuestion:
        """One question."""
        scene, frame = self._scene(number // len(_KINDS))
        kind = _KINDS[number % len(_KINDS)]
        shown = int(np.random.default_rng((43, frame.index)).integers(len(scene.concept)))
        region = scene.xyxy[shown : shown + 1]
        if kind is TaskKind.REGION_CAPTION:
            label = self._labels[int(scene.concept[shown])]
            return SceneQuestion(frame, Task.describe_region(0), region, region, region, label)
        rng = np.random.default_rng((41, number))
        concept = int(rng.choice(scene.concept))
        if kind is TaskKind.DETECT and rng.random() < _ABSENT:
            concept = self._absent(rng, scene)
        label = self._labels[concept]
        task = Task.count(label) if kind is TaskKind.COUNT else Task.detect(label)
        truth = scene.xyxy[scene.concept == concept]
        return SceneQuestion(frame, task, None, region, truth, label)

    def _composed(self, number: int) -> tuple[Scene, Frame]:
        scene = self._composer.compose_split("test", number)
        return scene, frame_from_rgb(scene.rgb, index=number)

    def _absent(self, rng: np.random.Generator, scene: Scene) -> int:
        others = sorted(set(self._concepts) - set(scene.concept.tolist()))
        return int(rng.choice(others))


class PhotographQuestions:
    """A search for every name of every picture of a COCO folder, and for as many that are absent.

    Numbers of `SceneQuestions`, on pictures that were taken.
    """

    def __init__(self, data: CocoFolder) -> None:
        rng = np.random.default_rng(0)
        self._name_of = data.name_of
        self._asked = [
            (image, category)
            for image in data.images
            for category in AskedLabels.draw(image, data, rng).categories
        ]
        self._frame = functools.lru_cache(maxsize=1)(load_frame)

    def __len__(self) -> int:
        return len(self._asked)

    def question(self, number: int) -> SceneQuestion:
        """One question."""
        image, category = self._asked[number]
        label, truth = self._name_of(category), image.xyxy[np.array(image.category) == category]
        frame, region = self._frame(image.path), image.xyxy[:1]
        return SceneQuestion(frame, Task.detect(label), None, region, truth, label)


def coarse(pipeline: Pipeline) -> Way:
    """The reduced frame alone."""
    return zoomed(pipeline, Zoom(ZoomPolicy.OFF))


def zoomed(pipeline: Pipeline, zoom: Zoom) -> Way:
    """Region zoom."""
    zoomer = RegionZoom(pipeline)

    async def answer(question: SceneQuestion) -> Reply:
        looks = zoomer.look(question.frame, [question.task], zoom, boxes=question.boxes)
        return Reply(await _last(looks))

    return answer


class Whole:
    """One pass over the whole frame, with the proposals that the scout finds in its parts.

    Left to itself the proposal network, which sees a square of fixed size, would find as little as
    on the reduced frame; this is the stronger thing to compare with. A scene is encoded once for
    its three questions, and each is charged for it.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """`pipeline`: of a model whose towers see the frame unreduced."""
        self._pipeline = pipeline
        self._zoomer = RegionZoom(pipeline)
        self._key = ""
        self._features: FrameFeatures | None = None
        self._scout_s = self._encode_s = 0.0

    async def __call__(self, question: SceneQuestion) -> Reply:
        """Answer one question."""
        is_known = self._features is not None and self._key == question.frame.digest
        if not is_known:
            await self._encode(question)
        assert self._features is not None
        is_given = question.boxes is not None
        shown = [0] if is_given else range(1, len(self._features.proposals))
        # Without a key nothing of the prompt is kept for the scene's next question.
        features = replace(
            self._features.select(np.array(shown, dtype=np.int64)), key="", image_key=""
        )
        grounding = await self._pipeline.ground(question.frame, [question.task], reuse=features)
        needed_s = self._encode_s + (0.0 if is_given else self._scout_s)
        spent_s = 0.0 if is_known else self._scout_s + self._encode_s
        return Reply(first_revision(grounding, final=True), needed_s - spent_s)

    async def _encode(self, question: SceneQuestion) -> None:
        frame, started_s = question.frame, time.perf_counter()
        found = (await self._zoomer.scout(frame, frame.rgb())).xyxy
        scouted_s = time.perf_counter()
        boxes = np.concatenate([question.region, found])
        self._features, _ = await self._pipeline.features(frame, boxes=boxes)
        self._key = frame.digest
        self._scout_s, self._encode_s = scouted_s - started_s, time.perf_counter() - scouted_s


class Questions(Protocol):
    """Questions by number; the same number is the same question."""

    def question(self, number: int) -> SceneQuestion:
        """One question."""


async def compare_ways(
    questions: Questions, ways: dict[str, Way], scores: dict[str, WayScores], *, num: int
) -> AsyncIterator[int]:
    """Every question answered every way, in turn; how many after each question.

    Args:
        questions, ways: what is asked, and how it is answered.
        scores: sums by way, of the first questions already where a run is gone on with.
        num: questions in all.
    """
    for number in range(min(score.num for score in scores.values()), num):
        question = questions.question(number)
        for name, way in ways.items():
            started = time.perf_counter()
            reply = await way(question)
            took_s = time.perf_counter() - started + reply.spared_s
            scores[name].count(question, reply.revision, took_s)
        yield number + 1


def with_image_limit(model: str, max_long_side: int, folder: Path) -> Path:
    """The model's folder anew, its towers seeing images up to this long side, in pixels."""
    target, _ = linked_model(
        find_model(model).path, folder, {"max_long_side": max_long_side}, suffix=str(max_long_side)
    )
    return target


def linked_model(
    source: Path, folder: Path, changes: Mapping[str, object], *, suffix: str = "changed"
) -> tuple[Path, dict[str, Any]]:
    """A model's folder of links to its files, to change some, and its configuration.

    Args:
        source: the model's folder.
        folder: where to make one.
        changes: what the configuration's section `groundstream` says instead.
        suffix: of the new folder's name.
    """
    target = folder / f"{source.name}-{suffix}"
    target.mkdir(parents=True)
    for path in _entries(source):
        (target / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text())
    config["groundstream"] = {**config.get("groundstream", {}), **changes}
    (target / "config.json").write_text(json.dumps(config))
    return target, config


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
