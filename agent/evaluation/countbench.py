"""CountBench: 540 pictures with two to ten of something.

Benchmark: Paiss et al., "Teaching CLIP to Count to Ten" (arXiv 2302.12066), as Parquet
(nielsr/countbench: `image`, `text`, `number`) or JSON (CountBench.json: `image_url`, `text`,
`number`, pictures in a folder by the last part of their address). Its captions name the number, so
the questions of CountBenchQA (Beyer et al., arXiv 2407.07726; google-research/big_vision,
countbench_paired_questions.json, or the `question` column of vikhyatk/CountBenchQA) are asked.
Rows whose picture is gone are left out, as everybody does: 491 are left. Knows no metric.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from agent.evaluation.benchmark_file import picture_of, read_rows, required
from agent.evaluation.counting import CountQuestion
from groundstream.errors import SourceError

_HOW_MANY = re.compile(
    r"how many (?P<what>.+?)(?: (?:are|is|can|do|does|were|has|have)\b.*)?\s*\??", re.IGNORECASE
)


def load_countbench(
    table: Path,
    *,
    questions: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
) -> list[CountQuestion]:
    """The first `limit` questions whose picture is there.

    Args:
        table: Parquet or JSON, one row per picture.
        questions: the paired questions, where `table` has no `question` column.
        images: folder of the pictures, where `table` has none.

    Raises:
        SourceError: a file cannot be read, a row lacks what it should have, or no picture exists.
    """
    rows = read_rows(table)
    asked = [row.get("question") for row in rows] if questions is None else _paired(questions)
    if len(asked) != len(rows):
        raise SourceError(f"{questions} has {len(asked)} questions, {table} has {len(rows)} rows")
    found = []
    for number, (row, question) in enumerate(zip(rows, asked, strict=True)):
        if not question:
            raise SourceError(
                f"row {number} of {table} has no question; name CountBenchQA's with --questions"
            )
        name = str(row.get("image_url", "")).rsplit("/", 1)[-1]
        source = picture_of(row, images, name or str(number))
        if source is not None:
            count = int(required(row, "number"))
            words = str(question)
            found.append(
                CountQuestion(str(number), source, what_is_counted(words), count, asked=words)
            )
    if not found:
        raise SourceError(f"{table} has no picture that exists; name their folder with --images")
    return found[:limit]


def _paired(path: Path) -> list[Any]:
    """Questions by row: a list of them, a list of rows, or columns by row number."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not JSON ({error})") from error
    if isinstance(raw, dict):
        column = next((value for value in raw.values() if isinstance(value, dict)), raw)
        raw = [column[key] for key in sorted(column, key=int)]
    return [row.get("question") if isinstance(row, dict) else row for row in raw]


def what_is_counted(question: str) -> str:
    """ "How many dogs are there in the image?" asks for "dogs"; other questions stay whole."""
    match = _HOW_MANY.fullmatch(question.strip())
    return match["what"] if match else question
