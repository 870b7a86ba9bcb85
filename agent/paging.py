"""More boxes than one prompt holds: which are looked at together, and how answers join.

The published model numbers at most 100 regions and drops the rest. Here proposals are dealt into
pages that share the image's keys and values; a search asks every page, a question about given
boxes or about the whole image asks one. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from agent.detections import IntArray
from agent.prompts import MAX_REGIONS, Task, check_region
from groundstream.errors import InvalidQuery

T = TypeVar("T")


@dataclass(frozen=True)
class Page:
    """Boxes that are shown to the model together; box `indices[k]` is its `<region k>`."""

    indices: IntArray
    """(num_regions,) numbers of the frame's proposals."""

    def __len__(self) -> int:
        return len(self.indices)

    def task(self, task: Task) -> Task:
        """The question in this page's numbers."""
        return task.with_regions({int(box): number for number, box in enumerate(self.indices)})


def pages_for(task: Task, num_proposals: int, *, size: int = MAX_REGIONS) -> tuple[Page, ...]:
    """The pages a question has to be asked on; at least one, also without proposals.

    Proposals come best first, so a question that searches nothing sees the best `size` of them,
    together with the boxes it mentions.

    Raises:
        InvalidQuery: the question mentions a box that does not exist, or more than fit a page.
    """
    mentioned = list(dict.fromkeys(task.mentioned))
    for region in mentioned:
        if check_region(region) >= num_proposals:
            raise InvalidQuery(f"region {region} does not exist: {_possible(num_proposals)}")
    if len(mentioned) > size:
        raise InvalidQuery(f"the question mentions {len(mentioned)} regions, the limit is {size}")
    if num_proposals <= size:
        return (Page(np.arange(num_proposals)),)
    # Mentioned boxes stand on every page; the others follow in order.
    others = np.setdiff1d(np.arange(num_proposals), mentioned)
    step = size - len(mentioned)
    starts = range(0, len(others), step) if task.kind.searches and step else (0,)
    return tuple(
        Page(np.array([*mentioned, *others[start : start + step]], dtype=np.int64))
        for start in starts
    )


def _possible(num_proposals: int) -> str:
    """The regions that may be mentioned, in words."""
    if num_proposals == 0:
        return "this frame has no boxes; send some, or ask about no region"
    if num_proposals == 1:
        return "this frame has 1 box; use 0"
    return f"this frame has {num_proposals} boxes; use 0 to {num_proposals - 1}"


def in_groups(items: Sequence[T], size_of: Callable[[T], int], most: int) -> list[list[T]]:
    """Items in order, in groups whose sizes add up to at most `most`; what is larger is alone."""
    groups: list[list[T]] = []
    total = 0
    for item in items:
        size = size_of(item)
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(item)
        total += size
    return groups
