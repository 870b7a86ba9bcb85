"""What a caller may say about second looks; knows nothing of how they are taken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Arrangement(Enum):
    """How the wanted boxes come onto pictures."""

    UNION = "union"
    """One crop around all of them; keeps what stands between, and costs most."""
    SEVERAL = "several"
    """A picture for each box; overlapping crops become one."""
    SHEET = "sheet"
    """A crop for each box, side by side on one contact sheet: compared with each other in one
    question, and cheapest by far."""


class ZoomPolicy(Enum):
    """When a second look is taken."""

    OFF = "off"
    AUTO = "auto"
    """Where the frame was reduced and the answer is 'not here', or about something small."""
    ALWAYS = "always"


@dataclass(frozen=True)
class Zoom:
    """How one call wants its frame to be looked at."""

    policy: ZoomPolicy = ZoomPolicy.AUTO
    vision_tokens: int | None = None
    """Spent on all second looks together, at most; None: what the service allows."""
    budget_s: float | None = None
    """No look that is not finished so long after the call began changes the answer."""
    arrangement: Arrangement = Arrangement.SHEET
