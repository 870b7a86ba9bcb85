"""Text on which a language model is to stay what it was (knowledge distillation against itself).

Knows no scenes.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.training.pointing_model import NUM_KNOWN, PointingModel
from agent.training.wordnet import wordnet_lines

_LEAST_TEXT_TOKENS = 24


class Rehearsal:
    """Text on which the model is to stay what it was."""

    def __init__(
        self, model: PointingModel, texts: list[list[str]], length: int, seed: int
    ) -> None:
        """`texts`: several sources, of which each step takes any as likely as another."""
        self._model = model
        self._length = length
        self._dice = random.Random(seed)
        self._sources = [
            found for source in texts if (found := [ids for t in source if (ids := self._long(t))])
        ]

    def _long(self, text: str) -> list[int]:
        """Its ids, or none if it is too short to say anything or speaks in the new tokens."""
        ids: list[int] = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        return ids if len(ids) >= _LEAST_TEXT_TOKENS and max(ids) < NUM_KNOWN else []

    def loss(self) -> Tensor:
        """Mean divergence from the untouched model on a piece of text."""
        ids = self._dice.choice(self._dice.choice(self._sources))
        start = self._dice.randrange(max(1, len(ids) - self._length))
        piece = torch.tensor(ids[start : start + self._length])
        positions, embedded = torch.arange(len(piece)), self._model.known[piece]
        with torch.no_grad():
            self._model.set_adapted(False)
            before = self._model.read(embedded, positions, None).float() @ self._model.known.T
            self._model.set_adapted(True)
        after = self._model.read(embedded, positions, None).float() @ self._model.known.T
        return nn.functional.kl_div(
            after.log_softmax(-1), before.log_softmax(-1), reduction="batchmean", log_target=True
        )


def plain_texts(wordnet: Path | None, folders: list[Path]) -> list[list[str]]:
    """English that training did not write: WordNet's definitions, and folders of text files.

    Raises:
        SettingsError: `wordnet` cannot be read.
    """
    sources: list[list[str]] = []
    if wordnet is not None:
        glosses = [line.partition(" | ")[2].strip() for line in wordnet_lines(wordnet)]
        sources.append([". ".join(glosses[k : k + 6]) for k in range(0, len(glosses), 6)])
    for folder in folders:
        files = sorted(folder.glob("**/*.txt"))
        sources.append([path.read_text(errors="replace") for path in files])
    return sources
