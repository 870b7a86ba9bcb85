"""Region pooling against the published procedure, same inputs, same run.

The published procedure upsamples three of DaViT's levels to the first, concatenates them and calls
`torchvision.ops.roi_align`; this needs an environment in which torchvision loads. Each way is
measured in a process of its own for memory, and side by side for time. Prints a table and one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from agent.model.roi_pooling import pool_upsampled_levels

_WIDTHS = (256, 512, 1024, 2048)
_SCALE, _ROI = 0.25, 7


def inputs(side: int, num_boxes: int) -> tuple[list[Tensor], Tensor]:
    """DaViT-large levels of a square image and random boxes in its pixels."""
    generator = torch.Generator().manual_seed(0)
    cells = side // 4
    levels = [
        torch.randn(1, width, cells // 2**i, cells // 2**i, generator=generator)
        for i, width in enumerate(_WIDTHS)
    ]
    corner = torch.rand(1, num_boxes, 2, generator=generator) * side * 0.8
    size = 8 + torch.rand(1, num_boxes, 2, generator=generator) * side * 0.5
    return levels, torch.cat([corner, (corner + size).clamp(max=side)], dim=-1)


def published(levels: list[Tensor], boxes: Tensor) -> Tensor:
    """Upsample, concatenate, RoIAlign, mean."""
    from torchvision.ops import roi_align

    size = levels[0].shape[-2:]
    resized = [nn.functional.interpolate(level, size, mode="bilinear") for level in levels[1:]]
    joined = torch.cat([levels[0], *resized], dim=1)
    pooled: Tensor = roi_align(joined, [boxes[0]], _ROI, spatial_scale=_SCALE)
    return pooled.mean(dim=(2, 3))


def ours(levels: list[Tensor], boxes: Tensor) -> Tensor:
    """Two weight matrices a level."""
    return pool_upsampled_levels(levels, boxes, spatial_scale=_SCALE, roi_size=_ROI)[0]


WAYS: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {"published": published, "ours": ours}


def extra_memory_mb(way: str, side: int, num_boxes: int) -> float:
    """Peak resident memory one call adds, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.region_pooling", "--memory-of", way,
               "--side", str(side), "--boxes", str(num_boxes)]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure both ways in turn, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    levels, boxes = inputs(arguments.side, arguments.boxes)
    with torch.inference_mode():
        if arguments.memory_of:
            # The way's own code and libraries are loaded before the measurement.
            WAYS[arguments.memory_of](*inputs(64, 2))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            WAYS[arguments.memory_of](levels, boxes)
            print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
            return
        difference = float((published(levels, boxes) - ours(levels, boxes)).abs().max())
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(arguments.rounds):
            for name, way in WAYS.items():
                started = time.perf_counter()
                way(levels, boxes)
                times[name].append(time.perf_counter() - started)
    milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
    memory = {name: extra_memory_mb(name, arguments.side, arguments.boxes) for name in WAYS}
    print(f"{'':12s} {'median ms':>10s} {'extra MiB':>10s}")
    for name in WAYS:
        print(f"{name:12s} {milliseconds[name]:10.1f} {memory[name]:10.1f}")
    figures = {
        "benchmark": "region_pooling",
        "speedup": milliseconds["published"] / milliseconds["ours"],
        "memory_ratio": memory["ours"] / memory["published"],
        "max_abs_difference": difference,
        "torch": torch.__version__,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
