"""Questions: what may be asked about a frame, and the exact words the model was trained to read.

The template strings are facts of the published model's interface (task templates of VLM-FO1);
changing a character changes its answers. Knows no tokenizer and no image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from agent.errors import InvalidQuery

SYSTEM_PROMPT = "You are a helpful assistant."
MAX_QUERY_CHARS = 2000
MAX_REGIONS = 100

GROUND_OPEN, GROUND_CLOSE = "<ground>", "</ground>"
OBJECTS_OPEN, OBJECTS_CLOSE = "<objects>", "</objects>"
END_OF_TURN = "<|im_end|>"

_CONTROL = re.compile(r"<\|[^|>]*\|>|</?(?:ground|objects|think|answer)>|<region(?:feat|\d+)>")


class TaskKind(Enum):
    """The tasks the nano model is trained for; the published model knows more."""

    DETECT = "detect"
    COUNT = "count"
    NAME_REGION = "name_region"


_TEMPLATES = {
    TaskKind.DETECT: "Please detect {query} in this image. "
    "Answer the question with object indexes.",
    TaskKind.COUNT: "How many {query} are there in this image? Count each instance of the target "
    "object. Locate them with object indexes and then answer the question with the number of "
    "objects.",
    TaskKind.NAME_REGION: "Provide a brief description for <region{region}>.",
}


def region_token(index: int) -> str:
    """The token that names box `index`."""
    return f"<region{index}>"


def clean_query(query: str) -> str:
    """The query with white space folded.

    Raises:
        InvalidQuery: empty, longer than `MAX_QUERY_CHARS`, or containing a control token of the
            model (`<region3>`, `<|im_end|>`), which a user must not be able to speak.
    """
    text = " ".join(query.split())
    if not text:
        raise InvalidQuery("the query is empty; say what to look for, for example 'dog'")
    if len(query) > MAX_QUERY_CHARS:
        raise InvalidQuery(
            f"the query has {len(query)} characters, the limit is {MAX_QUERY_CHARS}; shorten it"
        )
    found = _CONTROL.search(text)
    if found:
        raise InvalidQuery(f"the query contains the control token {found.group()!r}; remove it")
    return text


@dataclass(frozen=True)
class Task:
    """One question about one frame."""

    kind: TaskKind
    query: str = ""
    """What to look for, in words (DETECT, COUNT)."""
    region: int | None = None
    """Which box the question is about (NAME_REGION)."""
    max_new_tokens: int = 256

    @classmethod
    def detect(cls, query: str) -> Task:
        """Where is everything that `query` names?"""
        return cls(TaskKind.DETECT, clean_query(query))

    @classmethod
    def count(cls, query: str) -> Task:
        """How many, and where."""
        return cls(TaskKind.COUNT, clean_query(query))

    @classmethod
    def name_region(cls, region: int) -> Task:
        """What is box `region`?

        Raises:
            InvalidQuery: the index is outside 0..99.
        """
        if not 0 <= region < MAX_REGIONS:
            raise InvalidQuery(f"region {region} is outside 0..{MAX_REGIONS - 1}")
        return cls(TaskKind.NAME_REGION, region=region)

    @property
    def text(self) -> str:
        """The user turn, word for word."""
        return _TEMPLATES[self.kind].format(query=self.query, region=self.region)
