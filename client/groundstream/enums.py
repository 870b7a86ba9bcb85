"""The words of questions and answers, for the agent, the service and its clients alike.

A member's value is its name in the protobuf enum, without the prefix. Imports nothing, so that a
client that only names a task loads no numerics.
"""

from __future__ import annotations

from enum import Enum


class TaskKind(Enum):
    """What a question asks; a model's configuration may name fewer than these."""

    DETECT = "DETECT"
    REFER = "REFER"
    COUNT = "COUNT"
    REGION_CAPTION = "REGION_CAPTION"
    DETAILED_REGION_CAPTION = "DETAILED_REGION_CAPTION"
    REGION_OCR = "REGION_OCR"
    GROUNDED_CAPTION = "GROUNDED_CAPTION"
    VISUAL_PROMPT = "VISUAL_PROMPT"
    REASON = "REASON"
    CHAT = "CHAT"

    @property
    def needs_region(self) -> bool:
        """Whether the question is about one given box."""
        return self in _NEEDS_REGION

    @property
    def needs_query(self) -> bool:
        """Whether the question contains the user's words."""
        return self in _NEEDS_QUERY

    @property
    def searches(self) -> bool:
        """Whether the answer is a list of boxes: every page of proposals has to be looked at."""
        return self in _SEARCHES


_NEEDS_REGION = frozenset(
    {
        TaskKind.REGION_CAPTION,
        TaskKind.DETAILED_REGION_CAPTION,
        TaskKind.REGION_OCR,
        TaskKind.VISUAL_PROMPT,
    }
)
_NEEDS_QUERY = frozenset(
    {TaskKind.DETECT, TaskKind.REFER, TaskKind.COUNT, TaskKind.REASON, TaskKind.CHAT}
)
_SEARCHES = frozenset({TaskKind.DETECT, TaskKind.REFER, TaskKind.COUNT, TaskKind.VISUAL_PROMPT})


class AnswerStatus(Enum):
    """What kind of answer this is; an empty list of boxes alone would not say."""

    OK = "OK"
    NOT_PRESENT = "NOT_PRESENT"
    UNSURE = "UNSURE"
    TRUNCATED = "TRUNCATED"
    EXPIRED = "EXPIRED"
    """Streams only: all that is known is older than `StreamPolicy`'s largest age."""
    PENDING = "PENDING"
    """Streams only: the first key frame of this question is still being answered."""


class Source(Enum):
    """Where an answer comes from."""

    GROUNDED = "GROUNDED"
    """The language model saw this very frame."""
    TRACKED = "TRACKED"
    """Found in an earlier frame and followed to this one by the tracker."""


class Priority(Enum):
    """How much a frame matters."""

    LOW = "LOW"
    """The first to go; never seen by the language model in FOLLOW mode."""
    NORMAL = "NORMAL"
    HIGH = "HIGH"
    """Must be seen by the language model; only another HIGH frame may supersede it."""


class DropPolicy(Enum):
    """Which frames go when they come faster than they are answered."""

    LATEST_WINS = "LATEST_WINS"
    OLDEST_WINS = "OLDEST_WINS"
    LOSSLESS = "LOSSLESS"


class AnswerMode(Enum):
    """What answers the frames of a stream."""

    FOLLOW = "FOLLOW"
    """The tracker, at once; the language model answers key frames behind it."""
    GROUND = "GROUND"
    """The language model, every frame that is taken."""


class VideoCodec(Enum):
    """What the packets of a video hold."""

    H264 = "H264"
    H265 = "H265"


class ZoomPolicy(Enum):
    """When a single call takes second looks at parts of its frame."""

    OFF = "OFF"
    AUTO = "AUTO"
    """Where the model saw the frame reduced and found nothing, or something small."""
    ALWAYS = "ALWAYS"


class Arrangement(Enum):
    """How second looks at several places are shown to the model."""

    UNION = "UNION"
    """One crop around all of them; keeps what stands between, and costs most."""
    SEVERAL = "SEVERAL"
    """A picture for each box; overlapping crops become one."""
    SHEET = "SHEET"
    """All on one contact sheet, compared with each other in one question; cheapest."""
