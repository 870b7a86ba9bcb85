"""Questions: what may be asked about a frame, and the exact words the model was trained to read.

The template strings are facts of the published model's interface (task templates of VLM-FO1);
changing a character changes its answers. Knows no tokenizer and no image.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from groundstream.checks import check_text
from groundstream.enums import TaskKind as TaskKind
from groundstream.errors import InvalidQuery

SYSTEM_PROMPT = "You are a helpful assistant."
MAX_QUERY_CHARS = 2000
MAX_HISTORY_CHARS = 32_000
MAX_HISTORY_TURNS = 100
"""Earlier turns of one question; an empty one costs its tokens too."""
MAX_LABELS = 80
"""Labels of one question."""
MAX_REGIONS = 100
"""Regions one prompt can hold; more are looked at page by page (`agent.paging`)."""

GROUND_OPEN, GROUND_CLOSE = "<ground>", "</ground>"
OBJECTS_OPEN, OBJECTS_CLOSE = "<objects>", "</objects>"
END_OF_TURN = "<|im_end|>"

_CONTROL = re.compile(
    r"<\|[^|>]*\|>|</?(?:ground|objects|think|answer|image|tool_call)>|<region(?:feat|\d+)>"
)
_TURN_CONTROL = re.compile(r"<\|[^|>]*\|>|<image>|<regionfeat>")
_PLACEHOLDER = "{}"

_DETECT_ALL = (
    "Please identify every object in the image and provide their labels along with their indexes."
)
# Of several regions at once; their tokens follow without anything between.
_REGIONS = "Provide a brief description for these regions in the image."
_DETAILED_REGIONS = "Provide a detailed description for these regions in the image."
_READ_REGIONS = "Please provide the ocr results of these regions in the image."
_DETECT = "Please detect {query} in this image. Answer the question with object indexes."
_TEMPLATES = {
    TaskKind.DETECT: _DETECT,
    TaskKind.REFER: _DETECT,
    TaskKind.COUNT: "How many {query} are there in this image? Count each instance of the target "
    "object. Locate them with object indexes and then answer the question with the number of "
    "objects.",
    TaskKind.REGION_CAPTION: "Provide a brief description for {region}.",
    TaskKind.DETAILED_REGION_CAPTION: "Provide a detailed description for {region}.",
    TaskKind.REGION_OCR: "Please provide the ocr results of {region} in the image.",
    TaskKind.GROUNDED_CAPTION: "Briefly describe this image and detect all mentioned objects. "
    "Answer with grounded object indexes.",
    TaskKind.VISUAL_PROMPT: "Using the provided object {region} as a reference, identify all "
    "other objects of the same category in this image. Respond with object indexes.",
    TaskKind.REASON: "First thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think>"
    "<answer> answer here </answer>. Please give a detailed reasoning process process and provide "
    "image regions that can help you answer the question better. {query}",
    TaskKind.CHAT: "{query}",
}

REGION_TOKEN = re.compile(r"<region([0-9]{1,9})>")
"""What `region_token` writes; its group is the index."""


def region_token(index: int) -> str:
    """The token that names box `index`."""
    return f"<region{index}>"


def check_query(query: str) -> str:
    """The query as it is: white space is part of a question (choices stand on lines of their own).

    Raises:
        InvalidQuery: empty, longer than `MAX_QUERY_CHARS`, no text that UTF-8 can write, or
            containing a control token of the model (`<region3>`, `<|im_end|>`), which a user must
            not be able to speak.
    """
    if len(query) > MAX_QUERY_CHARS:
        raise InvalidQuery(
            f"the query has {len(query)} characters, the limit is {MAX_QUERY_CHARS}; shorten it"
        )
    if not query.strip():
        raise InvalidQuery("the query is empty; say what to look for, for example 'dog'")
    found = _CONTROL.search(check_text(query, "the query"))
    if found:
        raise InvalidQuery(f"the query contains the control token {found.group()!r}; remove it")
    return query


def clean_query(query: str) -> str:
    """A label with its white space folded.

    Raises:
        InvalidQuery: as `check_query`, of the label before folding and after.
    """
    return check_query(" ".join(check_query(query).split()))


def check_num_turns(num_turns: int) -> None:
    """Refuses a conversation that is too long; ask before anything is made of its turns.

    Raises:
        InvalidQuery: more turns than `MAX_HISTORY_TURNS`.
    """
    if num_turns > MAX_HISTORY_TURNS:
        raise InvalidQuery(
            f"{num_turns} earlier turns, the limit is {MAX_HISTORY_TURNS}; leave out the oldest"
        )


def check_region(region: int) -> int:
    """The number of a box as it is.

    Raises:
        InvalidQuery: it is negative.
    """
    if region < 0:
        raise InvalidQuery(f"region {region} is negative; regions are counted from 0")
    return region


@dataclass(frozen=True)
class Exchange:
    """An earlier question of a conversation and the answer it got, both as the model saw them."""

    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """One question about one frame."""

    kind: TaskKind
    query: str = ""
    """What to look for, or to answer, in words; `{}` stands for one of `regions` (CHAT, REASON)."""
    region: int | None = None
    """Which box the question is about (region captions, region OCR, visual prompt)."""
    regions: tuple[int, ...] = ()
    """Boxes that `query` refers to, in the order of its `{}`."""
    history: tuple[Exchange, ...] = ()
    """Earlier turns about the same frame, oldest first."""
    max_new_tokens: int = 256
    drafts: tuple[str, ...] = field(default=(), compare=False)
    """Answers that may come again (an earlier frame's, in this frame's region numbers). They
    save time when they are right and change nothing when they are wrong."""
    least_confidence: float | None = None
    """Boxes that the model believes in less are left out; None: the model's own limit."""
    constrained: bool = False
    """Decode only what keeps the answer's form and regions that exist."""
    patience_s: float = field(default=float("inf"), compare=False)
    """How long the asker waits, from when the language stage gets the question; who waits least
    is decoded first."""

    @classmethod
    def detect(cls, *labels: str) -> Task:
        """Where is everything that any of `labels` names?

        Raises:
            InvalidQuery: no label, or one that `clean_query` refuses.
        """
        if not labels:
            raise InvalidQuery("the list of labels is empty; name at least one thing to look for")
        if len(labels) > MAX_LABELS:
            raise InvalidQuery(
                f"{len(labels)} labels in one question, the limit is {MAX_LABELS}; ask several"
            )
        return cls(TaskKind.DETECT, clean_query(", ".join(clean_query(label) for label in labels)))

    @classmethod
    def refer(cls, expression: str) -> Task:
        """Where is the one thing that `expression` describes ("the cup left of the lamp")?"""
        return cls(TaskKind.REFER, clean_query(expression))

    @classmethod
    def count(cls, query: str) -> Task:
        """How many, and where."""
        return cls(TaskKind.COUNT, clean_query(query))

    @classmethod
    def describe_region(cls, region: int, *, detailed: bool = False) -> Task:
        """What is box `region`?

        Raises:
            InvalidQuery: the index is negative.
        """
        kind = TaskKind.DETAILED_REGION_CAPTION if detailed else TaskKind.REGION_CAPTION
        return cls(kind, region=check_region(region))

    @classmethod
    def read_region(cls, region: int) -> Task:
        """What is written in box `region`?

        Raises:
            InvalidQuery: the index is negative.
        """
        return cls(TaskKind.REGION_OCR, region=check_region(region))

    @classmethod
    def describe_image(cls) -> Task:
        """A caption whose things are located."""
        return cls(TaskKind.GROUNDED_CAPTION)

    @classmethod
    def detect_all(cls) -> Task:
        """Where is everything there is, each thing with a label of the model's own?"""
        return cls(TaskKind.CHAT, _DETECT_ALL)

    @classmethod
    def describe_regions(cls, *regions: int, detailed: bool = False) -> Task:
        """What are these boxes, in one answer?

        Raises:
            InvalidQuery: no box, or a negative index.
        """
        return cls._about_regions(_DETAILED_REGIONS if detailed else _REGIONS, regions)

    @classmethod
    def read_regions(cls, *regions: int) -> Task:
        """What is written in these boxes, in one answer?

        Raises:
            InvalidQuery: no box, or a negative index.
        """
        return cls._about_regions(_READ_REGIONS, regions)

    @classmethod
    def _about_regions(cls, words: str, regions: tuple[int, ...]) -> Task:
        if not regions:
            raise InvalidQuery("the list of regions is empty; name at least one")
        return cls.chat(words + _PLACEHOLDER * len(regions), regions=regions)

    @classmethod
    def find_similar(cls, region: int) -> Task:
        """Where are more things like box `region`?

        Raises:
            InvalidQuery: the index is negative.
        """
        return cls(TaskKind.VISUAL_PROMPT, region=check_region(region))

    @classmethod
    def reason(cls, question: str, *, regions: tuple[int, ...] = ()) -> Task:
        """An answer with the thoughts that led to it; `{}` in the question stands for a region."""
        return cls(TaskKind.REASON, _referring(question, regions), regions=regions)

    @classmethod
    def chat(
        cls,
        question: str,
        *,
        regions: tuple[int, ...] = (),
        history: tuple[Exchange, ...] = (),
    ) -> Task:
        """Anything else; `{}` in the question stands for a region.

        Raises:
            InvalidQuery: as `check_query`; placeholders and regions differ in number; or an
                earlier turn would end its turn early, or all of them are too many or too long.
        """
        check_num_turns(len(history))
        length = sum(len(turn.question) + len(turn.answer) for turn in history)
        if length > MAX_HISTORY_CHARS:
            raise InvalidQuery(
                f"the earlier turns have {length} characters, the limit is {MAX_HISTORY_CHARS}; "
                "leave out the oldest"
            )
        return cls(
            TaskKind.CHAT,
            _referring(question, regions),
            regions=regions,
            history=tuple(_clean_exchange(turn) for turn in history),
        )

    def with_regions(self, number: dict[int, int]) -> Task:
        """The same question where boxes carry other numbers (one page of many proposals)."""
        return replace(
            self,
            region=None if self.region is None else number[self.region],
            regions=tuple(number[index] for index in self.regions),
        )

    @property
    def mentioned(self) -> tuple[int, ...]:
        """All boxes the question speaks of."""
        return self.regions if self.region is None else (self.region, *self.regions)

    @property
    def labels(self) -> tuple[str, ...]:
        """What is asked for, label by label; empty where the question names nothing to find."""
        if self.kind is TaskKind.DETECT:
            return tuple(part for label in self.query.split(",") if (part := label.strip()))
        if self.kind in (TaskKind.REFER, TaskKind.COUNT):
            return (self.query,)
        if self.kind is TaskKind.VISUAL_PROMPT and self.region is not None:
            return (region_token(self.region),)
        return ()

    @property
    def text(self) -> str:
        """The user turn, word for word."""
        region = "" if self.region is None else region_token(self.region)
        query = self.query
        for index in self.regions:
            query = query.replace(_PLACEHOLDER, region_token(index), 1)
        # One pass, so that braces in the user's words are never taken for a field.
        template = _TEMPLATES[self.kind]
        return template.replace("{query}", query) if query else template.replace("{region}", region)


def _referring(question: str, regions: tuple[int, ...]) -> str:
    text = check_query(question)
    if text.count(_PLACEHOLDER) < len(regions):
        raise InvalidQuery(
            f"{len(regions)} regions are given, but the question has "
            f"{text.count(_PLACEHOLDER)} placeholders {_PLACEHOLDER!r} for them"
        )
    for region in regions:
        check_region(region)
    return text


def _clean_exchange(turn: Exchange) -> Exchange:
    """An earlier turn; it may speak of regions, but not open or close turns."""
    for text in (turn.question, turn.answer):
        found = _TURN_CONTROL.search(check_text(text, "an earlier turn"))
        if found:
            raise InvalidQuery(
                f"an earlier turn contains the control token {found.group()!r}; remove it"
            )
    return turn
