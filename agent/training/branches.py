"""Many questions about one scene in one sequence: a trunk, and branches that do not see each other.

The regions are read once; each branch continues from where the trunk ends, as questions do that
share a prefix in the service. Knows no scenes and no words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Branch:
    """A continuation of the trunk, or of a stem that some branches share."""

    ids: list[int]
    wanted: list[bool]
    """Which of `ids` the model is to predict (from the token before)."""
    stem: int | None = None
    """Index of the branch it continues; None: the trunk."""
    free: bool = False
    """Predict among all tokens, not among the answer's candidates alone."""


@dataclass(frozen=True)
class Tree:
    """A packed sequence with everything the loss needs."""

    ids: Tensor
    """(length,) 0 where a slot stands."""
    positions: Tensor
    """(length,)."""
    mask: Tensor
    """(length, length) True where row may look at column."""
    rows: Tensor
    """(predictions,) where the state stands that predicts."""
    targets: Tensor
    """(predictions,) the id to predict."""
    free: Tensor
    """(predictions,) whether all tokens are candidates."""
    branch: Tensor
    """(predictions,) number of the branch."""


def pack(trunk: list[int], branches: list[Branch]) -> Tree:
    """One sequence of a trunk and its branches.

    Args:
        trunk: ids, anything at slots.
        branches: stems before what continues them.
    """
    ids, positions = list(trunk), list(range(len(trunk)))
    spans: list[tuple[int, int]] = []
    rows, targets, free, numbers = [], [], [], []
    length = len(trunk) + sum(len(branch.ids) for branch in branches)
    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[: len(trunk), : len(trunk)] = torch.ones(len(trunk), len(trunk), dtype=torch.bool).tril()
    for number, branch in enumerate(branches):
        start, stop = len(ids), len(ids) + len(branch.ids)
        own = torch.ones(len(branch.ids), len(branch.ids), dtype=torch.bool).tril()
        mask[start:stop, start:stop] = own
        mask[start:stop, : len(trunk)] = True
        before = len(trunk) - 1
        first = len(trunk)
        if branch.stem is not None:
            stem_start, stem_stop = spans[branch.stem]
            mask[start:stop, stem_start:stem_stop] = True
            before, first = stem_stop - 1, positions[stem_stop - 1] + 1
        spans.append((start, stop))
        ids += branch.ids
        positions += range(first, first + len(branch.ids))
        for offset, wanted in enumerate(branch.wanted):
            if wanted:
                rows.append(start + offset - 1 if offset else before)
                targets.append(branch.ids[offset])
                free.append(branch.free)
                numbers.append(number)
    return Tree(
        torch.tensor(ids), torch.tensor(positions), mask, torch.tensor(rows, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long), torch.tensor(free, dtype=torch.bool),
        torch.tensor(numbers, dtype=torch.long),
    )  # fmt: skip
