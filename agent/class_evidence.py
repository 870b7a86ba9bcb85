"""What the vision parts' own classes and colours say of a frame's regions, as the rules ask.

For models whose regions are class evidence (`agent.model.name_mixture`). Knows neither prompts nor
a language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agent.beliefs import LEAST_SURE, Array, NameBeliefs
from agent.descriptions import colour_chances
from agent.features import FrameFeatures, widened
from agent.model.name_mixture import NUM_IMAGENET
from agent.plain_nouns import with_article
from agent.vocabulary import COLOURS

_LEAST_COLOUR = 0.8
"""A colour is said of a region where no other covers more than half as much of it."""
_COLOURLESS = ("person", "food", "animal")


@dataclass(frozen=True)
class ClassEvidence:
    """Of the regions of one frame."""

    beliefs: NameBeliefs
    weights: Array = field(repr=False)
    """(regions, 1080) of the classes, as `NameBeliefs.weights` gives them."""
    colours: Array = field(repr=False)
    """(regions, colours) shares of each region's area, in the order of `COLOURS`."""

    @classmethod
    def of(cls, features: FrameFeatures, beliefs: NameBeliefs) -> ClassEvidence:
        """The evidence that a frame's region features are."""
        primary = widened(features.primary_regions)
        detector, classifier = widened(features.auxiliary_regions), primary[:, :NUM_IMAGENET]
        return cls(
            beliefs,
            beliefs.weights(detector, classifier),
            primary[:, NUM_IMAGENET : NUM_IMAGENET + len(COLOURS)],
        )

    def chances(self, noun: str) -> Tensor:
        """(regions,) how likely a noun is said of each."""
        return torch.from_numpy(self.beliefs.chances(noun, self.weights))

    def anything(self) -> Tensor:
        """(regions,) how likely each is a thing at all."""
        return torch.from_numpy(self.beliefs.anything(self.weights))

    def alike(self, region: int) -> Tensor:
        """(regions,) how likely each shows the same kind of thing as one of them."""
        return torch.from_numpy(self.beliefs.alike(self.weights, region))

    def coloured(self, colours: Iterable[int]) -> Tensor:
        """(regions,) how likely each has all of some colours, numbers in `COLOURS`."""
        chances = [colour_chances(self.colours, colour) for colour in colours]
        return torch.from_numpy(np.min(chances, axis=0))

    def description(self, region: int) -> str:
        """What to call a region, and its colour where one stands out: "a red car"; "perhaps a red
        car" where no name has much of the belief. A person has no colour, clothes have."""
        weights = self.weights[[region]]
        (name,), ((_, score),) = self.beliefs.said(weights), self.beliefs.usual(weights)
        number = int(self.colours[region].argmax())
        stands_out = colour_chances(self.colours[[region]], number)[0] >= _LEAST_COLOUR
        is_said = stands_out and name not in (COLOURS[number], *_COLOURLESS)
        words = f"{COLOURS[number]} {name}" if is_said else name
        doubt = "perhaps " if score < LEAST_SURE else ""
        return f"{doubt}{with_article(words)}"
