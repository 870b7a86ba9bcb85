"""Memory and time of loading a checkpoint of the published 3B shape (random bfloat16 weights).

Writes the checkpoint once (8.3 GB, sharded as published), then loads it in a fresh process and
reports the peak of that process over the size of the weights. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from agent.model.checkpoint import load_model
from agent.model_directory import find_model
from agent.stage_settings import StageFactories
from benchmarks.memory import peak_added_bytes

_SHAPES = Path(__file__).parents[1] / "tests" / "golden" / "full_3b"
_TOKENIZER = _SHAPES.parent / "tokenizer"
_STAGES = {
    "primary_encoder": StageFactories.primary_encoder,
    "auxiliary_encoder": StageFactories.auxiliary_encoder,
    "language": StageFactories.language,
}
_SHARD_BYTES = 4_000_000_000


def write_checkpoint(directory: Path) -> None:
    """Random weights of every published key, in shards of at most 4 GB."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = json.loads(gzip.decompress((_SHAPES / "keys.json.gz").read_bytes()))
    shapes.pop("lm_head.weight")
    (directory / "config.json").write_text((_SHAPES / "config.json").read_text())
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(_TOKENIZER / name, directory / name)
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
    """Load in this process: size of the weights, peaks above the start, seconds."""
    started = time.perf_counter()
    peak = peak_added_bytes(lambda: load_model(directory, dtype=None))
    seconds = time.perf_counter() - started
    sizes: list[int] = []

    def load_and_read() -> None:
        # Weights of the stored type stay mapped; they count as memory once they are read.
        for tensor in load_model(directory, dtype=None).state_dict().values():
            tensor.view(torch.uint8).sum() if tensor.dim() else tensor.sum()
            sizes.append(tensor.nbytes)

    peak_read = peak_added_bytes(load_and_read)
    weights = sum(sizes)
    return {
        "weights_gb": weights / 1e9,
        "peak_gb": peak / 1e9,
        "peak_over_weights": peak / weights,
        "peak_all_read_over_weights": peak_read / weights,
        "seconds": seconds,
    }


def measure_stage(directory: Path, stage: str, dtype: str, *, cold: bool) -> dict[str, float]:
    """Load one stage in this process, as a replica does.

    Args:
        directory: the checkpoint.
        stage: key of `_STAGES`.
        dtype: type of the weights.
        cold: let the files go from the page cache first.
    """
    if cold:
        for file in directory.glob("*.safetensors"):
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    module, _, name = _STAGES[stage].partition(":")
    loader = getattr(importlib.import_module(module), name)
    before, started = _read_bytes(), time.perf_counter()
    find_model(str(directory))
    identity_s, identity_bytes = time.perf_counter() - started, _read_bytes() - before
    kept: list[object] = []
    started = time.perf_counter()
    peak = peak_added_bytes(
        lambda: kept.append(
            loader.from_pretrained(str(directory), device="cpu", num_threads=1, dtype=dtype)
        )
    )
    return {
        "identity_ms": identity_s * 1e3,
        "identity_kb_read": identity_bytes / 1e3,
        "seconds": time.perf_counter() - started,
        "peak_gb": peak / 1e9,
    }


def _read_bytes() -> int:
    """By this process through system calls; mapped weights do not count."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"])


def print_stages(directory: Path, dtype: str) -> None:
    """Each stage in a process of its own, cold and warm."""
    rows = {}
    for stage in _STAGES:
        for state in ("cold", "warm"):
            command = [sys.executable, "-m", "benchmarks.shape_3b_loading", "--stage", stage,
                       "--dtype", dtype, "--directory", str(directory)]  # fmt: skip
            if state == "cold":
                command.append("--cold")
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[f"{stage} {state}"] = figures = json.loads(done.stdout.splitlines()[-1])
            print(f"{stage:18s} {state}", *(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
    print(json.dumps({"benchmark": "shape_3b_stages", "dtype": dtype, **rows}))


def main() -> None:
    """Write if needed, measure in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/groundstream-3b-random"))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--stages", action="store_true", help="each stage, cold and warm")
    parser.add_argument("--dtype", default="stored", help="of the stages' weights")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(measure_stage(arguments.directory, arguments.stage, arguments.dtype,
                                       cold=arguments.cold)))  # fmt: skip
        return
    if arguments.measure:
        print(json.dumps(measure(arguments.directory)))
        return
    if not (arguments.directory / "config.json").is_file():
        write_checkpoint(arguments.directory)
    if arguments.stages:
        print_stages(arguments.directory, arguments.dtype)
        return
    command = [sys.executable, "-m", "benchmarks.shape_3b_loading", "--measure",
               "--directory", str(arguments.directory)]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, value in figures.items():
        print(f"{name:20s} {value:8.2f}")
    print(json.dumps({"benchmark": "shape_3b_loading", **figures}))


if __name__ == "__main__":
    main()
