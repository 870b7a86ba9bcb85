"""Questions about a picture: this service's pipeline beside the models one would take instead.

In one process, in turns, on the same picture with the same number of threads: a cold picture with
one question, a further question on the picture that is known by then, and a cold picture with ten
questions. The alternatives are transformers' Grounding DINO tiny, OWLv2 base and Florence-2 base in
their published shapes with random weights (nothing is downloaded), so only their time means
anything. They get what they can: ten labels go into one call, Florence-2 decodes greedily, its
answers have the length of one box a label, words come as tokens, and "kept" is a further question
with the vision tower's output kept by hand, which their own calls compute anew. Each call decodes
and scales the picture as the model's processor would. Beside wall time stands processor time, the
steadier one on a machine with neighbours. Prints a table and one JSON line; `--smoke` runs tiny
shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

# From the models' own modules: the package's would import torchvision.
from transformers.models.florence2.configuration_florence2 import Florence2Config
from transformers.models.florence2.modeling_florence2 import Florence2ForConditionalGeneration
from transformers.models.grounding_dino.configuration_grounding_dino import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoForObjectDetection,
)
from transformers.models.owlv2.configuration_owlv2 import Owlv2Config
from transformers.models.owlv2.modeling_owlv2 import Owlv2ForObjectDetection

from agent.frame import Frame, frame_from_rgb
from agent.model_directory import DEFAULT_MODEL
from agent.pipeline import Pipeline
from agent.processor import IMAGENET_MEAN, IMAGENET_STD
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.stages import LocalStages
from benchmarks.same_frame import LABELS
from groundstream.video.sources import open_source

_VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_TOKENS_PER_BOX = 6
"""What Florence-2 writes for a label: about two tokens of its name and four of the box."""
NUM_QUESTIONS = 10
OURS = "groundstream"

Ask = Callable[[Frame, int], object]
"""Answers so many labels about a frame, from its bytes."""


@dataclass(frozen=True)
class Shapes:
    """How large the alternatives are."""

    dino: GroundingDinoConfig
    dino_sides: tuple[int, int]
    """Least shorter and most longer side of its picture, pixels."""
    owl: Owlv2Config
    florence: Florence2Config
    florence_side: int

    @classmethod
    def published(cls) -> Shapes:
        """grounding-dino-tiny, owlv2-base-patch16 and Florence-2-base."""
        return cls(
            # The defaults are the tiny model's: Swin-T, BERT base, 900 queries.
            GroundingDinoConfig(disable_custom_kernels=True),
            (800, 1333),
            Owlv2Config(vision_config={"image_size": 960}),
            Florence2Config(
                vision_config={"projection_dim": 768},
                text_config={
                    "model_type": "bart", "vocab_size": 51290, "d_model": 768,
                    "encoder_layers": 6, "decoder_layers": 6,
                    "encoder_attention_heads": 12, "decoder_attention_heads": 12,
                    "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
                },
                image_token_id=51289,
            ),
            768,
        )  # fmt: skip

    @classmethod
    def smoke(cls) -> Shapes:
        """Small enough for a test."""
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                 "num_attention_heads": 2}  # fmt: skip
        swin = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1],
                "num_heads": [1, 1, 1, 1], "window_size": 4, "out_indices": [2, 3, 4]}  # fmt: skip
        bert = {"model_type": "bert", "vocab_size": 2000, **small}
        bart = {"model_type": "bart", "vocab_size": 200, "d_model": 16, "encoder_layers": 1,
                "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
        return cls(
            GroundingDinoConfig(
                backbone_config=swin, text_config=bert, num_queries=20, encoder_layers=1,
                encoder_ffn_dim=16, decoder_layers=2, decoder_ffn_dim=16, d_model=32,
                encoder_attention_heads=2, decoder_attention_heads=2, disable_custom_kernels=True,
            ),
            (64, 96),
            Owlv2Config(
                vision_config={**small, "image_size": 64, "patch_size": 16},
                text_config={**small, "vocab_size": 49408}, projection_dim=16,
            ),
            Florence2Config(
                vision_config={"embed_dim": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
                               "num_heads": [1, 1, 2, 2], "num_groups": [1, 1, 2, 2],
                               "window_size": 4, "projection_dim": 16},
                text_config=bart, image_token_id=199,
            ),
            64,
        )  # fmt: skip


class Keeper:
    """Stands before a part of a model; once told to keep, it answers what it answered last."""

    def __init__(self, part: nn.Module) -> None:
        self._compute = part.forward
        self._last: Any = None
        self.keeping = False
        # An instance's own forward is the one that is called.
        part.forward = self  # type: ignore[method-assign,assignment]

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self.keeping:
            self._last = self._compute(*arguments, **named)
        return self._last


@dataclass(frozen=True)
class Alternative:
    """A model that is asked."""

    name: str
    model: nn.Module
    keeper: Keeper
    """Of its vision tower."""
    ask: Ask

    @property
    def parameters_m(self) -> float:
        """Millions of parameters."""
        return sum(p.numel() for p in self.model.parameters()) / 1e6


def alternatives(shapes: Shapes) -> list[Alternative]:
    """All of them, random weights, ready to be asked."""
    torch.manual_seed(0)
    return [_grounding_dino(shapes), _owl(shapes), _florence(shapes)]


def _grounding_dino(shapes: Shapes) -> Alternative:
    model = GroundingDinoForObjectDetection(shapes.dino).eval()

    def ask(frame: Frame, labels: int) -> object:
        least, most = shapes.dino_sides
        scale = min(least / min(frame.width, frame.height), most / max(frame.width, frame.height))
        size = (round(frame.width * scale), round(frame.height * scale))
        pixels = _pixels(frame, size, IMAGENET_MEAN, IMAGENET_STD)
        # [CLS] dog . cat . [SEP]
        words = [token for label in range(labels) for token in (1200 + label, 1012)]
        found = model(pixel_values=pixels, input_ids=torch.tensor([[101, *words, 102]]))
        return found.logits.sigmoid().max(dim=-1), found.pred_boxes

    keeper = Keeper(model.model.backbone.conv_encoder)
    return Alternative("Grounding DINO tiny", model, keeper, ask)


def _owl(shapes: Shapes) -> Alternative:
    model = Owlv2ForObjectDetection(shapes.owl).eval()
    side = shapes.owl.vision_config.image_size
    length = shapes.owl.text_config.max_position_embeddings

    def ask(frame: Frame, labels: int) -> object:
        pixels = _pixels(frame, (side, side), _CLIP_MEAN, _CLIP_STD, square=True)
        # Start, one word, end, and nothing up to the fixed length.
        ids = torch.zeros(labels, length, dtype=torch.long)
        ids[:, 0], ids[:, 1], ids[:, 2] = 49406, torch.arange(labels) + 1000, 49407
        mask = torch.zeros_like(ids)
        mask[:, :3] = 1
        found = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        return found.logits.sigmoid().max(dim=-1), found.pred_boxes

    return Alternative("OWLv2 base", model, Keeper(model.owlv2.vision_model), ask)


def _florence(shapes: Shapes) -> Alternative:
    model = Florence2ForConditionalGeneration(shapes.florence).eval()
    side, image_token = shapes.florence_side, shapes.florence.image_token_id
    # A thirty-second of the side in patches, and their mean.
    image = [image_token] * ((side // 32) ** 2 + 1)

    def ask(frame: Frame, labels: int) -> object:
        pixels = _pixels(frame, (side, side), IMAGENET_MEAN, IMAGENET_STD)
        # "Locate the phrases in the caption: ", two tokens a label, start and end.
        text = [0, *range(10, 18), *range(20, 20 + 2 * labels), 2]
        length = _TOKENS_PER_BOX * labels + 2
        return model.generate(
            input_ids=torch.tensor([image + text]), pixel_values=pixels, do_sample=False,
            num_beams=1, min_new_tokens=length, max_new_tokens=length,
        )  # fmt: skip

    return Alternative("Florence-2 base", model, Keeper(model.model.vision_tower), ask)


def _pixels(
    frame: Frame,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    square: bool = False,
) -> Tensor:
    """(1, 3, height, width) of a frame's bytes, scaled to (width, height) and normalised."""
    picture = Image.fromarray(frame.rgb())
    if square:
        longer = max(picture.size)
        padded = Image.new("RGB", (longer, longer), (127, 127, 127))
        padded.paste(picture)
        picture = padded
    array = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    normal = (array - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(normal).permute(2, 0, 1)[None].contiguous()


class Ours:
    """The pipeline, whose cache forgets when it is told to."""

    def __init__(self, stages: LocalStages, frame: Frame) -> None:
        self._stages, self._frame = stages, frame
        self._pipeline = self._fresh()

    def _fresh(self) -> Pipeline:
        # A tenant of its own gives a pipeline keys that nothing was stored under.
        tenant = str(time.perf_counter_ns())
        return Pipeline(self._stages, MemoryRegionCache(), model_digest="", tenant=tenant)

    async def cold(self, labels: int) -> None:
        """So many questions about a picture that was never seen."""
        self._pipeline = self._fresh()
        await self._pipeline.ground(self._frame, [Task.detect(n) for n in LABELS[:labels]])

    async def further(self) -> None:
        """Another question about the picture of the last call."""
        await self._pipeline.ground(self._frame, [Task.detect(LABELS[NUM_QUESTIONS])])


Times = dict[str, list[tuple[float, float]]]
"""Wall and processor milliseconds of each call, by figure."""


async def measure(
    frame: Frame, *, model: str, rounds: int, shapes: Shapes
) -> list[dict[str, object]]:
    """One row for each model, the first of them ours; the models take turns, and a first round
    warms up."""
    stages = LocalStages.from_pretrained(model)
    ours, others = Ours(stages, frame), alternatives(shapes)
    times: dict[str, Times] = {}
    for _ in range(rounds + 1):
        taken = times.setdefault(OURS, {})
        await _timed(taken, "first_ms", lambda: ours.cold(1))
        await _timed(taken, "further_ms", ours.further)
        await _timed(taken, "ten_ms", lambda: ours.cold(NUM_QUESTIONS))
        for other in others:
            with torch.inference_mode():
                await _ask_alternative(times.setdefault(other.name, {}), other, frame)
    stages.close()
    sizes = {other.name: other.parameters_m for other in others}
    medians = {name: _medians(taken) for name, taken in times.items()}
    return [_row(name, found, medians[OURS], sizes.get(name)) for name, found in medians.items()]


async def _ask_alternative(taken: Times, other: Alternative, frame: Frame) -> None:
    def asking(labels: int) -> Callable[[], Awaitable[None]]:
        async def asked() -> None:
            other.ask(frame, labels)

        return asked

    await _timed(taken, "first_ms", asking(1))
    await _timed(taken, "further_ms", asking(1))
    other.keeper.keeping = True
    await _timed(taken, "kept_ms", asking(1))
    other.keeper.keeping = False
    await _timed(taken, "ten_ms", asking(NUM_QUESTIONS))


async def _timed(taken: Times, figure: str, act: Callable[[], Awaitable[None]]) -> None:
    wall_s, busy_s = time.perf_counter(), time.process_time()
    await act()
    spent = (time.perf_counter() - wall_s, time.process_time() - busy_s)
    taken.setdefault(figure, []).append((1e3 * spent[0], 1e3 * spent[1]))


def _medians(taken: Times) -> dict[str, float]:
    """Of wall and processor time by figure, without the round that warms up."""
    found = {}
    for figure, values in taken.items():
        name = figure.removesuffix("_ms")
        for kind, column in (("", 0), ("_processor", 1)):
            found[f"{name}{kind}_ms"] = statistics.median(v[column] for v in values[1:])
    return found


def _row(
    name: str, found: dict[str, float], ours: dict[str, float], parameters_m: float | None
) -> dict[str, object]:
    """A model's milliseconds, and how many times ours they are."""
    # A further question is one however it is made cheap.
    same = {figure: ours[figure.replace("kept", "further")] for figure in found}
    return {
        "model": name,
        "parameters_m": None if parameters_m is None else round(parameters_m, 1),
        **{figure: round(value, 1) for figure, value in found.items()},
        **{
            f"times_{figure.removesuffix('_ms')}": round(value / max(same[figure], 1e-3), 2)
            for figure, value in found.items()
        },
    }


def main() -> None:
    """Measure on the first frame of the demo video."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny alternatives")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frame = frame_from_rgb(next(iter(open_source(str(_VIDEO)))).rgb)
    shapes = Shapes.smoke() if options.smoke else Shapes.published()
    rows = asyncio.run(measure(frame, model=options.model, rounds=options.rounds, shapes=shapes))
    columns = {"first": "first question", "further": "a further one",
               "kept": "a further one, vision kept", "ten": "ten questions"}  # fmt: skip
    size = f"{frame.width}x{frame.height}"
    title = f"{size}, threads: {options.threads}; ms (times ours; times ours in processor time)"
    table = Table("", *columns.values(), title=title)
    for row in rows:
        cells = [
            f"{row[f'{name}_ms']} ({row[f'times_{name}']}; {row[f'times_{name}_processor']})"
            if f"{name}_ms" in row
            else "-"
            for name in columns
        ]
        table.add_row(str(row["model"]), *cells)
    Console().print(table)
    print(
        json.dumps(
            {
                "benchmark": "alternatives",
                "our_model": options.model,
                "threads": options.threads,
                "picture": [frame.width, frame.height],
                "rounds": options.rounds,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
