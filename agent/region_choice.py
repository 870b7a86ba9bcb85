"""Which regions a label means, read from one distribution over tokens.

Behind `<ground>dog</ground><objects>` every region's token competes with `</objects>` alone:
the odds that a region is meant are the ratio of the two tokens' probabilities. So a label takes
one pass whatever it finds, and every region has a chance of its own. Where the vision parts' own
classes say something of the label too, the two opinions are combined log-linearly, as a language
model is with a translation model in shallow fusion (arXiv 1503.03535). Knows no words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.grammar import AnswerTokens

_LEAST_EVIDENCE = 1e-3
"""No evidence is taken for more certain than this, or there would be nothing left to decide."""
_MOST_ODDS = 1e4


@dataclass(frozen=True)
class RegionChoice:
    """The regions to be listed."""

    tokens: AnswerTokens
    least: float
    """Regions that are meant with less than this chance are not listed."""
    evidence: Tensor | None = None
    """(regions,) chances by class evidence, 0..1 (`agent.beliefs`); None: it does not know the
    label, and the language model decides alone."""
    evidence_share: float = 0.0
    """How much of the log odds is the evidence's; the rest is the language model's."""
    most: Tensor | None = None
    """(regions,) no chance is larger, 0..1: how likely each has the colour that is asked for."""

    def listed(self, logits: Tensor) -> tuple[list[int], list[float]]:
        """Tokens of the listed regions, upwards, and their chances.

        Args:
            logits: (vocabulary,) where the list begins.
        """
        odds = logits[list(self.tokens.regions)] - logits[self.tokens.objects_close]
        if self.evidence is not None:
            odds = combined(odds, self.evidence, self.evidence_share)
        return self._believed(odds)

    def told(self) -> tuple[list[int], list[float]] | None:
        """The same where the language model has no say; None where it has to be asked."""
        if self.evidence is None or self.evidence_share < 1.0:
            return None
        return self._believed(combined(torch.zeros_like(self.evidence), self.evidence, 1.0))

    def _believed(self, odds: Tensor) -> tuple[list[int], list[float]]:
        chances = odds.float().sigmoid()
        if self.most is not None:
            chances = chances.minimum(self.most.to(chances))
        rows = zip(self.tokens.regions, chances.tolist(), strict=True)
        found = [(token, chance) for token, chance in rows if chance >= self.least]
        return [token for token, _ in found], [chance for _, chance in found]


def combined(odds: Tensor, evidence: Tensor, share: float) -> Tensor:
    """(regions,) log odds of two opinions: a weighted mean of both.

    Args:
        odds: (regions,) log odds by the language model.
        evidence: (regions,) chances by class evidence, 0..1.
        share: of the evidence.
    """
    told = torch.logit(evidence.to(odds.device, torch.float32), eps=_LEAST_EVIDENCE)
    # An engine may know nothing of a token: its log odds are then no number to calculate with.
    return torch.lerp(odds.float().clamp(-_MOST_ODDS, _MOST_ODDS), told, share)
