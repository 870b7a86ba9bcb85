"""The builtin engine and vLLM with one model: start, memory, times, and whether answers are equal.

Each engine has a process of its own, so that its memory is its own; the frames' features are made
before. Needs groundstream-vllm (`make vllm` makes its environment). Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from agent.engine_backends import BUILTIN
from agent.features import FrameFeatures
from agent.frame import frame_from_rgb
from agent.generation import LanguageStage
from agent.model_directory import DEFAULT_MODEL
from agent.prompts import Task
from agent.stage_settings import EngineSettings
from agent.stages import local_pipeline
from benchmarks.same_frame import LABELS
from groundstream.video.sources import open_source

_VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_NUM_FRAMES = 4
_TOGETHER = 10
_WORDED = (
    Task.describe_image(),
    Task.describe_region(0, detailed=True),
    Task.chat("What do you see?"),
    Task.chat("Is there a dog?"),
)
TASKS = [
    *(Task.detect(label) for label in LABELS[:_TOGETHER]),
    *(replace(task, max_new_tokens=32) for task in _WORDED),
]
_MIB = 2**20


async def seen(model: str) -> list[FrameFeatures]:
    """Features of some frames of the demo video."""
    pipeline = local_pipeline(model)
    pictures = itertools.islice(open_source(str(_VIDEO)), 0, None, 20)
    frames = [frame_from_rgb(picture.rgb) for picture in itertools.islice(pictures, _NUM_FRAMES)]
    return [(await pipeline.features(frame))[0] for frame in frames]


def measured(
    model: str, seen_before: list[FrameFeatures], engine: EngineSettings
) -> dict[str, object]:
    """One engine's start, memory and times; answers are in it to be compared."""
    process = psutil.Process()
    before, started_s = process.memory_info().rss, time.perf_counter()
    stage = LanguageStage.from_pretrained(model, dtype="float32", num_threads=1, engine=engine)
    opened_s = time.perf_counter() - started_s
    opened_mib = (process.memory_info().rss - before) / _MIB
    asked = TASKS[:_TOGETHER]
    numbers = itertools.count()

    def unseen(features: FrameFeatures) -> FrameFeatures:
        return replace(features, key=f"unseen {next(numbers)}", image_key="")

    def together(features: FrameFeatures) -> None:
        for answer in [stage.start(features, task) for task in asked]:
            answer.result()

    def one_by_one(features: FrameFeatures) -> None:
        for task in asked:
            stage.answer(features, task)

    def medians_ms(
        way: Callable[[FrameFeatures], None], frames: list[FrameFeatures]
    ) -> dict[str, float]:
        """Wall and processor time; where there are neighbours the second is the steadier one."""
        times = []
        for features in frames:
            begun = time.perf_counter(), time.process_time()
            way(features)
            times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        walls, busy = ([1e3 * time_s for time_s in column] for column in zip(*times, strict=True))
        return {
            "wall": round(statistics.median(walls), 1),
            "processor": round(statistics.median(busy), 1),
        }

    together(unseen(seen_before[0]))  # warms up
    answers = [[stage.answer(features, task) for task in TASKS] for features in seen_before]
    result: dict[str, object] = {
        "open_s": round(opened_s, 1),
        "opened_mib": round(opened_mib),
        "cold_ms": medians_ms(together, [unseen(features) for features in seen_before]),
        "warm_ms": medians_ms(together, seen_before),
        "one_by_one_ms": medians_ms(one_by_one, seen_before),
        "reused_tokens": sum(a.num_prefix_tokens_reused for row in answers for a in row),
        "passes": sum(a.num_passes for row in answers for a in row),
        "asked_mib": round((process.memory_info().rss - before) / _MIB),
        "texts": [[answer.text for answer in row] for row in answers],
    }
    closed_s = time.perf_counter()
    stage.close()
    return result | {"close_s": round(time.perf_counter() - closed_s, 1)}


def main() -> None:
    """Measure both engines, or in a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--prefix-bytes", type=int, default=EngineSettings.prefix_bytes)
    parser.add_argument("--engine", help="measure this one alone, on --features")
    parser.add_argument("--features", type=Path)
    options = parser.parse_args()
    if options.engine is not None:
        engine = EngineSettings(backend=options.engine, prefix_bytes=options.prefix_bytes)
        features = pickle.loads(options.features.read_bytes())
        print(json.dumps(measured(options.model, features, engine)))
        return
    rows: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features"
        file.write_bytes(pickle.dumps(asyncio.run(seen(options.model))))
        for name in (BUILTIN, "vllm"):
            ran = subprocess.run(
                [sys.executable, "-m", "benchmarks.vllm_engine", "--engine", name, "--features",
                 str(file), "--model", options.model, "--prefix-bytes", str(options.prefix_bytes)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows[name] = json.loads(ran.stdout.splitlines()[-1])
    ours, theirs = (row.pop("texts") for row in rows.values())
    assert isinstance(ours, list)
    assert isinstance(theirs, list)
    pairs = [pair for row in zip(ours, theirs, strict=True) for pair in zip(*row, strict=True)]
    equal = sum(mine == other for mine, other in pairs)
    print(json.dumps({"benchmark": "vllm_engine", **rows, "equal": f"{equal} of {len(pairs)}"}))


if __name__ == "__main__":
    main()
