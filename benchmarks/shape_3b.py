"""The published 3B shape with random weights: every stage, whole answers, and the device's floor.

One self-contained command for one GPU (a few minutes); `--smoke` runs a small shape on a CPU, to
show that the command works. Random weights write nonsense, so answers have a fixed length, and
guesses are shown at both ends: none right, and all right. Beside the engine stand the same modules
used the published way (each question recomputes everything, one token a pass), and a stock
Qwen2.5-VL of the same shape, which has one encoder and no regions and prints its boxes as digits.
Answers are measured twice, the second time with compiled decoder layers. Prints tables and one JSON
line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.cache_utils import DynamicCache

from agent.detections import FloatArray, Proposals
from agent.drafting import Drafter
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.engine import Engine
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.generation import LanguageStage
from agent.generation_request import Completion
from agent.model.checkpoint import build_empty
from agent.model.configuration import ProposalConfig, VLMFO1Config
from agent.model.nanodet import NanoDet
from agent.model.universal_proposals import UniversalProposalConfig, UniversalProposalNetwork
from agent.model.vlm_fo1 import VLMFO1
from agent.pipeline import Pipeline
from agent.prompts import Task, TaskKind
from agent.proposer import Proposer
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from agent.tokenizer import PromptTokenizer, train_tokenizer
from agent.training.mixture import corpus
from benchmarks.device_floor import Rates, measured_rates, seconds, work_of
from benchmarks.same_frame import LABELS

_SMOKE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "rope_scaling": {"mrope_section": [2, 3, 3]}, "mm_region_hidden_size": None,
    "vision_config": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 64, "fullatt_block_indexes": [1],
    },
    "groundstream": {
        "davit": {"depths": [1, 1, 1, 1], "widths": [8, 16, 16, 24], "num_heads": [1, 2, 2, 2]},
        "pyramid_width": 8, "max_long_side": 448,
    },
}  # fmt: skip
"""What is smaller where only the benchmark itself is tried."""
_CONFIG = Path(__file__).parents[1] / "tests" / "golden" / "full_3b" / "config.json"
_TOKENS_PER_PRINTED_BOX = 32
"""{"bbox_2d": [123, 456, 789, 1011], "label": "person"}, and a comma: Qwen2.5 writes every digit
as a token of its own (14 here), and brackets, quotes, names and commas as about 18 more."""
_GIB = 2**30


@torch.inference_mode()
def _plain_ids(language: LanguageStage, features: FrameFeatures, task: Task) -> list[int]:
    """The whole prompt at once, then greedy decoding token by token, as published."""
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
    cache, position = DynamicCache(), question.next_position
    ids: list[int] = []
    while len(ids) < task.max_new_tokens:
        hidden = model(embeddings, positions, cache=cache)
        token = int(model.logits(hidden[0, -1]).argmax())
        if token == builder.end_of_turn:
            break
        ids.append(token)
        embeddings = model.embed(torch.tensor([[token]], device=device))
        positions = torch.full((3, 1, 1), position, device=device)
        position += 1
    return ids


@dataclass(frozen=True)
class Shape:
    """What is run, and how often."""

    device: str
    dtype: torch.dtype
    frame_size: tuple[int, int]
    num_boxes: int
    answer_tokens: int
    """Of one answer in regions: the opening, a few regions, the end."""
    num_answer_boxes: int
    """Boxes of one answer, which stock Qwen prints as digits."""
    batch: int
    rounds: int
    matmul_side: int
    copy_bytes: int

    @classmethod
    def published(cls, device: str) -> Shape:
        """The 3B shape on a GPU: a 720p frame, 100 boxes."""
        return cls(device, torch.bfloat16, (1280, 720), 100, 12, 3, 8, 5, 8192, 2 * _GIB)

    @classmethod
    def smoke(cls) -> Shape:
        """Small enough for a test."""
        return cls("cpu", torch.float32, (160, 120), 6, 6, 1, 2, 1, 256, 2**24)

    @property
    def is_smoke(self) -> bool:
        return self.device == "cpu"


@torch.inference_mode()
def random_model(shape: Shape, tokenizer: PromptTokenizer) -> VLMFO1:
    """All parts on the device: matrices drawn at random, norms and biases neutral."""
    raw = json.loads(_CONFIG.read_text())
    if shape.is_smoke:
        raw |= _SMOKE | {"vocab_size": tokenizer.vocab_size}
    config = VLMFO1Config.from_dict(raw)
    model = build_empty(config, device=shape.device)
    generator = torch.Generator(shape.device).manual_seed(0)
    state = {}
    for name, empty in model.state_dict().items():
        made = torch.zeros(empty.shape, dtype=shape.dtype, device=shape.device)
        if made.dim() > 1:
            made.normal_(0.0, 0.02, generator=generator)
        elif name.endswith("weight"):
            made.fill_(1.0)
        state[name] = made
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def random_proposals(shape: Shape) -> Proposer:
    """The proposal network that FO1 publishes with, or a quick one."""
    torch.manual_seed(0)
    network = NanoDet() if shape.is_smoke else UniversalProposalNetwork(UniversalProposalConfig())
    return Proposer(network.eval(), ProposalConfig(score_threshold=0.0), device=shape.device)


class Measurement:
    """The stages, one frame with its boxes, and the device's rates."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        tokenizer = train_tokenizer(corpus(list(LABELS)), 512)
        self.model = random_model(shape, tokenizer)
        self.proposer = random_proposals(shape)
        self.primary = PrimaryEncoderStage(self.model, device=shape.device)
        self.auxiliary = AuxiliaryEncoderStage(self.model, device=shape.device)
        self.language = LanguageStage(self.model, tokenizer, device=shape.device)
        self.stages = LocalStages(self.proposer, self.primary, self.auxiliary, self.language)
        rng = np.random.default_rng(0)
        width, height = shape.frame_size
        self.frame: Frame = frame_from_rgb(
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8), jpeg_quality=90
        )
        corner = rng.uniform(0.0, 0.6, (shape.num_boxes, 2))
        extent = rng.uniform(0.05, 0.4, (shape.num_boxes, 2))
        self.boxes: FloatArray = (
            np.hstack([corner, corner + extent]) * np.tile([width, height], 2)
        ).astype(np.float32)
        self.rates: Rates = measured_rates(
            shape.device, shape.dtype, side=shape.matmul_side, num_bytes=shape.copy_bytes
        )

    def task(self, label: str, *, num_tokens: int | None = None) -> Task:
        """A question whose answer has a fixed length."""
        count = self.shape.answer_tokens if num_tokens is None else num_tokens
        return Task(TaskKind.DETECT, label, max_new_tokens=count)

    async def features(self) -> FrameFeatures:
        """The frame's, computed anew with the given boxes, the proposals computed and dropped."""
        tenant = str(time.perf_counter_ns())
        pipeline = Pipeline(self.stages, MemoryRegionCache(), model_digest="", tenant=tenant)
        _, (features, _) = await asyncio.gather(
            self.stages.propose(self.frame), pipeline.features(self.frame, boxes=self.boxes)
        )
        return features

    # ---- single stages ----

    def stage_rows(self, features: FrameFeatures) -> list[dict[str, object]]:
        """Each stage alone: time, floor, and its time per frame in a batch."""
        primary, auxiliary, proposals = self.primary, self.auxiliary, features.proposals
        model, network = self.model, self.proposer.network
        assert network is not None
        stages: tuple[tuple[str, Callable[[list[Frame]], object], list[nn.Module | None]], ...] = (
            ("proposals", self.proposer.propose, [network]),
            ("primary encoder",
             lambda frames: [primary.pool(one, proposals) for one in primary.start(frames)],
             [model.primary_encoder, model.region_encoder]),
            ("auxiliary encoder",
             lambda frames: [auxiliary.pool(one, proposals) for one in auxiliary.start(frames)],
             [model.auxiliary_encoder]),
        )  # fmt: skip
        rows = []
        for name, run, modules in stages:
            present = [module for module in modules if module is not None]
            row = self._row(name, partial(run, [self.frame]), present)
            many = [self.frame] * self.shape.batch
            batch_s = seconds(
                partial(run, many), device=self.shape.device, rounds=self.shape.rounds
            )
            row["ms_per_frame_in_batch"] = 1e3 * batch_s / self.shape.batch
            rows.append(row)
        return rows + self._language_rows(features)

    @torch.inference_mode()
    def _language_rows(self, features: FrameFeatures) -> list[dict[str, object]]:
        """The whole prompt in one pass, and one token behind it."""
        language, builder = self.language, self.language._builder
        model = language._language
        grid = self.language._model.config.token_grid(features.grid)
        prefix = builder.prefix(grid, len(features.proposals))
        question = builder.question(self.task("dog").text, start=prefix.next_position)
        device = self.shape.device
        prompt = torch.cat(
            [
                language._input(part, shown).embedded(model)
                for part, shown in ((prefix, features), (question, None))
            ]
        )[None]
        places = torch.cat([prefix.positions, question.positions], 1)[:, None].to(device)

        def prefill() -> DynamicCache:
            cache = DynamicCache()
            model.logits(model(prompt, places, cache=cache)[0, -1])
            return cache

        cache = prefill()
        following = torch.full((3, 1, 1), question.next_position, device=device)

        def decode() -> None:
            model.logits(model(prompt[:, -1:], following, cache=cache)[0, -1])
            cache.crop(-1)

        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        rows = [
            self._row("prompt", prefill, [model]),
            self._row("one token", decode, [model], more_bytes=held),
        ]
        rows[0]["tokens"] = prompt.shape[1]
        return rows

    def _row(
        self,
        name: str,
        run: Callable[[], object],
        modules: list[nn.Module],
        *,
        more_bytes: int = 0,
    ) -> dict[str, object]:
        work = work_of(run, modules, more_bytes=more_bytes)
        taken = seconds(run, device=self.shape.device, rounds=self.shape.rounds)
        floor = work.floor_s(self.rates)
        return {
            "stage": name, "ms": 1e3 * taken, "floor_ms": 1e3 * floor,
            "times_floor": taken / floor, "bound": work.bound(self.rates),
            "gflop": work.flops / 1e9, "gb": work.num_bytes / 1e9,
        }  # fmt: skip

    # ---- whole answers ----

    def engine_answers(
        self, features: FrameFeatures, tasks: list[Task], guesses: list[tuple[int, ...]] | None
    ) -> list[Completion]:
        """All tasks together, with one guess each or none."""
        futures: list[Future[Completion]] = []
        for number, task in enumerate(tasks):
            request = self.language._request(features, task)
            drafter = None
            if guesses is not None:
                tokens = self.language._tokens.first(len(features.proposals))
                drafter = Drafter(tokens, answers=[guesses[number]])
            futures.append(self.language.engine.submit(replace(request, drafter=drafter)))
        return [future.result() for future in futures]

    async def question_rows(self) -> list[dict[str, object]]:
        """n questions about a cold frame: engine, guesses all right, the published way, digits."""
        rows: list[dict[str, object]] = []
        for count in (1, 10):
            tasks = [self.task(label) for label in LABELS[:count]]
            times: dict[str, list[float]] = {}
            for _ in range(max(1, self.shape.rounds // 2) + 1):
                reference = await self._reference(tasks, times)
                ours = await self._engine(tasks, None, times, "engine")
                ids = [completion.ids for completion in ours]
                guided = await self._engine(tasks, ids, times, "engine, guesses right")
                await self._printed(count, times)
            medians = {name: statistics.median(values[1:]) for name, values in times.items()}
            equal = [tuple(a) == b for a, b in zip(reference, ids, strict=True)]
            rows.append(
                {
                    "questions": count,
                    **{f"{name}, ms": 1e3 * value for name, value in medians.items()},
                    "ratio": medians["reference"] / medians["engine"],
                    "ratio_guesses_right": medians["reference"] / medians["engine, guesses right"],
                    "ratio_printed": medians["printed digits"] / medians["engine"],
                    "equal_answers": sum(equal) / count,
                    "guesses_change_nothing": [c.ids for c in guided] == ids,
                }
            )
        return rows

    async def _engine(
        self, tasks: list[Task], guesses: list[tuple[int, ...]] | None,
        times: dict[str, list[float]], name: str,
    ) -> list[Completion]:  # fmt: skip
        started = time.perf_counter()
        features = await self.features()
        answers = await asyncio.to_thread(self.engine_answers, features, tasks, guesses)
        times.setdefault(name, []).append(time.perf_counter() - started)
        return answers

    async def _reference(self, tasks: list[Task], times: dict[str, list[float]]) -> list[list[int]]:
        """Every question as if it were the first."""
        started = time.perf_counter()
        answers = [_plain_ids(self.language, await self.features(), task) for task in tasks]
        times.setdefault("reference", []).append(time.perf_counter() - started)
        return answers

    async def _printed(self, count: int, times: dict[str, list[float]]) -> None:
        """Stock Qwen: its own encoder, no boxes in the prompt, boxes as digits in the answer."""
        num_tokens = self.shape.num_answer_boxes * _TOKENS_PER_PRINTED_BOX
        nothing = np.zeros((0, 0), dtype=np.float32)
        started = time.perf_counter()
        for label in LABELS[:count]:
            (seen,) = self.primary.start([self.frame])
            tokens = seen.maps.image_tokens.float().cpu().numpy()
            features = FrameFeatures(
                *self.shape.frame_size, Proposals(), tokens, seen.geometry.grid, nothing, nothing
            )
            _plain_ids(self.language, features, self.task(label, num_tokens=num_tokens))
        times.setdefault("printed digits", []).append(time.perf_counter() - started)

    def decoding_rows(self, features: FrameFeatures) -> list[dict[str, object]]:
        """Tokens a second about one known frame, no guess right: plain, and many together."""
        length = 4 * self.shape.answer_tokens
        rows: list[dict[str, object]] = []
        for count in (1, 8, 32):
            tasks = [self.task(LABELS[n % len(LABELS)], num_tokens=length) for n in range(count)]
            taken = seconds(
                partial(self.engine_answers, features, tasks, None),
                device=self.shape.device, rounds=self.shape.rounds,
            )  # fmt: skip
            rows.append({"answers_together": count, "tokens_per_s": count * length / taken})
        return rows


async def measure(shape: Shape) -> dict[str, object]:
    """Everything, in one process."""
    on_gpu = shape.device != "cpu"
    started = time.perf_counter()
    measurement = Measurement(shape)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name(shape.device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "smoke": shape.is_smoke,
        "matmul_tflops": measurement.rates.flops_per_s / 1e12,
        "bandwidth_gb_per_s": measurement.rates.bytes_per_s / 1e9,
        "weights_gib": torch.cuda.memory_allocated() / _GIB if on_gpu else None,
    }
    features = await measurement.features()
    stages = measurement.stage_rows(features)
    result["stages"] = stages
    alone, batched = (
        sum(float(str(row[key])) for row in stages if "ms_per_frame_in_batch" in row)
        for key in ("ms", "ms_per_frame_in_batch")
    )
    result["frames_per_s"] = 1e3 / alone
    result["frames_per_s_in_batches"] = 1e3 / batched
    result["decoding"] = measurement.decoding_rows(features)
    result["questions"] = await measurement.question_rows()
    assert isinstance(measurement.language.engine, Engine)
    measurement.language.engine.compile(backend="eager" if shape.is_smoke else "inductor")
    result["decoding_compiled"] = measurement.decoding_rows(features)
    result["questions_compiled"] = await measurement.question_rows()
    result["peak_gib"] = torch.cuda.max_memory_allocated() / _GIB if on_gpu else None
    measurement.stages.close()
    result["seconds"] = time.perf_counter() - started
    return result


def show(rows: list[dict[str, object]], console: Console) -> None:
    """A table with one column for each row and one line for each figure."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    first, *others = names
    table = Table(first, *(str(row[first]) for row in rows))
    for name in others:
        values = [row.get(name, "") for row in rows]
        table.add_row(name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in values))
    console.print(table)


def main() -> None:
    """Measure on one GPU, or run the small shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a small shape on the CPU")
    options = parser.parse_args()
    shape = Shape.smoke() if options.smoke else Shape.published(options.device)
    result = asyncio.run(measure(shape))
    console = Console()
    for name in (
        "stages", "decoding", "questions", "decoding_compiled", "questions_compiled",
    ):  # fmt: skip
        rows = result[name]
        assert isinstance(rows, list)
        console.print(name)
        show(rows, console)
    print(json.dumps({"benchmark": "shape_3b", **result}))


if __name__ == "__main__":
    main()
