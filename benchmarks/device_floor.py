"""How fast a device could be at best: its measured rates, and what a piece of work asks of it.

The floor of a piece of work is the longer of two times: its operations at the rate of a large
matrix product, and its weights read once at the rate of a large copy. Activations are left out, so
the floor is a true lower bound. Knows no model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Rates:
    """What a device was measured to do."""

    flops_per_s: float
    """Multiplications and additions of a square matrix product."""
    bytes_per_s: float
    """Read and written by a copy."""


@dataclass(frozen=True)
class Work:
    """What a piece of work asks for."""

    flops: float
    num_bytes: float

    def floor_s(self, rates: Rates) -> float:
        """The least time it can take."""
        return max(self.flops / rates.flops_per_s, self.num_bytes / rates.bytes_per_s)

    def bound(self, rates: Rates) -> str:
        """What the least time is spent on."""
        computing = self.flops / rates.flops_per_s
        return "operations" if computing > self.num_bytes / rates.bytes_per_s else "bytes"


def seconds(run: Callable[[], object], *, device: str, rounds: int) -> float:
    """Median time of `run` once it is warm, the device's queue included."""
    measured = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        if number:
            measured.append(time.perf_counter() - started)
    return statistics.median(measured)


@torch.inference_mode()
def measured_rates(device: str, dtype: torch.dtype, *, side: int, num_bytes: int) -> Rates:
    """Rates by a product of two (side, side) matrices and a copy of `num_bytes`."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product_s = seconds(lambda: left @ right, device=device, rounds=9)
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), device=device, rounds=9)
    return Rates(2 * side**3 / product_s, 2 * num_bytes / copy_s)


def work_of(
    run: Callable[[], object], modules: Iterable[nn.Module], *, more_bytes: int = 0
) -> Work:
    """Operations that `run` asks for, and the weights of `modules` with `more_bytes`."""
    # Not every fused attention kernel is counted; plain products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    weights = {id(p): p.numel() * p.element_size() for m in modules for p in m.parameters()}
    return Work(float(counter.get_total_flops()), float(sum(weights.values()) + more_bytes))
