"""Multiple choice about pictures, in MMBench's and MMStar's files: a check of general ability.

Formats: MMBench (Liu et al., arXiv 2307.06281; open-compass/MMBench) and MMStar (Chen et al.,
arXiv 2403.20330) as tab-separated values with `index`, `question`, `hint`, `A` to `D`, `answer`,
`category` and `image` (base64, or the index of the row that has it). MMStar writes its options
into the question. With circular evaluation, MMBench's own, a question counts only if it is
answered rightly under every rotation of its options.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.benchmark_file import Row, picture_of, read_rows, required
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import same_words
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError

LETTERS = "ABCDEFGH"
_LONGEST_REFERENCE = 64
_INSTRUCTION = "Answer with the letter of the right option."
_LETTER = re.compile(
    # Alone or with a mark after it: "a dog" does not choose A.
    r"\W*(?:(?:the )?(?:answer|option)(?: is)?\W*)?([A-H])(?:\W*$|[).:,\]])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Choice:
    """A question with its options; the options may be none where the question holds them."""

    index: str
    source: bytes | Path
    question: str
    options: tuple[str, ...]
    answer: int
    """Which option is right."""
    category: str

    def asked(self, rotation: int) -> Task:
        """The question with its options moved on by `rotation`."""
        shown = [
            f"{LETTERS[place]}. {self.options[(place + rotation) % len(self.options)]}"
            for place in range(len(self.options))
        ]
        return Task.chat("\n".join([_plain(self.question), *map(_plain, shown), _INSTRUCTION]))

    def is_right(self, reply: str, rotation: int) -> bool:
        """Whether the reply names the right option, by letter or in words."""
        number = max(len(self.options), 1)
        place = (self.answer - rotation) % number if self.options else self.answer
        letter = _LETTER.match(reply)
        if self.options and same_words(reply, self.options[self.answer]):
            return True
        return letter is not None and letter[1].upper() == LETTERS[place]


def _plain(text: str) -> str:
    # Braces mark regions in a question of ours.
    return text.replace("{", "(").replace("}", ")")


def load_multiple_choice(
    table: Path, *, images: Path | None = None, limit: int | None = None
) -> list[Choice]:
    """The first `limit` questions.

    Raises:
        SourceError: the table cannot be read, or a row lacks its question, answer or picture.
    """
    rows = read_rows(table)
    by_index = {str(row.get("index")): row for row in rows}
    return [_choice(row, by_index, images) for row in rows[:limit]]


def _choice(row: Row, by_index: dict[str, Row], images: Path | None) -> Choice:
    index = str(required(row, "index"))
    options = tuple(str(row[letter]) for letter in LETTERS if row.get(letter) not in (None, ""))
    answer = str(required(row, "answer")).strip().upper()
    if answer not in LETTERS or (options and LETTERS.index(answer) >= len(options)):
        raise SourceError(f"question {index} has the answer {answer!r}, which is no option of it")
    embedded = row.get("image")
    shown = row
    if isinstance(embedded, str) and len(embedded) <= _LONGEST_REFERENCE:
        shown = by_index.get(embedded.strip(), row)
    names = (index,) if images is not None else ()
    source = picture_of(shown, images, *names)
    if source is None:
        raise SourceError(f"question {index} has no picture")
    hint = str(row.get("hint") or "").strip()
    question = str(required(row, "question"))
    return Choice(
        index, source, f"{hint}\n{question}" if hint else question, options,
        LETTERS.index(answer), str(row.get("category") or ""),
    )  # fmt: skip


async def evaluate_multiple_choice(
    pipeline: Pipeline, choices: Sequence[Choice], *, circular: bool = False
) -> Tally:
    """`accuracy`, and the same by category; with `circular` under every rotation at once."""
    pictures = [
        Picture(
            str(number),
            choice.source,
            tuple(choice.asked(turn) for turn in _turns(choice, circular)),
        )
        for number, choice in enumerate(choices)
    ]
    tally = Tally()
    async for picture, grounding in ask_all(pipeline, pictures, title="choices"):
        choice = choices[int(picture.name)]
        right = all(
            choice.is_right(answer.reply, turn)
            for turn, answer in zip(_turns(choice, circular), grounding.answers, strict=True)
        )
        tally.add(picture.name, "accuracy", right)
        if choice.category:
            tally.add(picture.name, f"accuracy: {choice.category}", right)
    return tally


def _turns(choice: Choice, circular: bool) -> range:
    return range(max(len(choice.options), 1) if circular else 1)
