"""How a model's answers are asked for and read, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.prompts import MAX_REGIONS


@dataclass(frozen=True)
class AnswerRules:
    """The published model's are the defaults."""

    regions_per_page: int = MAX_REGIONS
    """Boxes that are shown to the model together; more are looked at page by page."""
    least_confidence: float = 0.0
    """Boxes that the model names with less are no detections."""
    one_per_object: bool = False
    """Of boxes of one label that overlap or hold one another only the surest is a detection."""

    weigh_objectness: bool = False
    """A detection's confidence is the model's times the proposal network's: for models whose region
    tokens say what a box shows, and hardly how much of it."""

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> AnswerRules:
        """From the `groundstream` section of a configuration."""
        return cls(
            int(section.get("regions_per_page", MAX_REGIONS)),
            float(section.get("least_confidence", 0.0)),
            bool(section.get("one_per_object", False)),
            bool(section.get("weigh_objectness", False)),
        )
