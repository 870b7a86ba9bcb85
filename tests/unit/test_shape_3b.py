"""The 3B benchmark runs: its small shape on a CPU, every figure there and of a sensible size."""

from __future__ import annotations

import pytest
import torch

from benchmarks.device_floor import Rates, Work, work_of
from benchmarks.shape_3b import Shape, measure


async def test_smoke():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = await measure(Shape.smoke())
    torch.set_num_threads(threads)
    stages = {row["stage"]: row for row in result["stages"]}
    assert set(stages) == {
        "proposals", "primary encoder", "auxiliary encoder", "prompt", "one token"
    }  # fmt: skip
    for row in stages.values():
        assert row["gflop"] > 0, row
        assert row["gb"] > 0, row
        assert row["times_floor"] == pytest.approx(row["ms"] / row["floor_ms"])
    for row in result["questions"] + result["questions_compiled"]:
        assert row["equal_answers"] == 1.0
        assert row["guesses_change_nothing"]
        assert all(row[f"{way}, ms"] > 0 for way in ("engine", "reference", "printed digits"))
    for name in ("decoding", "decoding_compiled"):
        assert [row["answers_together"] for row in result[name]] == [1, 8, 32]


def test_operations_and_weights_are_counted():
    layer = torch.nn.Linear(30, 20, bias=False)
    work = work_of(lambda: layer(torch.zeros(5, 30)), [layer, layer], more_bytes=7)
    assert work == Work(flops=2 * 5 * 30 * 20, num_bytes=30 * 20 * 4 + 7)


@pytest.mark.parametrize(
    ("work", "floor", "bound"),
    [(Work(100.0, 10.0), 10.0, "operations"), (Work(10.0, 100.0), 20.0, "bytes")],
)
def test_the_floor_is_the_longer_of_two_times(work, floor, bound):
    rates = Rates(flops_per_s=10.0, bytes_per_s=5.0)
    assert work.floor_s(rates) == floor
    assert work.bound(rates) == bound
