"""Many questions about one frame: together, one after the other, and each as if it were the first.

Together means one call with all questions; one by one means each is asked when the answer before
is there, as a program would that reasons about what it sees, and only the first finds the frame
unknown. Anew means that nothing is kept from one question to the next: proposals, encoders and
prompt are computed for each, so its time is that of one question times their number; it is measured
on up to two. Prints a table, whether the answers were equal, and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from agent.frame import Frame, frame_from_rgb
from agent.model_directory import DEFAULT_MODEL
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from groundstream.video.sources import open_source

LABELS = (
    "dog", "automobile", "pizza", "balloon", "sunflower", "rocket", "bicycle", "cat", "guitar",
    "banana", "fish", "house", "bus", "tent", "snail", "crown", "carrot", "star", "owl", "kite",
)  # fmt: skip
_VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_COUNTS = (1, 2, 5, 10, 20)
_MEASURED_ANEW = 2


class Bench:
    """The stages, and one frame that each round meets for the first time."""

    def __init__(self, stages: LocalStages, frame: Frame) -> None:
        self._stages = stages
        self._frame = frame

    def _fresh(self) -> Pipeline:
        # A tenant of its own gives a pipeline keys that nothing was stored under.
        tenant = str(time.perf_counter_ns())
        return Pipeline(self._stages, MemoryRegionCache(), model_digest="", tenant=tenant)

    async def together(self, tasks: list[Task]) -> list[str]:
        """All questions in one call."""
        grounding = await self._fresh().ground(self._frame, tasks)
        return [answer.text for answer in grounding.answers]

    async def one_by_one(self, tasks: list[Task]) -> list[str]:
        """Each question once the answer before is there."""
        pipeline = self._fresh()
        return [(await pipeline.ground(self._frame, [t])).answers[0].text for t in tasks]

    async def anew(self, tasks: list[Task]) -> list[str]:
        """Each question of a frame that nobody has seen."""
        return [(await self.together([task]))[0] for task in tasks]


async def measure(bench: Bench, *, rounds: int) -> list[dict[str, object]]:
    """Each way's time by number of questions, in turns; the first turn warms up.

    Processor time stands beside wall time: on a machine with neighbours it is the steadier one.
    """
    rows: list[dict[str, object]] = []
    for count in _COUNTS:
        tasks = [Task.detect(label) for label in LABELS[:count]]
        alone = tasks[:_MEASURED_ANEW]
        times: dict[str, list[tuple[float, float]]] = {
            name: [] for name in ("together", "one_by_one", "anew")
        }
        texts: dict[str, list[str]] = {}
        for _ in range(rounds + 1):
            for name, asked in (("together", tasks), ("one_by_one", tasks), ("anew", alone)):
                started = time.perf_counter(), time.process_time()
                texts[name] = await getattr(bench, name)(asked)
                share = len(tasks) / len(asked)
                wall_s = (time.perf_counter() - started[0]) * share
                times[name].append((wall_s, (time.process_time() - started[1]) * share))
        medians, busy = (
            {name: statistics.median(t[of] for t in taken[1:]) for name, taken in times.items()}
            for of in (0, 1)
        )
        rows.append(
            {
                "questions": count,
                **{f"{name}_ms": round(1e3 * taken, 1) for name, taken in medians.items()},
                "times_one_by_one": round(medians["one_by_one"] / medians["together"], 2),
                "times_anew": round(medians["anew"] / medians["together"], 2),
                "times_anew_processor": round(busy["anew"] / busy["together"], 2),
                "equal_answers": texts["together"] == texts["one_by_one"]
                and texts["together"][: len(alone)] == texts["anew"],
            }
        )
    return rows


def main() -> None:
    """Measure on the first frame of the demo video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stages = LocalStages.from_pretrained(options.model, device=options.device)
    frame = frame_from_rgb(next(iter(open_source(str(_VIDEO)))).rgb)
    rows = asyncio.run(measure(Bench(stages, frame), rounds=options.rounds))
    stages.close()
    table = Table("questions", *(str(row["questions"]) for row in rows))
    for name in list(rows[0])[1:]:
        table.add_row(name, *(str(row[name]) for row in rows))
    Console().print(table)
    print(json.dumps({"benchmark": "same_frame", "rows": rows}))


if __name__ == "__main__":
    main()
