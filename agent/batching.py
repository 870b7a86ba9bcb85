"""What comes while a stage is busy is computed together when it is free.

Nothing waits for company: a batch is what has gathered behind the work under way, so a lone item
is never held up. Knows neither frames nor models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")

_MOST_ON_CPU, _MOST_ELSEWHERE = 1, 8


def batch_limit(device: str, wanted: int | None) -> int:
    """How many frames are computed together: what is wanted, else what suits the device.

    On a CPU a frame fills the cores by itself: batches were measured to gain less than a tenth of
    the time, and each frame of one waits for the last (docs/decisions/vision.md).
    """
    if wanted is not None:
        return wanted
    return _MOST_ON_CPU if device == "cpu" else _MOST_ELSEWHERE


def equal_rows(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys, in order of first appearance: what can be one batch."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return list(places.values())


def compute_together(
    batch: Sequence[A],
    compute: Callable[[Sequence[A]], None],
    fail: Callable[[A, BaseException], None],
) -> None:
    """One call for all; when it fails one call each, so that a bad item does not spoil the others.

    Args:
        batch: what to compute.
        compute: computes some items and hands their results on.
        fail: told of an item that failed alone.
    """
    try:
        compute(batch)
    except BaseException as error:
        # Whatever it is belongs to who asked; the thread goes on.
        if len(batch) == 1:
            fail(batch[0], error)
            return
        for item in batch:
            compute_together([item], compute, fail)


class Batcher(Generic[A, R]):
    """Hands what waits, up to a limit, to one function of a list; safe from any thread."""

    def __init__(
        self, compute: Callable[[list[A]], list[R]], executor: Executor, *, limit: int
    ) -> None:
        """
        Args:
            compute: one result for each item of a list.
            executor: where it runs; other work may run there, too.
            limit: items of one call.
        """
        self._compute = compute
        self._executor = executor
        self._limit = limit
        self._waiting: deque[tuple[A, Future[R]]] = deque()
        self.num_batches = 0

    def submit(self, item: A) -> Future[R]:
        """The item's result to come; cancelling it while it waits leaves it out."""
        future: Future[R] = Future()
        self._waiting.append((item, future))
        # One call for each item: the first to run takes what waits, the others find nothing left.
        self._executor.submit(self._compute_waiting)
        return future

    def _compute_waiting(self) -> None:
        batch: list[tuple[A, Future[R]]] = []
        while len(batch) < self._limit:
            try:
                item, future = self._waiting.popleft()
            except IndexError:
                break
            if future.set_running_or_notify_cancel():
                batch.append((item, future))
        if batch:
            compute_together(batch, self._settle, lambda one, error: one[1].set_exception(error))

    def _settle(self, batch: Sequence[tuple[A, Future[R]]]) -> None:
        self.num_batches += 1
        results = self._compute([item for item, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
