"""Ferret-Bench style questions about regions: answers for a judge, and exact matches.

Benchmark: You et al., "Ferret" (arXiv 2310.07704; apple/ml-ferret, ferret/eval/ferret_gpt4_data):
a folder with `question.jsonl` (`question_id`, `image`, `category`, `text` with boxes as
`[x1, y1, x2, y2]` in 0..1), and beside it `answer.jsonl` (references) and `context.jsonl`. The
published score is a judge model's; what it needs is written to one JSON line per question. Where
references are short, as in composed scenes, matching words is a score by itself. Calls no judge.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import FloatArray
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.benchmark_file import read_rows, required
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import contains_words, same_words
from agent.frame import load_frame
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(\d*\.?\d+)"] * 4) + r"\s*\]")
_REASONING = "refer_reason"


@dataclass(frozen=True)
class RegionQuestion:
    """A question about boxes of a picture."""

    row: dict[str, Any]
    """As published."""
    path: Path
    relative: FloatArray
    """(num_boxes, 4) xyxy in 0..1, in the order the question names them."""
    reference: str | None
    context: str | None

    @property
    def words(self) -> str:
        """The question with a `{}` for every box."""
        plain = str(self.row["text"]).replace("{", "(").replace("}", ")")
        return _BOX.sub("{}", plain)

    def task(self, *, think: bool) -> Task:
        """The question, with a train of thought where reasoning is asked for."""
        regions = tuple(range(len(self.relative)))
        if think and self.row.get("category") == _REASONING:
            return Task.reason(self.words, regions=regions)
        return Task.chat(self.words, regions=regions)


def load_ferret_bench(
    folder: Path, images: Path, *, limit: int | None = None
) -> list[RegionQuestion]:
    """The first `limit` questions of a folder.

    Raises:
        SourceError: `question.jsonl` is missing or malformed, or a question names no box.
    """
    rows = read_rows(folder / "question.jsonl")[:limit]
    references = _texts(folder / "answer.jsonl", "question_id")
    contexts = _texts(folder / "context.jsonl", "image")
    questions = []
    for row in rows:
        boxes = [[float(value) for value in box] for box in _BOX.findall(required(row, "text"))]
        if not boxes:
            raise SourceError(f"question {row.get('question_id')} of {folder} names no box")
        image = str(required(row, "image"))
        questions.append(
            RegionQuestion(
                row,
                images / Path(image).name,
                np.array(boxes, dtype=np.float32),
                references.get(row.get("question_id")),
                contexts.get(image),
            )
        )
    return questions


def _texts(path: Path, key: str) -> dict[Any, str]:
    """`text` by `key`; nothing where there is no such file."""
    return (
        {row.get(key): str(required(row, "text")) for row in read_rows(path)}
        if path.is_file()
        else {}
    )


async def evaluate_ferret_bench(
    pipeline: Pipeline, questions: list[RegionQuestion], *, answers: Path | None, think: bool = True
) -> Tally:
    """Ask every question; `exact` and `contains` are scored where there is a reference.

    Args:
        answers: where a line per question is written for a judge: question, context, reference
            and answer; None writes nothing.
        think: whether reasoning questions ask for a train of thought.
    """
    pictures = []
    for number, question in enumerate(questions):
        frame = load_frame(question.path)
        sides = np.array([frame.width, frame.height] * 2, dtype=np.float32)
        task = question.task(think=think)
        pictures.append(Picture(str(number), question.path, (task,), question.relative * sides))
    tally, lines = Tally(), []
    async for picture, grounding in ask_all(pipeline, pictures, title="regions"):
        question, reply = questions[int(picture.name)], grounding.answers[0].reply
        lines.append(json.dumps(_judged(question, picture, reply)) + "\n")
        if question.reference is not None:
            tally.add(picture.name, "exact", same_words(reply, question.reference))
            tally.add(picture.name, "contains", contains_words(reply, question.reference))
    if answers is not None:
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.write_text("".join(lines), encoding="utf-8")
    return tally


def _judged(question: RegionQuestion, picture: Picture, reply: str) -> dict[str, Any]:
    """What Ferret's own script writes, and what its judge is told beside it."""
    return {
        "question_id": question.row.get("question_id"),
        "image_path": str(question.path),
        "category": question.row.get("category"),
        "question": question.row["text"],
        "prompt": picture.tasks[0].text,
        "context": question.context,
        "reference": question.reference,
        "text": reply,
    }
