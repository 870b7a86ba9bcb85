"""What a cluster needs for so many streams, by the model of docs/capacity.md.

    python -m benchmarks.capacity                         # the embedded model, as measured
    python -m benchmarks.capacity --profile gpu_3b        # the published shape; assumed times
    python -m benchmarks.capacity --service-ms language=9 --streams 500

Computes, measures nothing. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.queueing import servers_for

_STREAMS = (100, 1_000, 10_000)
_GIB, _MBIT = 2**30, 1e6 / 8


@dataclass(frozen=True)
class Workload:
    """What one stream brings."""

    fps: float = 10.0
    keyframes_per_s: float = 1.0
    queries: int = 2
    frame_bytes: int = 60_000
    result_bytes: int = 1_000
    reply_bytes: int = 32_000
    """What comes back to the front end for a key frame, and its questions; see `data_plane`."""


@dataclass(frozen=True)
class Profile:
    """What the stages cost, one call at a time."""

    service_ms: dict[str, float]
    """By stage; of one question for the language stage, its batching already in it."""
    front_end_ms: float
    """Processor time of the front end per frame: look, session and shell."""
    feature_bytes: int
    gpu_share: dict[str, float]
    """Of one GPU, that a replica of each stage takes; empty: none."""


PROFILES = {
    "cpu_pocket": Profile(
        # Processor time of one call by one thread, pictures of 640x480, on the machine of
        # docs/benchmarks.md; language is the mean of a frame's first question and a further one.
        service_ms={"proposal": 50, "primary_encoder": 120, "language": 160},
        # 7.2 for the look at a 640x480 JPEG, the rest by thread times under 32 streams.
        front_end_ms=9.5,
        feature_bytes=143_000,
        gpu_share={},
    ),
    "gpu_3b": Profile(
        # Assumed, not measured; put in what benchmarks.shape_3b says about your card.
        service_ms={
            "proposal": 15, "primary_encoder": 30, "auxiliary_encoder": 25, "language": 12,
        },
        front_end_ms=9.5,
        # 391 image tokens of 2,048 and 50 boxes of 5,888 bfloat16 numbers, for 640x480.
        feature_bytes=2_190_000,
        gpu_share={
            "proposal": 0.25, "primary_encoder": 0.5, "auxiliary_encoder": 0.25, "language": 1.0,
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Aims:
    """How good it has to be."""

    wait_ms: float = 50.0
    """Mean wait before each stage."""
    most_busy: float = 0.7
    variation: float = 0.3
    """Squared coefficient of variation of service times."""
    cache_ttl_s: float = 600.0
    share_cached: float = 0.0
    """Of the key frames, that another replica or a second question comes for; 1 with
    `cache.keep_keyframes`."""


Numbers = TypeVar("Numbers", Workload, Aims)


def needed(streams: int, workload: Workload, profile: Profile, aims: Aims) -> dict[str, float]:
    """Replicas by stage, processors, GPUs, Redis memory and network of one cluster."""
    keyframes = streams * workload.keyframes_per_s
    replicas = {}
    for stage, service_ms in profile.service_ms.items():
        calls = keyframes * (workload.queries if stage == "language" else 1)
        replicas[stage] = servers_for(
            calls, service_ms / 1e3, variation=aims.variation,
            wait_s=aims.wait_ms / 1e3, most_busy=aims.most_busy,
        )  # fmt: skip
    frames = streams * workload.fps
    front_end = math.ceil(frames * profile.front_end_ms / 1e3 / aims.most_busy)
    gpus = sum(replicas[stage] * share for stage, share in profile.gpu_share.items())
    stage_cores = 0 if profile.gpu_share else sum(replicas.values())
    kept = keyframes * aims.share_cached
    asked = keyframes * (workload.frame_bytes + workload.reply_bytes)
    seen = keyframes * ((len(replicas) - 1) * workload.frame_bytes + profile.feature_bytes)
    redis = kept * profile.feature_bytes
    return {
        **replicas,
        "front_end_cores": front_end,
        "all_cores": front_end + stage_cores,
        "gpus": math.ceil(gpus),
        "redis_gib": round(redis * aims.cache_ttl_s / _GIB, 1),
        "redis_mbit_s": round(redis / _MBIT),
        "cameras_in_mbit_s": round(frames * workload.frame_bytes / _MBIT),
        "results_out_mbit_s": round(frames * workload.result_bytes / _MBIT),
        "front_end_to_language_mbit_s": round(asked / _MBIT),
        "language_to_vision_mbit_s": round(seen / _MBIT),
    }


def main() -> None:
    """One column per number of streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="cpu_pocket")
    parser.add_argument("--streams", type=int, nargs="*", default=_STREAMS)
    parser.add_argument("--service-ms", nargs="*", default=[], metavar="STAGE=MS")
    for kind in (Workload, Aims):
        for field in dataclasses.fields(kind):
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(option, type=type(field.default), default=field.default)
    options = parser.parse_args()
    given = vars(options)
    profile = PROFILES[options.profile]
    changed = {name: float(ms) for name, ms in (pair.split("=") for pair in options.service_ms)}
    profile = dataclasses.replace(profile, service_ms=profile.service_ms | changed)

    def chosen(kind: type[Numbers]) -> Numbers:
        return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind)})

    workload, aims = chosen(Workload), chosen(Aims)
    rows = {streams: needed(streams, workload, profile, aims) for streams in options.streams}
    table = Table("needed", *(f"{streams} streams" for streams in rows), title=options.profile)
    for name in next(iter(rows.values())):
        table.add_row(name, *(f"{row[name]:,}" for row in rows.values()))
    Console().print(table)
    print(json.dumps({"benchmark": "capacity", "profile": options.profile, "rows": rows}))


if __name__ == "__main__":
    main()
