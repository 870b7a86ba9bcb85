"""What a caller may say about second looks; knows nothing of how they are taken."""

from __future__ import annotations

from dataclasses import dataclass

from groundstream.enums import Arrangement as Arrangement
from groundstream.enums import ZoomPolicy as ZoomPolicy


@dataclass(frozen=True)
class Zoom:
    """How one call wants its frame to be looked at."""

    policy: ZoomPolicy = ZoomPolicy.AUTO
    vision_tokens: int | None = None
    """Spent on all second looks together, at most; None: what the service allows."""
    budget_s: float | None = None
    """No look that is not finished so long after the call began changes the answer."""
    arrangement: Arrangement = Arrangement.SHEET
