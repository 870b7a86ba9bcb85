"""Where a frame's bytes go: through the front end, into Redis, and with one more question.

    python -m benchmarks.data_plane

The service with stand-ins that take no time and return features of the published 3B shape's sizes
for a 640x480 frame: 391 image tokens of 2,048 and 100 boxes of 5,888 numbers in bfloat16. A stream
in GROUND mode, every frame new; then more questions about one picture. What front ends and language
replicas say to each other is pickled once more to be counted. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import pickle
import re
import urllib.request
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.detections import Proposals
from agent.features import BFLOAT16, FrameFeatures, PrimaryFeatures, StageTimings
from agent.frame import Frame, read_frame
from agent.frame_summary import summary_of
from agent.interrupts import interruptible
from agent.parsing import parse_answer
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.stage_settings import StageFactories
from benchmarks.driver import with_comment
from benchmarks.shell import noisy_picture, ping_pong
from benchmarks.standin_stages import StandIn, StandInLanguage, changed_config
from deployments.local.service_process import ServiceProcess, free_port
from deployments.observability.stage_meter import Served, WorkDone
from deployments.stages.requests import FrameCall, FrameReply, Wanted
from groundstream import aio

_NUM_BOXES, _NUM_TOKENS, _TOKEN_WIDTH, _REGION_WIDTH, _NUM_CLASSES = 100, 391, 2048, 5888, 80
_FRAME_BYTES = 60_000
_READY_S = 300.0
_QUERIES = ("dog", "cat")


class LargeProposer(StandIn):
    """The same boxes for every frame."""

    def propose(self, frames: list[Frame]) -> list[Proposals]:
        """At once."""
        return [_proposals() for _ in frames]


class LargePrimaryEncoder(StandIn):
    """Features of the right sizes."""

    def start(self, frames: list[Frame]) -> list[None]:
        """At once."""
        return [None for _ in frames]

    def pool(self, _maps: None, proposals: Proposals) -> PrimaryFeatures:
        """Noise, because zeros would be alike."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 1 << 14, (_NUM_TOKENS, _TOKEN_WIDTH), dtype=np.uint16)
        regions = rng.integers(0, 1 << 14, (len(proposals), _REGION_WIDTH), dtype=np.uint16)
        return PrimaryFeatures(tokens.view(BFLOAT16), (34, 46), regions.view(BFLOAT16))


def _proposals() -> Proposals:
    corners = np.linspace(0.0, 400.0, _NUM_BOXES, dtype=np.float32)
    boxes = np.stack([corners, corners, corners + 50, corners + 50], axis=1)
    evidence = np.full((_NUM_BOXES, _NUM_CLASSES), 0.5, dtype=np.float32)
    return Proposals(boxes, evidence[:, 0], evidence)


FACTORIES = StageFactories(
    proposal=f"benchmarks.data_plane:{LargeProposer.__name__}",
    primary_encoder=f"benchmarks.data_plane:{LargePrimaryEncoder.__name__}",
    language="benchmarks.standin_stages:StandInLanguage",
)


def sizes(picture: bytes) -> dict[str, int]:
    """Bytes of one key frame's call and reply."""
    frame = read_frame(picture)
    proposals = _proposals()
    seen = LargePrimaryEncoder().pool(None, proposals)
    features = FrameFeatures(
        frame.width, frame.height, proposals, seen.image_tokens, seen.grid,
        seen.regions, proposals.evidence,
    )  # fmt: skip
    tasks = tuple(map(Task.detect, _QUERIES))
    answers = tuple(
        parse_answer(task, StandInLanguage()._answer(task), proposals) for task in tasks
    )
    grounding = Grounding(
        answers, proposals.plain(), False, StageTimings(), summary_of(features)
    )  # fmt: skip
    work = tuple(WorkDone("language", "answer", served=Served(None)) for _ in range(4))
    ahead = FrameCall(frame, Wanted())
    call = FrameCall(
        dataclasses.replace(frame, encoded=b""), Wanted(), tasks,
        expected=[proposals.xyxy[:5] for _ in tasks],
    )  # fmt: skip
    sent = sum(len(pickle.dumps(value)) for value in (ahead, call))
    back = len(pickle.dumps(FrameReply(grounding, work=work)))
    arrays = (features.image_tokens, features.primary_regions, features.auxiliary_regions)
    return {
        "jpeg": len(picture),
        "features": sum(array.nbytes for array in arrays),
        "through_the_front_end": sent + back,
        "beside_the_jpeg": sent + back - len(picture),
    }


def counters(port: int) -> dict[str, float]:
    """The metrics page's."""
    url = f"http://127.0.0.1:{port}/metrics"
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    found = re.findall(r"^groundstream_(\w+)_total(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def measure(service: ServiceProcess, port: int, num: int) -> dict[str, Any]:
    """Processor time of the front end and bytes of Redis, for a stream and for more questions."""
    picture = noisy_picture(_FRAME_BYTES)
    async with aio.Client(service.target) as client:
        await client.wait_until_ready(_READY_S)
        await ping_pong(client, picture, num=30)  # Warms up; the first frames are left out.
        before, cpu_s = counters(port), front_end_s(service)
        results, _ = await ping_pong(client, picture, num=num)
        frames_s = front_end_s(service) - cpu_s
        await asyncio.sleep(1.0)  # Writes are behind.
        after = counters(port)
        known = with_comment(picture, "known")
        await client.ground(known, ["dog"])
        await asyncio.sleep(1.0)
        calls, cpu_s = (await client.stats()).stage_calls, front_end_s(service)
        read = counters(port)["cache_read_bytes"]
        for number in range(num):
            await client.ground(known, [f"dog {number}"])
        questions_s = front_end_s(service) - cpu_s
        again = (await client.stats()).stage_calls
        read = counters(port)["cache_read_bytes"] - read
    written = after["cache_written_bytes"] - before["cache_written_bytes"]
    return {
        **sizes(picture),
        "num_frames": len(results),
        "front_end_cpu_ms_per_key_frame": round(1e3 * frames_s / num, 2),
        "redis_bytes_per_key_frame": round(written / num),
        "front_end_cpu_ms_per_more_question": round(1e3 * questions_s / num, 2),
        "encoded_for_more_questions": again.encode_primary - calls.encode_primary,
        "read_from_redis_for_more_questions": round(read),
    }


def front_end_s(service: ServiceProcess) -> float:
    """Processor seconds of the front end so far."""
    return sum(seconds for name, seconds in service.cpu_s_by_process().items() if "Ingress" in name)


def main() -> None:
    """Start, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100)
    options = parser.parse_args()
    port = free_port()
    with interruptible(), contextlib.ExitStack() as stack:
        path = stack.enter_context(
            changed_config(
                standin=False,
                stages=dataclasses.asdict(FACTORIES),
                observe={"metrics_port": port},
            )
        )
        service = stack.enter_context(ServiceProcess(["--config", str(path)]))
        figures = asyncio.run(measure(service, port, options.frames))
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    Console().print(table)
    print(json.dumps({"benchmark": "data_plane", **figures}))


if __name__ == "__main__":
    main()
