"""The published procedure against the engine, same weights, same run, answers compared.

The published code answers one question about one image: proposals, both encoders, the whole
prompt and every token are computed anew, one token a pass. Groundstream computes a frame once,
shares its prefix, decodes questions together and verifies guesses. Prints a table and one JSON
line.
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
from transformers.cache_utils import DynamicCache

from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.generation import LanguageStage
from agent.model_directory import DEFAULT_MODEL, find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from groundstream.video.sources import open_source

LABELS = (
    "dog", "automobile", "pizza", "balloon", "sunflower", "rocket", "bicycle", "cat", "guitar",
    "banana", "fish", "house", "bus", "tent", "snail", "crown", "carrot", "star", "owl", "kite",
)  # fmt: skip
_COUNTS = (1, 2, 5, 10, 20)
_CACHE_BYTES = 1 << 28


@torch.inference_mode()
def plain_ids(
    language: LanguageStage, features: FrameFeatures, task: Task
) -> tuple[list[int], int]:
    """The whole prompt at once, then greedy decoding token by token: (ids, passes)."""
    model, builder = language._language, language._builder
    grid = language._model.config.token_grid(features.grid)
    prefix = builder.prefix(grid, len(features.proposals))
    question = builder.question(task.text, start=prefix.next_position)
    embeddings = torch.cat(
        [
            language._input(part, shown).embedded(model)
            for part, shown in ((prefix, features), (question, None))
        ]
    )[None]
    device = embeddings.device
    positions = torch.cat([prefix.positions, question.positions], dim=1)[:, None].to(device)
    cache, position, passes = DynamicCache(), question.next_position, 0
    ids: list[int] = []
    while len(ids) < task.max_new_tokens:
        hidden = model(embeddings, positions, cache=cache)
        passes += 1
        token = int(model.logits(hidden[0, -1]).argmax())
        if token == builder.end_of_turn:
            break
        ids.append(token)
        embeddings = model.embed(torch.tensor([[token]], device=device))
        positions = torch.full((3, 1, 1), position, device=device)
        position += 1
    return ids, passes


def plain_answer(language: LanguageStage, features: FrameFeatures, task: Task) -> tuple[str, int]:
    """What plain greedy decoding writes: (text, passes)."""
    ids, passes = plain_ids(language, features, task)
    return "".join(language._tokenizer.pieces(ids)), passes


async def measure(frame: Frame, *, model: str, device: str, rounds: int) -> list[dict[str, float]]:
    """Seconds for n questions about one frame, both ways in turn."""
    stages = LocalStages.from_pretrained(model, device=device)
    digest = find_model(model).digest

    def fresh() -> Pipeline:
        # A tenant of its own gives a pipeline keys that nothing was stored under.
        tenant = str(time.perf_counter_ns())
        cache = MemoryRegionCache(budget_bytes=_CACHE_BYTES)
        return Pipeline(stages, cache, model_digest=digest, tenant=tenant)

    async def reference(task: Task) -> tuple[str, int]:
        features, _ = await fresh().features(frame)
        return plain_answer(stages.language, features, task)

    await fresh().ground(frame, [Task.detect("dog")])
    await reference(Task.detect("dog"))
    rows = []
    for count in _COUNTS:
        tasks = [Task.detect(label) for label in LABELS[:count]]
        ours_s, reference_s = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            answers = (await fresh().ground(frame, tasks)).answers
            ours_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            plain = [await reference(task) for task in tasks]
            reference_s.append(time.perf_counter() - started)
        rows.append(
            {
                "questions": count,
                "engine_ms": 1e3 * statistics.median(ours_s),
                "reference_ms": 1e3 * statistics.median(reference_s),
                "ratio": statistics.median(reference_s) / statistics.median(ours_s),
                "engine_passes": statistics.mean(a.num_passes for a in answers),
                "reference_passes": statistics.mean(passes for _, passes in plain),
                "equal": float([a.text for a in answers] == [text for text, _ in plain]),
            }
        )
    stages.close()
    return rows


async def cached_question(frame: Frame, *, model: str, device: str) -> dict[str, float]:
    """One more question about a frame that is known, against a cold one."""
    stages = LocalStages.from_pretrained(model, device=device)
    cold_s: list[float] = []
    warm_s: list[float] = []
    for round_number in range(9):
        pipeline = Pipeline(
            stages, MemoryRegionCache(budget_bytes=_CACHE_BYTES),
            model_digest=find_model(model).digest, tenant=str(round_number),
        )  # fmt: skip
        for times, label in ((cold_s, "dog"), (warm_s, "pizza")):
            started = time.perf_counter()
            await pipeline.ground(frame, [Task.detect(label)])
            times.append(time.perf_counter() - started)
    stages.close()
    cold, warm = statistics.median(cold_s[1:]), statistics.median(warm_s[1:])
    return {"cold_ms": cold * 1e3, "warm_ms": warm * 1e3, "warm_share": warm / cold}


def main() -> None:
    """Measure on the first frame of the demo video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    video = Path(__file__).parents[1] / "demo" / "scene.mp4"
    frame = frame_from_rgb(next(iter(open_source(str(video)))).rgb)
    options = {"model": arguments.model, "device": arguments.device}
    rows = asyncio.run(measure(frame, rounds=arguments.rounds, **options))
    more = asyncio.run(cached_question(frame, **options))
    table = Table("questions", "engine, ms", "reference, ms", "ratio", "passes", "equal answers")
    for row in rows:
        table.add_row(
            f"{row['questions']}",
            f"{row['engine_ms']:.0f}",
            f"{row['reference_ms']:.0f}",
            f"{row['ratio']:.1f}",
            f"{row['engine_passes']:.1f} / {row['reference_passes']:.1f}",
            "yes" if row["equal"] else "no",
        )
    Console().print(table)
    print(f"one more question about a known frame: {more['warm_ms']:.0f} ms, "
          f"{100 * more['warm_share']:.0f} % of a cold one ({more['cold_ms']:.0f} ms)")  # fmt: skip
    print(json.dumps({"benchmark": "reference_path", "rows": rows, **more}))


if __name__ == "__main__":
    main()
