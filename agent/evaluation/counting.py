"""Questions "how many" with a known answer: accuracy and mean absolute error.

What CountBench and PixMo-Count share; their files are read by `countbench` and `pixmo_count`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.tally import Tally
from agent.parsing import Answer
from agent.pipeline import Pipeline
from agent.prompts import Task


@dataclass(frozen=True)
class CountQuestion:
    """A picture, what is to be counted in it, and how many there are."""

    name: str
    source: Path | bytes
    query: str
    count: int
    asked: str = ""
    """The benchmark's own question, where it has one."""

    @property
    def words(self) -> str:
        """The question in words, as the authors of VLM-FO1 ask it."""
        return self.asked or f"How many {self.query} are there in the image?"


async def evaluate_counting(pipeline: Pipeline, questions: Sequence[CountQuestion]) -> Tally:
    """Scores of counting questions.

    `accuracy`: the stated number is right. `mean_absolute_error`: of the stated number, an answer
    without one counting as 0. `accuracy_by_boxes`: the number of boxes is right.
    """
    tally = Tally()
    pictures = [
        Picture(str(number), question.source, (Task.count(question.query),))
        for number, question in enumerate(questions)
    ]
    async for picture, grounding in ask_all(pipeline, pictures, title="counting"):
        count_answer(tally, picture.name, grounding.answers[0], questions[int(picture.name)].count)
    return tally


def count_answer(tally: Tally, image: str, answer: Answer, truth: int) -> None:
    """Count one answer to a counting question."""
    tally.add(image, "accuracy", answer.count == truth)
    tally.add(image, "mean_absolute_error", abs((answer.count or 0) - truth))
    tally.add(image, "accuracy_by_boxes", len(answer.detections) == truth)
