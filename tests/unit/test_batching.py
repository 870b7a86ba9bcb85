"""What gathers behind a busy stage is computed together; nothing waits, nothing is spoilt."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from agent.batching import Batcher, batch_limit, equal_rows
from groundstream.errors import InvalidFrame


class Doubling:
    """Doubles numbers, refuses negative ones, and can be held up."""

    def __init__(self):
        self.gate, self.begun = threading.Event(), threading.Event()
        self.calls = []

    def __call__(self, numbers):
        self.begun.set()
        self.gate.wait(10)
        self.calls.append(numbers)
        if min(numbers) < 0:
            raise InvalidFrame("negative")
        return [2 * number for number in numbers]


@pytest.fixture
def doubling():
    return Doubling()


@pytest.fixture
def thread():
    with ThreadPoolExecutor(max_workers=1) as made:
        yield made


def busy(doubling, thread, *, limit):
    """A batcher whose thread works on the number 0."""
    batcher = Batcher(doubling, thread, limit=limit)
    first = batcher.submit(0)
    assert doubling.begun.wait(10)
    return batcher, first


def test_what_waits_is_computed_together(doubling, thread):
    batcher, first = busy(doubling, thread, limit=3)
    waiting = [batcher.submit(number) for number in range(1, 6)]
    doubling.gate.set()
    assert [future.result(10) for future in [first, *waiting]] == [0, 2, 4, 6, 8, 10]
    assert doubling.calls == [[0], [1, 2, 3], [4, 5]]
    assert batcher.num_batches == 3


def test_one_at_a_time(doubling, thread):
    batcher, first = busy(doubling, thread, limit=1)
    waiting = [batcher.submit(number) for number in (1, 2)]
    doubling.gate.set()
    assert [future.result(10) for future in [first, *waiting]] == [0, 2, 4]
    assert doubling.calls == [[0], [1], [2]]


def test_a_bad_item_fails_alone(doubling, thread):
    batcher, _ = busy(doubling, thread, limit=3)
    good, bad, also_good = (batcher.submit(number) for number in (1, -2, 3))
    doubling.gate.set()
    assert good.result(10) == 2
    assert also_good.result(10) == 6
    with pytest.raises(InvalidFrame):
        bad.result(10)


def test_what_is_cancelled_while_it_waits_is_left_out(doubling, thread):
    batcher, _ = busy(doubling, thread, limit=3)
    kept, gone = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    doubling.gate.set()
    assert kept.result(10) == 2
    with pytest.raises(CancelledError):
        gone.result(10)
    assert doubling.calls == [[0], [1]]


def test_equal_keys_are_one_batch():
    assert equal_rows(["a", "b", "a", "c", "b"]) == [[0, 2], [1, 4], [3]]


@pytest.mark.parametrize(
    ("device", "wanted", "limit"), [("cpu", None, 1), ("cuda", None, 8), ("cpu", 4, 4)]
)
def test_what_suits_the_device(device, wanted, limit):
    assert batch_limit(device, wanted) == limit
