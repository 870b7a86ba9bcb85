"""One frame, one to twenty questions: what sharing features and prefix saves, in one process.

Prints a table and, last, one JSON line. Both columns run the same weights on the same machine in
the same run; "alone" throws the cache and the prefix away before every question.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.frame import Frame, frame_from_rgb
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from agent.streaming.video_source import open_source

_LABELS = (
    "dog", "automobile", "pizza", "balloon", "sunflower", "rocket", "bicycle", "cat", "guitar",
    "banana", "fish", "house", "bus", "tent", "snail", "crown", "carrot", "star", "owl", "kite",
)  # fmt: skip
_COUNTS = (1, 2, 5, 10, 20)
_CACHE_BYTES = 1 << 26


async def measure(frame: Frame) -> list[dict[str, float]]:
    """Seconds for n questions, shared and alone."""
    stages = LocalStages.from_pretrained()
    digest = find_model().digest

    def fresh() -> Pipeline:
        # A tenant of its own gives a pipeline keys that nothing was stored under.
        tenant = str(time.perf_counter_ns())
        cache = MemoryRegionCache(budget_bytes=_CACHE_BYTES)
        return Pipeline(stages, cache, model_digest=digest, tenant=tenant)

    await fresh().ground(frame, [Task.detect("dog")])
    rows = []
    for count in _COUNTS:
        tasks = [Task.detect(label) for label in _LABELS[:count]]
        started = time.perf_counter()
        together = await fresh().ground(frame, tasks)
        shared_s = time.perf_counter() - started
        started = time.perf_counter()
        alone = [(await fresh().ground(frame, [task])).answers[0] for task in tasks]
        alone_s = time.perf_counter() - started
        same = [a.text for a in together.answers] == [a.text for a in alone]
        rows.append({"questions": count, "shared_s": shared_s, "alone_s": alone_s,
                     "ratio": alone_s / shared_s, "equal_answers": float(same)})  # fmt: skip
    stages.close()
    return rows


def main() -> None:
    """Measure on the first frame of the demo video."""
    video = Path(__file__).parents[1] / "demo" / "scene.mp4"
    picture = next(iter(open_source(str(video))))
    rows = asyncio.run(measure(frame_from_rgb(picture.rgb)))
    table = Table("questions", "shared, ms", "alone, ms", "ratio", "equal answers")
    for row in rows:
        table.add_row(
            f"{row['questions']:.0f}",
            f"{row['shared_s'] * 1e3:.0f}",
            f"{row['alone_s'] * 1e3:.0f}",
            f"{row['ratio']:.2f}",
            "yes" if row["equal_answers"] else "no",
        )
    Console().print(table)
    print(json.dumps({"benchmark": "same_frame", "rows": rows}))


if __name__ == "__main__":
    main()
