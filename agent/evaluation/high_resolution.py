"""Multiple choice on high-resolution pictures: V* Bench, HR-Bench, MME-RealWorld-lite.

Reads the benchmarks' published files, asks any `Zoomer`, and counts accuracy by category beside
vision tokens and time. Nothing is downloaded: name the files you have.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.evaluation.asking import frame_of
from agent.frame import Frame
from agent.prompts import Task
from agent.zoom import Zoomer
from agent.zoom_policy import Zoom
from groundstream.errors import SourceError

_LETTERS = "ABCDEFGH"
_INSTRUCTION = "Answer with the option's letter from the given choices directly."
_CHOICE_LINE = re.compile(r"\(([A-H])\)\s*(.*)")
_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-H])\)?(?![A-Za-z])")


@dataclass(frozen=True)
class ChoiceQuestion:
    """One question and where its picture is."""

    question: str
    choices: tuple[str, ...]
    """In the order of their letters, without them."""
    answer: str
    """The right letter."""
    category: str
    source: Path | bytes
    """A file, or the encoded picture itself."""
    id: str = ""

    @property
    def text(self) -> str:
        """Question, choices and how to answer."""
        listed = [
            f"({letter}) {choice}" for letter, choice in zip(_LETTERS, self.choices, strict=False)
        ]
        return "\n".join([self.question, *listed, _INSTRUCTION])

    def frame(self) -> Frame:
        """The picture.

        Raises:
            InvalidFrame: it cannot be read.
        """
        return frame_of(self.source)

    def chosen(self, reply: str) -> str | None:
        """The letter that a reply gives: written, or by the words of one choice; else None."""
        found = _LETTER.search(reply)
        if found:
            return found.group(1)
        said = reply.strip().rstrip(".").casefold()
        named = [
            letter
            for letter, choice in zip(_LETTERS, self.choices, strict=False)
            if choice.strip().rstrip(".").casefold() == said
        ]
        return named[0] if len(named) == 1 else None


@dataclass(frozen=True)
class CategoryScore:
    """Questions of one category."""

    num: int = 0
    num_right: int = 0

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num if self.num else 0.0


@dataclass(frozen=True)
class ChoiceScores:
    """A benchmark's figures."""

    num: int
    accuracy: float
    num_without_answer: int
    """Replies that name no choice; they count as wrong."""
    vision_tokens: float
    """Per question, mean."""
    seconds: float
    """Per question, mean, from the decoded question to the last revision."""
    categories: Mapping[str, CategoryScore] = field(default_factory=dict)


async def evaluate_choices(
    zoomer: Zoomer, questions: Iterable[ChoiceQuestion], zoom: Zoom
) -> ChoiceScores:
    """Ask every question once and count.

    Raises:
        AgentError: a picture cannot be read, or the model cannot answer.
    """
    categories: dict[str, CategoryScore] = {}
    silent, tokens, seconds = 0, 0, 0.0
    for question in questions:
        frame = question.frame()
        started = time.perf_counter()
        async for revision in zoomer.look(frame, [Task.chat(question.text)], zoom):
            standing = revision
        seconds += time.perf_counter() - started
        tokens += standing.vision_tokens
        chosen = question.chosen(standing.grounding.answers[0].reply)
        silent += chosen is None
        before = categories.get(question.category, CategoryScore())
        categories[question.category] = CategoryScore(
            before.num + 1, before.num_right + (chosen == question.answer)
        )
    num = sum(score.num for score in categories.values())
    right = sum(score.num_right for score in categories.values())
    share = 1 / num if num else 0.0
    return ChoiceScores(num, right * share, silent, tokens * share, seconds * share, categories)


def load_vstar(path: Path) -> list[ChoiceQuestion]:
    """V* Bench: `test_questions.jsonl` beside its folders of pictures.

    Each line has `image`, `text` (question, "(A) ..." lines and an instruction), `category`,
    `label` and `question_id`.

    Raises:
        SourceError: unreadable, or not of this form.
    """
    questions = []
    for number, line in enumerate(_read(path).splitlines(), start=1):
        if not line.strip():
            continue
        row = _parsed(line, f"{path}:{number}")
        first, *rest = str(_get(row, "text", path, number)).split("\n")
        choices = [found.group(2) for one in rest if (found := _CHOICE_LINE.match(one.strip()))]
        questions.append(
            ChoiceQuestion(
                first.strip(),
                tuple(choice.strip() for choice in choices),
                str(_get(row, "label", path, number)).strip(),
                str(_get(row, "category", path, number)),
                path.parent / str(_get(row, "image", path, number)),
                id=str(_get(row, "question_id", path, number)),
            )
        )
    return questions


def load_hr_bench(path: Path) -> list[ChoiceQuestion]:
    """HR-Bench: one table, `.tsv` or `.parquet`, pictures inside as base64.

    Columns `index`, `question`, `A` to `D`, `answer`, `category` (single or cross), `image`; every
    question stands four times with its choices turned (`cycle_category`), and every row counts.

    Raises:
        SourceError: unreadable, or not of this form.
    """
    questions = []
    for number, row in enumerate(_table(path), start=1):
        questions.append(
            ChoiceQuestion(
                str(_get(row, "question", path, number)),
                tuple(str(_get(row, letter, path, number)) for letter in "ABCD"),
                str(_get(row, "answer", path, number)).strip(),
                str(_get(row, "category", path, number)),
                decoded_picture(_get(row, "image", path, number), path, number),
                id=str(row.get("index", number)),
            )
        )
    return questions


def load_mme_realworld(path: Path, images: Path | None = None) -> list[ChoiceQuestion]:
    """MME-RealWorld-lite, either of its two forms; categories are "Task/Subtask".

    `.json`: a list with `Text`, `Answer choices` ("(A) ..."), `Ground truth`, `Task`, `Subtask`
    and `Image`, a path inside the folder `images` (default: the file's own). `.parquet`: columns
    `question`, `multi-choice options`, `answer`, `category` and `bytes` (base64).

    Raises:
        SourceError: unreadable, or not of this form.
    """
    if path.suffix == ".parquet":
        return [
            ChoiceQuestion(
                str(_get(row, "question", path, number)),
                _unlettered(_get(row, "multi-choice options", path, number)),
                str(_get(row, "answer", path, number)).strip(),
                str(_get(row, "category", path, number)),
                decoded_picture(_get(row, "bytes", path, number), path, number),
                id=str(row.get("index", number)),
            )
            for number, row in enumerate(_table(path), start=1)
        ]
    folder = images or path.parent
    rows = _parsed(_read(path), str(path))
    if not isinstance(rows, list):
        raise SourceError(f"{path} must hold a list of questions")
    return [
        ChoiceQuestion(
            str(_get(row, "Text", path, number)),
            _unlettered(_get(row, "Answer choices", path, number)),
            str(_get(row, "Ground truth", path, number)).strip(),
            f"{_get(row, 'Task', path, number)}/{_get(row, 'Subtask', path, number)}",
            folder / str(_get(row, "Image", path, number)),
            id=str(row.get("Question_id", number)),
        )
        for number, row in enumerate(rows, start=1)
    ]


LOADERS = {"vstar": load_vstar, "hr-bench": load_hr_bench, "mme-realworld": load_mme_realworld}


def _unlettered(choices: object) -> tuple[str, ...]:
    """Choices without their "(A) "."""
    if not isinstance(choices, list):
        raise SourceError(f"choices must be a list, not {type(choices).__name__}")
    found = [(_CHOICE_LINE.match(str(choice).strip()), str(choice)) for choice in choices]
    return tuple(match.group(2) if match else plain for match, plain in found)


def _table(path: Path) -> Iterator[dict[str, object]]:
    """Rows of a TSV or Parquet file."""
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise SourceError("Parquet files need pyarrow: pip install pyarrow") from None
        try:
            yield from parquet.read_table(path).to_pylist()
        except (OSError, ArrowException) as error:
            raise SourceError(f"cannot read {path}: {error}") from error
        return
    # Pictures of 8K are longer than the csv module's default field.
    csv.field_size_limit(sys.maxsize)
    yield from csv.DictReader(_read(path).splitlines(), delimiter="\t")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {path}: {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SourceError(f"{where} is not JSON: {error}") from error


def _get(row: object, key: str, path: Path, number: int) -> object:
    if not isinstance(row, Mapping) or row.get(key) is None:
        raise SourceError(f"{path}: entry {number} lacks {key!r}; is this the right benchmark?")
    return row[key]


def decoded_picture(value: object, path: Path, number: int) -> bytes:
    """A picture's file from a table's cell, which holds it as bytes or as base64.

    Raises:
        SourceError: it holds neither.
    """
    try:
        return value if isinstance(value, bytes) else base64.b64decode(str(value), validate=True)
    except ValueError as error:
        raise SourceError(f"{path}: the picture of entry {number} is not base64") from error
