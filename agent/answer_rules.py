"""How a model's answers are asked for and read, as its `config.json` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from agent.checked_settings import Count, NonNegative, Share, checked, from_mapping
from agent.descriptions import Description, read_description
from agent.errors import CheckpointMismatch
from agent.prompts import MAX_REGIONS, Task, TaskKind
from groundstream.errors import SettingsError

_TAKEN_APART = frozenset({TaskKind.DETECT, TaskKind.REFER, TaskKind.COUNT})


@checked
@dataclass(frozen=True)
class AnswerRules:
    """The published model's are the defaults."""

    regions_per_page: Count = MAX_REGIONS
    """Boxes that are shown to the model together; more are looked at page by page."""
    least_confidence: Share = 0.0
    """Boxes that the model names with less are no detections."""
    least_listed: Share = 0.5
    """Boxes that are listed at all, where each is believed or not by itself
    (`agent.region_choice`): those below `least_confidence` make an empty answer UNSURE."""
    evidence_share: Share = 0.0
    """How much of the log odds that a listed region is meant comes from class evidence where the
    label names classes of the vision parts (`agent.beliefs`), 0..1; the rest is the language
    model's. For models whose connector is a mixture of names."""
    reads_descriptions: bool = False
    """"Leftmost red car" is asked for as "car", and what is found narrowed to what it describes
    (`agent.descriptions`). For small language models; colours need class evidence's regions."""
    tells_regions: bool = False
    """What a given box shows, a name and a colour, and which boxes are like it, is told by class
    evidence and not written by the language model: a small one that has learned from that evidence
    is less often right."""
    one_per_object: bool = False
    """Of boxes of one label that overlap only the surest is a detection, and those inside or around
    a surer one are believed less (`agent.detections.claims`)."""
    objectness_power: NonNegative = 0.0
    """A detection's confidence is the model's times this power of the proposal network's: for
    models whose region tokens say what a box shows, and less well how much of it."""

    def understood(self, task: Task, label: str) -> Description:
        """One of a question's labels as it is asked: taken apart, if this model's are.

        Where a number is asked, one thing's place among its like ("leftmost") narrows nothing.
        """
        whole = Description(label)
        if not self.reads_descriptions or task.kind not in _TAKEN_APART:
            return whole
        read = read_description(label)
        return whole if task.kind is TaskKind.COUNT and read.rank else read

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
        """From the `groundstream` section of a configuration, which has other keys too.

        Raises:
            CheckpointMismatch: a value has the wrong kind or is out of range.
        """
        own = {one.name for one in fields(cls)}
        said = {name: value for name, value in section.items() if name in own}
        try:
            return from_mapping(cls, said, "the section groundstream of config.json")
        except SettingsError as error:
            raise CheckpointMismatch(str(error)) from error
