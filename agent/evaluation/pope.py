"""POPE: "is there a ... in the image?", half of them about what is absent; yes or no.

Benchmark and metrics: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models"
(arXiv 2305.10355; AoiDragon/POPE): JSON lines of `question_id`, `image`, `text` and `label`, in
files called `coco_pope_random.json` and so on. An answer is a "no" if its first sentence has the
word no or not, and a "yes" otherwise, as in the published evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.benchmark_file import read_rows, required
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import words_of
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError


@dataclass(frozen=True)
class YesNoImage:
    """An image, questions about it, and whether yes is right."""

    path: Path
    questions: tuple[tuple[str, bool], ...]


def load_pope(questions: Path, images: Path, *, limit: int | None = None) -> tuple[YesNoImage, ...]:
    """The first `limit` images of a file with their questions.

    Raises:
        SourceError: the file cannot be read, or a label is neither yes nor no.
    """
    found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for row in read_rows(questions):
        label = str(required(row, "label")).strip().casefold()
        if label not in {"yes", "no"}:
            raise SourceError(f"question {row.get('question_id')} has the label {label!r}")
        found[str(required(row, "image"))].append((str(required(row, "text")), label == "yes"))
    return tuple(
        YesNoImage(images / name, tuple(asked)) for name, asked in list(found.items())[:limit]
    )


async def evaluate_pope(pipeline: Pipeline, data: tuple[YesNoImage, ...]) -> Tally:
    """`accuracy`, `precision`, `recall`, `f1` (of yes) and `yes_share`, as published.

    `strict_accuracy` beside them counts a reply that says neither yes nor no as wrong.
    """
    pictures = [
        Picture(str(number), image.path, tuple(Task.chat(text) for text, _ in image.questions))
        for number, image in enumerate(data)
    ]
    tally = Tally()
    async for picture, grounding in ask_all(pipeline, pictures, title="yes or no"):
        asked = data[int(picture.name)].questions
        for (_, truth), answer in zip(asked, grounding.answers, strict=True):
            count_yes_no(tally, picture.name, says_yes(answer.reply), truth)
            tally.add(picture.name, "strict_accuracy", is_right(answer.reply, truth))
    return tally


def is_right(reply: str, truth: bool) -> bool:
    """Whether a reply begins with the right one of yes and no."""
    return words_of(reply)[:1] == ["yes" if truth else "no"]


def says_yes(reply: str) -> bool:
    """What the published evaluation takes a reply for."""
    return not {"no", "not"} & set(words_of(reply.split(".")[0]))


def count_yes_no(tally: Tally, image: str, said: bool, truth: bool) -> None:
    """Count one answer."""
    both = said and truth
    tally.add(image, "accuracy", said == truth)
    tally.add(image, "precision", both, said)
    tally.add(image, "recall", both, truth)
    tally.add(image, "f1", 2 * both, said + truth)
    tally.add(image, "yes_share", said)
