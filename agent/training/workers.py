"""Several processes that train one model together, as one of them sees it.

Knows torch.distributed and nothing of who started the processes; alone, every call is a no-op.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

Figures = dict[str, float]


@dataclass(frozen=True)
class Workers:
    """This process among those that train."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Workers:
        """The process group this process belongs to, or this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes checkpoints and logs."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def gathered(self, figures: Figures) -> list[Figures]:
        """Everybody's figures, in order of rank."""
        if self.count == 1:
            return [figures]
        everybody: list[Figures] = [{} for _ in range(self.count)]
        distributed.all_gather_object(everybody, figures)
        return everybody

    def summed(self, figures: Figures) -> Figures:
        """Everybody's figures added up; who lacks one adds nothing."""
        return total(self.gathered(figures))

    def agreed(self, flag: bool) -> bool:
        """What the first of them says."""
        if self.count == 1:
            return flag
        said = [flag]
        distributed.broadcast_object_list(said)
        return said[0]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Let everybody step by the mean of all gradients; who has none counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.requires_grad:
                own = parameter.grad
                parameter.grad = torch.zeros_like(parameter) if own is None else own
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.count

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """What the first leaves on disk, the others find."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


def total(rows: list[Figures]) -> Figures:
    """Sum of each figure over the rows that have it."""
    summed: Figures = {}
    for row in rows:
        for name, value in row.items():
            summed[name] = summed.get(name, 0.0) + value
    return summed


def means(rows: list[Figures]) -> Figures:
    """Mean of each figure over the rows that have it."""
    counts = total([dict.fromkeys(row, 1.0) for row in rows])
    return {name: value / counts[name] for name, value in total(rows).items()}
