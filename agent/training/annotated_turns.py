"""Questions about a picture that people annotated: the mixture, and the annotators' own words.

Asks nothing that the annotations cannot answer: a name whose boxes are not all there is neither
searched nor counted, and only what is known to be absent is asked for as absent. Knows no pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.detections import FloatArray, box_iou
from agent.prompts import Task
from agent.training.batches import Said
from agent.training.mixture import MixtureSettings, Turn, draw_turns, grounded, naming_turns

_SAME = 0.5
"""Overlap from which a region is the box that was annotated."""


@dataclass(frozen=True)
class AnnotatedRegions:
    """The regions a model is shown of one picture, and what is known about it."""

    names: list[str | None]
    """Of each region; None where it holds nothing with a name."""
    xyxy: FloatArray
    """(num_regions, 4) pixels."""
    relative: FloatArray
    """The same, relative to the picture."""
    truth: FloatArray
    """(num_boxes, 4) pixels of the annotated boxes."""
    said: Said

    def spoken(self) -> list[Turn]:
        """The annotators' words about boxes that a region covers."""
        turns = []
        for words, box, is_referring in self.said.remarks:
            overlap = box_iou(self.xyxy, self.truth[box][None])[:, 0]
            if not len(overlap) or overlap.max() < _SAME:
                continue
            region = int(overlap.argmax())
            if is_referring:
                turns.append(Turn("refer", Task.refer(words).text, grounded(words, [region])))
            else:
                asked = Task.describe_region(region, detailed=True).text
                turns.append(Turn("caption", asked, words, region))
        return turns


def annotated_turns(
    regions: AnnotatedRegions,
    vocabulary: list[str],
    num_turns: int,
    rng: np.random.Generator,
    mixture: MixtureSettings,
    *,
    expression_share: float,
) -> list[Turn]:
    """At most `num_turns` questions; fewer only where nothing can be asked at all.

    Args:
        vocabulary: all names of the files.
        expression_share: of the questions about something present, how many are annotators' words.
    """
    said = regions.said
    searched = [None if name in said.incomplete else name for name in regions.names]
    absent = [
        name
        for name in vocabulary
        if name not in said.present and (said.absent is None or name in said.absent)
    ]
    if mixture.absent == 0.0:
        absent = []
    turns = draw_turns(searched, absent, num_turns, rng, regions.relative, mixture)
    spoken = regions.spoken()

    def own_words() -> Turn:
        return spoken[int(rng.integers(len(spoken)))]

    for number, turn in enumerate(turns):
        if spoken and turn.kind not in ("absent", "no") and rng.random() < expression_share:
            turns[number] = own_words()
    while len(turns) < num_turns:
        named = naming_turns(regions.names, 1, rng)
        if spoken and (not named or rng.random() < expression_share):
            turns.append(own_words())
        elif named:
            turns += named
        else:
            break
    return turns
