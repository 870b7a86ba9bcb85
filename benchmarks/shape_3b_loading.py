"""Memory and time of loading a checkpoint of the published 3B shape (random bfloat16 weights).

Writes the checkpoint once (8.3 GB, sharded as published), then loads it in a fresh process and
reports the peak of that process over the size of the weights. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from agent.model.checkpoint import load_model

_SHAPES = Path(__file__).parents[1] / "tests" / "golden" / "full_3b"
_SHARD_BYTES = 4_000_000_000


def write_checkpoint(directory: Path) -> None:
    """Random weights of every published key, in shards of at most 4 GB."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = json.loads(gzip.decompress((_SHAPES / "keys.json.gz").read_bytes()))
    shapes.pop("lm_head.weight")
    (directory / "config.json").write_text((_SHAPES / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    size, number = 0, 1
    for key, shape in shapes.items():
        tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        if size + tensor.nbytes > _SHARD_BYTES:
            save_file(shard, directory / f"model-{number:05d}.safetensors")
            shard, size, number = {}, 0, number + 1
        shard[key] = tensor
        files[key] = f"model-{number:05d}.safetensors"
        size += tensor.nbytes
    save_file(shard, directory / f"model-{number:05d}.safetensors")
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def measure(directory: Path) -> dict[str, float]:
    """Load in this process: size of the weights, peak above the start, seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    model = load_model(directory, dtype=None)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {
        "weights_gb": weights / 1e9,
        "peak_gb": (peak - before) / 1e9,
        "peak_over_weights": (peak - before) / weights,
        "seconds": seconds,
    }


def main() -> None:
    """Write if needed, measure in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/groundstream-3b-random"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.directory)))
        return
    if not (arguments.directory / "config.json").is_file():
        write_checkpoint(arguments.directory)
    command = [sys.executable, "-m", "benchmarks.shape_3b_loading", "--measure",
               "--directory", str(arguments.directory)]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, value in figures.items():
        print(f"{name:20s} {value:8.2f}")
    print(json.dumps({"benchmark": "shape_3b_loading", **figures}))


if __name__ == "__main__":
    main()
