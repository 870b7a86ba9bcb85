"""Which regions a label means, read from one distribution over tokens.

Behind `<ground>dog</ground><objects>` every region's token competes with `</objects>` alone:
the odds that a region is meant are the ratio of the two tokens' probabilities. So a label takes
one pass whatever it finds, and every region has a chance of its own. Knows no words.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agent.grammar import AnswerTokens


@dataclass(frozen=True)
class RegionChoice:
    """The regions to be listed."""

    tokens: AnswerTokens
    least: float
    """Regions that are meant with less than this chance are not listed."""

    def listed(self, logits: Tensor) -> tuple[list[int], list[float]]:
        """Tokens of the listed regions, upwards, and their chances.

        Args:
            logits: (vocabulary,) where the list begins.
        """
        regions = list(self.tokens.regions)
        chances = (logits[regions] - logits[self.tokens.objects_close]).sigmoid().tolist()
        found = [(token, p) for token, p in zip(regions, chances, strict=True) if p >= self.least]
        return [token for token, _ in found], [chance for _, chance in found]
