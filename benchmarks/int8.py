"""int8 weights against bfloat16: agreement of answers, memory, speed by rows and by stage.

`agreement` asks the embedded model about frames of the demo videos twice, with the same features;
`layers` times one product of the 3B shape; `stages` loads each stage of a 3B folder of random
weights in a process of its own (`benchmarks.shape_3b_loading` writes it) and computes one frame.
Processor time is reported beside wall time, because the machine may have other work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agent.detections import Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.features import FrameFeatures
from agent.frame import frame_from_rgb
from agent.generation import LanguageStage
from agent.model.int8 import Int8Linear
from agent.prompts import Task
from agent.stages import LocalStages
from benchmarks.memory import peak_added_bytes
from deployments.demo.run import VIDEOS, find_video
from groundstream.video.sources import open_source

_VIDEOS = ("pedestrians", "bikes")
_WORDS = (
    "person", "dog", "cat", "car", "bicycle", "bus", "chair", "cup", "bird", "bottle", "horse",
    "umbrella",
)  # fmt: skip
_ROWS = (1, 8, 32, 128)
_STAGES = ("primary_encoder", "auxiliary_encoder", "language")
_FOLDER = Path("/tmp/groundstream-3b-random")


def features_of_frames(num_frames: int) -> list[FrameFeatures]:
    """What the embedded model sees in frames of the demo videos, evenly spread."""
    import asyncio

    from agent.pipeline import Pipeline
    from agent.region_cache import MemoryRegionCache

    stages = LocalStages.from_pretrained("pocket")
    pipeline = Pipeline(stages, MemoryRegionCache(budget_bytes=1 << 20), model_digest="int8")
    videos = [find_video(VIDEOS, name) for name in _VIDEOS]
    found = []

    async def see() -> None:
        for video in videos:
            pictures = [picture.rgb for picture in open_source(str(video))]
            step = max(1, len(pictures) * len(videos) // num_frames)
            for rgb in pictures[::step]:
                features, _ = await pipeline.features(frame_from_rgb(rgb, jpeg_quality=None))
                found.append(features)

    asyncio.run(see())
    stages.close()
    return found[:num_frames]


def agreement(num_frames: int) -> dict[str, object]:
    """How many answers are the same in int8, and as a yardstick in float32, by kind of question."""
    seen = features_of_frames(num_frames)
    tasks = [
        *(Task.detect(word) for word in _WORDS),
        Task.count("person"),
        *(Task.describe_region(number, detailed=True) for number in range(2)),
    ]
    questions = [
        (features, task)
        for features in seen
        for task in tasks
        if task.region is None or task.region < len(features.proposals)
    ]
    answers: dict[str, list[str]] = {}
    memory: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for dtype in ("bfloat16", "int8", "float32"):
        stage = LanguageStage.from_pretrained("pocket", num_threads=1, dtype=dtype)
        memory[dtype] = layer_bytes(stage._language)
        began_s = time.process_time()
        answers[dtype] = [stage.answer(features, task).text for features, task in questions]
        seconds[dtype] = time.process_time() - began_s
        stage.close()
    return {
        "frames": len(seen),
        "questions": len(questions),
        "with_a_box": sum("<region" in text for text in answers["bfloat16"]),
        "equal_to_bfloat16": {
            dtype: {
                kind.value: _share_equal(
                    [
                        (plain, other)
                        for (_, task), plain, other in zip(
                            questions, answers["bfloat16"], answers[dtype], strict=True
                        )
                        if task.kind is kind
                    ]
                )
                for kind in dict.fromkeys(task.kind for task in tasks)
            }
            for dtype in ("int8", "float32")
        },
        "layer_bytes": memory,
        "memory": memory["int8"] / memory["bfloat16"],
        "processor_s": seconds,
    }


def _share_equal(pairs: list[tuple[str, str]]) -> tuple[int, int]:
    """How many answers are the same, and of how many."""
    return sum(plain == other for plain, other in pairs), len(pairs)


def layer_bytes(model: nn.Module) -> int:
    """Of the linear layers inside the decoder, scales included."""
    return sum(
        sum(tensor.nbytes for tensor in [*layer.parameters(), *layer.buffers()])
        for layer in model.get_submodule("model").modules()
        if isinstance(layer, nn.Linear | Int8Linear)
    )


def layers() -> list[dict[str, float]]:
    """Milliseconds of one 2048 x 11008 product, of which the 3B decoder has three a layer."""
    torch.manual_seed(0)
    plain = nn.Linear(2048, 11008, bias=False, dtype=torch.bfloat16)
    whole = Int8Linear(plain)
    rows = []
    with torch.inference_mode():
        for num in _ROWS:
            given = torch.randn(num, 2048, dtype=torch.bfloat16)
            rows.append(
                {
                    "rows": num,
                    "bfloat16_ms": 1e3 * _processor_s(partial(plain, given)),
                    "int8_ms": 1e3 * _processor_s(partial(whole, given)),
                }
            )
    return rows


def _processor_s(run: Callable[[], object], rounds: int = 7) -> float:
    run()
    times = []
    for _ in range(rounds):
        began_s = time.process_time()
        run()
        times.append(time.process_time() - began_s)
    return min(times)


def stage(name: str, dtype: str, folder: Path) -> dict[str, float]:
    """Load one stage in this process and compute one 640 x 480 frame, or one short answer."""
    torch.set_num_threads(1)
    frame = frame_from_rgb(np.full((480, 640, 3), 128, np.uint8), jpeg_quality=None)
    boxes = Proposals(np.array([[8, 8, 300, 200]], np.float32), np.ones(1, np.float32))
    kept: list[Any] = []

    def load() -> None:
        kinds: dict[str, Any] = {
            "primary_encoder": PrimaryEncoderStage,
            "auxiliary_encoder": AuxiliaryEncoderStage,
            "language": LanguageStage,
        }
        kept.append(kinds[name].from_pretrained(str(folder), num_threads=1, dtype=dtype))

    began_s = time.process_time()
    peak = peak_added_bytes(load)
    figures = {"load_processor_s": time.process_time() - began_s, "load_peak_gb": peak / 1e9}
    (loaded,) = kept
    model = loaded._model if isinstance(loaded, LanguageStage) else loaded.model
    held = [*model.parameters(), *model.buffers()]
    figures["weights_gb"] = sum(tensor.nbytes for tensor in held) / 1e9
    if isinstance(loaded, LanguageStage):
        nothing = FrameFeatures(
            640, 480, boxes, np.zeros((374, 2048), np.float32), (34, 44),
            np.zeros((1, 2048), np.float32), np.zeros((1, 3840), np.float32),
        )  # fmt: skip
        for tokens in (1, 9):
            asked = replace(Task.detect("object"), max_new_tokens=tokens)
            began_s = time.process_time()
            loaded.answer(nothing, asked)
            figures[f"answer_{tokens}_processor_s"] = time.process_time() - began_s
        loaded.close()
    else:
        began_s = time.process_time()
        loaded.start([frame])
        figures["frame_processor_s"] = time.process_time() - began_s
    return figures


def stages(folder: Path) -> dict[str, dict[str, float]]:
    """Each stage with the usual types of a CPU and with int8, in processes of their own."""
    found = {}
    for name in _STAGES:
        for dtype in ("auto", "int8"):
            command = [sys.executable, "-m", "benchmarks.int8", "stage", "--stage", name,
                       "--dtype", dtype, "--directory", str(folder)]  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[f"{name} {dtype}"] = json.loads(done.stdout.splitlines()[-1])
            print(name, dtype, found[f"{name} {dtype}"], flush=True)
    return found


def main() -> None:
    """Measure what is asked for; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("agreement", "layers", "stages", "stage"))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--directory", type=Path, default=_FOLDER)
    parser.add_argument("--stage", choices=_STAGES, default="language", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="int8", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "stage":
        print(json.dumps(stage(options.stage, options.dtype, options.directory)))
        return
    torch.set_num_threads(1)
    result: object
    if options.what == "agreement":
        result = agreement(options.frames)
    else:
        result = layers() if options.what == "layers" else stages(options.directory)
    print(json.dumps({"benchmark": f"int8_{options.what}", "result": result}))


if __name__ == "__main__":
    main()
