"""The suite: every ability of the model on three composed sets, with intervals, in one table.

Each image is asked a bounded number of questions whose answers are known, all from one pass of
proposals and encoders. What an image gave is written to a line of a file at once, so an
interrupted run goes on where it was. Knows no file format but its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import Proposals
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.average_precision import only_images, resampled_precision
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.cocotext import evaluate_cocotext, load_cocotext
from agent.evaluation.counting import count_answer
from agent.evaluation.detection import AskedLabels, DetectionCounts, count_called
from agent.evaluation.pope import is_right
from agent.evaluation.refcoco import is_hit
from agent.evaluation.scene_formats import write_cocotext
from agent.evaluation.tally import Estimate, Tally
from agent.frame import Frame, load_frame
from agent.pipeline import Grounding, Pipeline
from agent.prompts import MAX_REGIONS, Task
from agent.training.mixture import yes_no_turns
from agent.training.referring import refer_to

SUITE_VERSION = 3
"""Part of every result file's name: raise it whenever other questions are asked, or counted
otherwise."""

FIGURES = {
    "proposal_recall": "proposal recall at 100, IoU 0.5",
    "shown_recall": "objects with a box among those it is shown",
    "AP": "COCO mAP",
    "AP50": "COCO AP50",
    "region_top1": "region top-1, true boxes given",
    "region_top1_exact": "region top-1, word for word",
    "referring": "referring accuracy, one of several alike",
    "counting": "counting accuracy",
    "ocr": "OCR exact match",
    "false_positives": "rejection false-positive rate",
    "yes_no": "general yes/no accuracy",
    "precision": "precision of boxes, IoU 0.5",
    "recall": "recall of objects, IoU 0.5",
    "f1": "detection F1, one present label asked",
    "referring_alone": "referring accuracy, the only one of its kind",
    "counting_error": "counting, mean absolute error",
    "counting_several": "counting accuracy, two and more",
}
"""Figure to what the table calls it, in the table's order."""


Propose = Callable[[Frame], Proposals]
"""The best boxes of a frame, however sure the network is of them: recall is measured on these, not
on the few that are worth showing to the language model."""


@dataclass(frozen=True)
class SuiteSettings:
    """How much each image is asked."""

    most_referring: int = 3
    """Expressions an image, of each of the two kinds."""
    most_counting: int = 3
    """Labels counted an image, of things there are several of, and as many of single things."""
    num_yes_no: int = 4
    """Half of them about something absent."""
    most_regions: int = 16
    """True boxes an image whose names are asked."""
    most_read: int = 200
    """Pictures of a set on which words are printed and read."""


@dataclass(frozen=True)
class Questions:
    """What one image is asked, with the answers."""

    labels: AskedLabels
    referring: tuple[tuple[str, int, str], ...]
    """Expression, the object it means, and the figure it counts for."""
    counting: tuple[tuple[str, int], ...]
    yes_no: tuple[tuple[str, bool], ...]

    @classmethod
    def draw(cls, image: CocoImage, data: CocoFolder, settings: SuiteSettings) -> Questions:
        """The questions of an image: the same whenever it is asked."""
        rng = np.random.default_rng((SUITE_VERSION, image.image_id))
        names = [data.categories[category] for category in image.category]
        places: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            places.setdefault(name, []).append(index)
        order = [list(places)[k] for k in rng.permutation(len(places))]
        alone = [name for name in order if len(places[name]) == 1]
        several = [name for name in order if len(places[name]) > 1]
        sides = np.array([image.width, image.height] * 2, dtype=np.float32)
        referring = []
        for group, figure in ((several, "referring"), (alone, "referring_alone")):
            drawn = (refer_to(name, places[name], image.xyxy / sides, rng) for name in group)
            clear = [(words, index, figure) for words, index in filter(None, drawn)]
            referring += clear[: settings.most_referring]
        counted = several[: settings.most_counting] + alone[: settings.most_counting]
        turns = yes_no_turns(
            list(names), sorted(data.categories.values()), settings.num_yes_no, rng
        )
        return cls(
            # What it asked before stays comparable.
            AskedLabels.draw(image, data, rng, arguable=True),
            tuple(referring),
            tuple((name, len(places[name])) for name in counted),
            tuple((turn.question, turn.answer == "yes") for turn in turns),
        )

    def tasks(self, data: CocoFolder) -> list[Task]:
        """All of them, in the order `count` expects the answers."""
        return [
            *self.labels.tasks(data),
            *(Task.refer(words) for words, _, _ in self.referring),
            *(Task.count(name) for name, _ in self.counting),
            *(Task.chat(question) for question, _ in self.yes_no),
        ]

    def count(self, image: CocoImage, grounding: Grounding, best: Proposals) -> DetectionCounts:
        """What the answers amount to.

        Args:
            best: the proposal network's best boxes, however sure it is of them.
        """
        counts, name = DetectionCounts(), str(image.image_id)
        counts.add_proposals(image, best.top(MAX_REGIONS))
        counts.add_proposals(image, grounding.proposals.top(MAX_REGIONS), "shown_recall")
        answers = iter(grounding.answers)
        counts.add(image, self.labels, [next(answers) for _ in self.labels.categories])
        tally = counts.tally
        for _, index, figure in self.referring:
            tally.add(name, figure, is_hit(next(answers), image.xyxy[index]))
        for _, number in self.counting:
            answer, one = next(answers), Tally()
            count_answer(one, name, answer, number)
            accuracy, error = one.images[name]["accuracy"], one.images[name]["mean_absolute_error"]
            tally.add(name, "counting", *accuracy)
            tally.add(name, "counting_error", *error)
            if number > 1:
                tally.add(name, "counting_several", *accuracy)
        for _, truth in self.yes_no:
            tally.add(name, "yes_no", is_right(next(answers).reply, truth))
        return counts


@dataclass(frozen=True)
class Suite:
    """Who is examined, and how thoroughly."""

    pipeline: Pipeline
    propose: Propose
    settings: SuiteSettings = field(default_factory=SuiteSettings)

    async def measure(self, data: CocoFolder, results: Path, *, title: str) -> dict[str, Estimate]:
        """All figures of one set.

        Args:
            data: the set.
            results: file of what each image gave; pictures with words are written beside it.
            title: of the bar on the terminal.
        """
        figures = summarise(await self.ask(data, results, title=title), data)
        return figures | {"ocr": await self._reading(data, results.parent / "cocotext")}

    async def ask(self, data: CocoFolder, results: Path, *, title: str) -> list[dict[str, Any]]:
        """The results of every image, one dictionary each; those in the file are not asked."""
        done = _read(results)
        images = {str(image.image_id): image for image in data.images}
        questions = {
            name: Questions.draw(image, data, self.settings)
            for name, image in images.items()
            if name not in done
        }
        pictures = [
            Picture(name, images[name].path, tuple(asked.tasks(data)))
            for name, asked in questions.items()
        ]
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            async for picture, grounding in ask_all(self.pipeline, pictures, title=title):
                asked, image = questions[picture.name], images[picture.name]
                line = json.dumps(await self._counted(asked, image, grounding, data))
                file.write(line + "\n")
                file.flush()
                done[picture.name] = json.loads(line)
        return [done[name] for name in images if name in done]

    async def _counted(
        self, asked: Questions, image: CocoImage, grounding: Grounding, data: CocoFolder
    ) -> dict[str, Any]:
        counts = asked.count(image, grounding, self.propose(load_frame(image.path)))
        if len(image.xyxy):
            most = self.settings.most_regions
            await count_called(counts.tally, self.pipeline, image, data, most=most)
        name = str(image.image_id)
        return {
            "image": name,
            "parts": counts.tally.images[name],
            "detections": counts.detections,
        }

    async def _reading(self, data: CocoFolder, folder: Path) -> Estimate:
        """Exact matches of words printed on the first pictures of a set."""
        if not (folder / "cocotext.v2.json").is_file():
            write_cocotext(replace(data, images=data.images[: self.settings.most_read]), folder)
        written = load_cocotext(folder / "cocotext.v2.json", folder)
        return (await evaluate_cocotext(self.pipeline, written)).estimates()["exact"]


def _read(results: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run left; a last line cut short by its end is asked again."""
    done: dict[str, dict[str, Any]] = {}
    if results.is_file():
        text = results.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            results.write_text(whole, encoding="utf-8")
        done = {row["image"]: row for row in map(json.loads, whole.splitlines())}
    return done


def summarise(
    rows: list[dict[str, Any]], data: CocoFolder, *, num_resamples: int = 100
) -> dict[str, Estimate]:
    """Figures of one set, with intervals over its images."""
    tally = Tally({
        row["image"]: {name: (part, whole) for name, (part, whole) in row["parts"].items()}
        for row in rows
    })  # fmt: skip
    truth = only_images(data.raw, {int(row["image"]) for row in rows})
    detections = [entry for row in rows for entry in row["detections"]]
    return {
        **tally.estimates(),
        **resampled_precision(truth, detections, num_resamples=num_resamples),
    }
