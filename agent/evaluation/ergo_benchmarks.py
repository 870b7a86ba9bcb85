"""V* Bench, HR-Bench and MME-RealWorld-lite as ERGO's authors ran them (arXiv 2509.21991).

What differs from `high_resolution`, which asks any model and forgives more: options stand in the
files' own words, the instruction is each benchmark's, HR-Bench counts by file (4k, 8k), of
MME-RealWorld ten categories count, and a reply is right when the letters in its `<answer>` are the
right one and no others. Source of words and rules: the evaluation script of nota-github/ERGO.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from agent.ergo_protocol import NEW_TOKENS
from agent.evaluation.asking import frame_of
from agent.evaluation.benchmark_file import Row, read_rows
from agent.evaluation.high_resolution import decoded_picture
from agent.evaluation.tally import Tally
from agent.frame import Frame
from agent.prompts import Task
from agent.zoom import Zoomer
from agent.zoom_policy import Zoom, ZoomPolicy
from groundstream.errors import SourceError

_INSTRUCTION = " Answer with the option's letter from the given choices directly."
"""Behind the options of HR-Bench and MME-RealWorld, on a line of its own, blank and all."""
_HR_SIZES = ("4k", "8k")
MME_CATEGORIES = frozenset(
    f"{task}/{kind}"
    for task in ("Perception", "Reasoning")
    for kind in (
        "Autonomous_Driving", "Diagram and Table", "Monitoring", "OCR with Complex Context",
        "Remote Sensing",
    )
)  # fmt: skip
"""Questions of other categories are asked by nobody's table."""
_NO_LETTER = re.compile(r"[^a-zA-Z]")


@dataclass(frozen=True)
class ErgoQuestion:
    """One question of one of the three benchmarks."""

    question: str
    options: tuple[str, ...]
    """As the file has them, letters and all."""
    instruction: str
    label: str
    """The right letter."""
    category: str
    source: Path | bytes
    """A file, or the encoded picture itself."""

    @property
    def text(self) -> str:
        """The whole question; the first turn is asked what stands before the options."""
        return "\n".join([self.question, *self.options, self.instruction])

    def frame(self) -> Frame:
        """The picture.

        Raises:
            InvalidFrame: it cannot be read.
        """
        return frame_of(self.source)

    def is_right(self, written: str) -> bool:
        """Whether the letters of the answer are the label, whatever stands between them."""
        return _letters(_answered(written)) == self.label.casefold()


def _answered(written: str) -> str:
    """What follows the first `<answer>`, up to its end tag; everything where there is none."""
    _, tag, rest = written.partition("<answer>")
    answer = rest.partition("</answer>")[0].strip() if tag else ""
    return answer or written


def _letters(text: str) -> str:
    return _NO_LETTER.sub("", text).casefold()


def load_vstar(paths: Iterable[Path]) -> Iterator[ErgoQuestion]:
    """V* Bench: `test_questions.jsonl` beside its folders of pictures.

    The first line of `text` is the question, the last the instruction, those between the options.

    Raises:
        SourceError: unreadable, or not of this form.
    """
    for path in paths:
        try:
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot read {path}: {error}") from error
        for number, row in enumerate(rows, start=1):
            question, *options = str(_of(row, "text", path, number)).split("\n")
            if len(options) < 2:
                raise SourceError(f"{path}: question {number} has no options")
            yield (
                ErgoQuestion(
                    question,
                    tuple(options[:-1]),
                    options[-1],
                    str(_of(row, "label", path, number)),
                    str(_of(row, "category", path, number)),
                    path.parent / str(_of(row, "image", path, number)),
                )
            )


def load_hr_bench(paths: Iterable[Path]) -> Iterator[ErgoQuestion]:
    """HR-Bench: `hr_bench_4k.parquet` and `hr_bench_8k.parquet` (or `.tsv`).

    Raises:
        SourceError: unreadable, not of this form, or neither 4k nor 8k by name.
    """
    for path in paths:
        size = next((size for size in _HR_SIZES if size in path.stem.casefold()), None)
        if size is None:
            raise SourceError(f"{path} must have 4k or 8k in its name, which is its category")
        for number, row in enumerate(read_rows(path), start=1):
            yield (
                ErgoQuestion(
                    str(_of(row, "question", path, number)),
                    tuple(f"{one}:{_of(row, one, path, number)}" for one in "ABCD"),
                    _INSTRUCTION,
                    str(_of(row, "answer", path, number)),
                    size,
                    decoded_picture(_of(row, "image", path, number), path, number),
                )
            )


def load_mme_realworld(paths: Iterable[Path]) -> Iterator[ErgoQuestion]:
    """MME-RealWorld-lite for lmms-eval: `train-0000N-of-00004.parquet`, all of them.

    Raises:
        SourceError: unreadable, or not of this form.
    """
    for path in paths:
        for number, row in enumerate(read_rows(path), start=1):
            options = _of(row, "multi-choice options", path, number)
            if not isinstance(options, list):
                raise SourceError(f"{path}: the options of entry {number} are no list")
            category = str(_of(row, "category", path, number))
            if category in MME_CATEGORIES:
                yield (
                    ErgoQuestion(
                        str(_of(row, "question", path, number)),
                        tuple(map(str, options)),
                        _INSTRUCTION,
                        str(_of(row, "answer", path, number)),
                        category,
                        decoded_picture(_of(row, "bytes", path, number), path, number),
                    )
                )


LOADERS: dict[str, Callable[[Iterable[Path]], Iterator[ErgoQuestion]]] = {
    "vstar": load_vstar,
    "hrbench": load_hr_bench,
    "mme-realworld": load_mme_realworld,
}


def _of(row: Row, key: str, path: Path, number: int) -> object:
    if row.get(key) is None:
        raise SourceError(f"{path}: entry {number} lacks {key!r}; is this the right benchmark?")
    return row[key]


async def evaluate_ergo(
    zoomer: Zoomer,
    questions: Iterable[ErgoQuestion],
    *,
    zoom: Zoom | None = None,
    max_new_tokens: int = NEW_TOKENS,
    report: Callable[[int], object] = lambda _num: None,
) -> Tally:
    """`accuracy`, the same by category, and vision tokens a question.

    Args:
        zoomer: who is asked.
        questions: of one benchmark.
        zoom: how to look; None: always twice, as published.
        max_new_tokens: of each turn.
        report: told how many have been asked.

    Raises:
        AgentError: a picture cannot be read, or the model cannot answer.
    """
    tally = Tally()
    for number, question in enumerate(questions):
        task = replace(Task.chat(question.text), max_new_tokens=max_new_tokens)
        async for revision in zoomer.look(
            question.frame(), [task], zoom or Zoom(ZoomPolicy.ALWAYS)
        ):
            standing = revision
        right = question.is_right(standing.grounding.answers[0].text)
        tally.add(str(number), "accuracy", right)
        tally.add(str(number), f"accuracy: {question.category}", right)
        tally.add(str(number), "vision_tokens", standing.vision_tokens)
        report(number + 1)
    return tally
