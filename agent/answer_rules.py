"""How a model's answers are asked for and read, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agent.prompts import MAX_REGIONS, Task


@dataclass(frozen=True)
class AnswerRules:
    """The published model's are the defaults."""

    regions_per_page: int = MAX_REGIONS
    """Boxes that are shown to the model together; more are looked at page by page."""
    least_confidence: float = 0.0
    """Boxes that the model names with less are no detections."""
    least_listed: float = 0.5
    """Boxes that are listed at all, where each is believed or not by itself
    (`agent.region_choice`): those below `least_confidence` make an empty answer UNSURE."""
    evidence_share: float = 0.0
    """How much of the log odds that a listed region is meant comes from class evidence where the
    label names classes of the vision parts (`agent.beliefs`), 0..1; the rest is the language
    model's. For models whose connector is a mixture of names."""
    one_per_object: bool = False
    """Of boxes of one label that overlap only the surest is a detection, and those inside or around
    a surer one are believed less (`agent.detections.claims`)."""
    objectness_power: float = 0.0
    """A detection's confidence is the model's times this power of the proposal network's: for
    models whose region tokens say what a box shows, and less well how much of it."""

    def detects_from(self, task: Task) -> float:
        """The least confidence of a detection that `task` asks for."""
        asked = task.least_confidence
        return self.least_confidence if asked is None else asked

    def lists_from(self, task: Task) -> float:
        """The least chance of a box that an answer to `task` lists."""
        asked = task.least_confidence
        return self.least_listed if asked is None else min(self.least_listed, asked)

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> AnswerRules:
        """From the `groundstream` section of a configuration."""
        usual = asdict(cls())
        return cls(**{name: type(was)(section.get(name, was)) for name, was in usual.items()})
