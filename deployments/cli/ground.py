"""Commands that answer questions about pictures in their own process: ground, ask."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from agent.prompts import Task, TaskKind
from agent.zoom_policy import Zoom, ZoomPolicy
from deployments.cli.options import (
    USUAL_MODEL,
    JsonOption,
    ModelChoice,
    PolicyOption,
    TokensOption,
    takes_model,
)
from groundstream.errors import InvalidQuery

if TYPE_CHECKING:
    from agent.grounded_output import GroundedOutput
    from agent.pipeline import Pipeline
    from agent.revisions import Revision
    from agent.zoom import Zoomer
    from groundstream.video.sources import VideoSource


@takes_model
def ground(
    source: Annotated[str, typer.Argument(help="An image, a video or a folder of images.")],
    queries: Annotated[
        list[str] | None, typer.Argument(help='What to find: "dog" "red car".')
    ] = None,
    task: Annotated[
        TaskKind,
        typer.Option(help="What to ask; models may know some of these only.", case_sensitive=False),
    ] = TaskKind.DETECT,
    region: Annotated[
        list[int] | None, typer.Option(help="Boxes a region task is about, by number.", min=0)
    ] = None,
    chosen: ModelChoice = USUAL_MODEL,
    output: Annotated[
        Path | None, typer.Option(help="Annotated picture or video (default: beside the source).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per frame.")] = False,
    limit: Annotated[int | None, typer.Option(help="Stop after this many frames.", min=1)] = None,
    zoom: Annotated[
        ZoomPolicy,
        typer.Option(
            help="Look again at parts of large frames (docs/zoom.md).", case_sensitive=False
        ),
    ] = ZoomPolicy.OFF,
    zoom_tokens: Annotated[
        int | None, typer.Option(help="Vision tokens of all second looks.", min=1)
    ] = None,
    zoom_budget_ms: Annotated[
        float | None, typer.Option(help="No second look ends later than this.", min=1.0)
    ] = None,
) -> None:
    """Find things in pictures or a video, in this process."""
    from agent.grounded_output import GroundedOutput, check_output, check_pictures, output_beside
    from groundstream.video.pictures import IMAGE_SUFFIXES
    from groundstream.video.sources import Reopen, open_source

    tasks = tasks_of(task, queries or [], region or [])
    where = output or output_beside(source)
    is_one_picture = limit == 1 or Path(source).suffix.lower() in IMAGE_SUFFIXES
    check_output(where, source, is_one_picture=is_one_picture)
    frames = open_source(source, reopen=Reopen(patience_s=0.0))
    size = check_pictures(frames, limit=limit)
    pipeline = chosen.pipeline()
    budget_s = None if zoom_budget_ms is None else zoom_budget_ms / 1e3
    with GroundedOutput(where, fps=frames.fps, size=size) as written:
        asyncio.run(_ground_all(pipeline, frames, tasks, written,
                                zoom=Zoom(zoom, zoom_tokens, budget_s),
                                as_json=as_json, limit=limit))  # fmt: skip
    if not as_json:
        typer.echo(f"wrote {where}")


def tasks_of(kind: TaskKind, queries: list[str], regions: list[int]) -> list[Task]:
    """One task per query, per region, or one in all, as `kind` demands.

    Raises:
        InvalidQuery: words or boxes that the kind needs are missing.
    """
    if kind.needs_query:
        ask: dict[TaskKind, Callable[[str], Task]] = {
            TaskKind.DETECT: Task.detect,
            TaskKind.REFER: Task.refer,
            TaskKind.COUNT: Task.count,
            TaskKind.REASON: Task.reason,
            TaskKind.CHAT: Task.chat,
        }
        if not queries:
            raise InvalidQuery(
                "say what to look for, for example: groundstream ground photo.jpg dog"
            )
        return [ask[kind](query) for query in queries]
    if kind.needs_region:
        if not regions:
            raise InvalidQuery(
                f"--task {kind.value.lower()} is about a box: say which with --region N"
            )
        return [Task(kind, region=index) for index in regions]
    return [Task.describe_image()]


async def _ground_all(
    pipeline: Pipeline,
    frames: VideoSource,
    tasks: list[Task],
    written: GroundedOutput,
    *,
    zoom: Zoom,
    as_json: bool,
    limit: int | None,
) -> None:
    from agent.frame import frame_from_rgb
    from agent.zoom import RegionZoom

    zoomer = RegionZoom(pipeline)
    for index, picture in enumerate(itertools.islice(frames, limit)):
        frame = frame_from_rgb(picture.rgb, index=index, jpeg_quality=None)
        async for revision in zoomer.look(frame, tasks, zoom):
            standing = revision
        written.add(picture, standing.grounding)
        if as_json:
            typer.echo(json.dumps(_json_line(index, picture.pts_s, standing)))
        else:
            _print_table(index, standing)


def _json_line(index: int, pts_s: float, revision: Revision) -> dict[str, object]:
    grounding = revision.grounding
    return {
        "frame": index,
        "time_s": round(pts_s, 4),
        "answers": [
            {
                "task": answer.task.kind.value.lower(),
                "query": answer.task.query,
                "region": answer.task.region,
                "status": answer.status.value.lower(),
                "text": answer.text,
                "reply": answer.reply,
                "count": answer.count,
                "detections": [
                    {"label": label, "box": [round(float(v), 2) for v in box],
                     "score": round(float(score), 4)}
                    for label, box, score in zip(
                        answer.detections.label, answer.detections.xyxy,
                        answer.detections.confidence, strict=True,
                    )
                ],
            }
            for answer in grounding.answers
        ],
        "num_proposals": len(grounding.proposals),
        "vision_tokens": revision.vision_tokens,
        "crops": [crop.box for crop in revision.crops],
        "seconds": round(grounding.timings.total_s, 4),
    }  # fmt: skip


def _print_table(index: int, revision: Revision) -> None:
    from rich.console import Console
    from rich.table import Table

    grounding = revision.grounding
    table = Table(title=f"frame {index}, {grounding.timings.total_s * 1000:.0f} ms, "
                  f"{len(grounding.proposals)} proposals, {revision.vision_tokens} vision tokens, "
                  f"{len(revision.crops)} crops")  # fmt: skip
    for column in ("asked", "label", "box (x1 y1 x2 y2)", "score"):
        table.add_column(column)
    for answer in grounding.answers:
        found = answer.detections
        asked = escape(answer.task.query or answer.task.kind.value.lower())
        if not answer.task.kind.searches:
            table.add_row(asked, escape(answer.reply), "", "")
        elif not len(found):
            table.add_row(asked, f"[dim]{answer.status.value.lower()}[/dim]", "", "")
        for label, box, score in zip(found.label, found.xyxy, found.confidence, strict=True):
            corners = " ".join(f"{value:.0f}" for value in box)
            table.add_row(asked, escape(label), corners, f"{score:.2f}")
    Console().print(table)


@takes_model
def ask(
    picture: Annotated[Path, typer.Argument(help="An image.")],
    question: Annotated[str, typer.Argument(help="In words.")],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Ask one question about one picture, in this process."""
    from agent.frame import load_frame
    from agent.prompts import Task

    frame, task = load_frame(picture), Task.chat(question)
    zoomer, longest = zoomer_of(chosen)
    task = replace(task, max_new_tokens=longest)

    async def answered() -> None:
        async for revision in zoomer.look(frame, [task], Zoom(zoom, zoom_tokens)):
            (answer,) = revision.grounding.answers
            if as_json and revision.final:
                said = {
                    "reply": answer.reply,
                    "thought": answer.thought,
                    "text": answer.text,
                    "crops": [crop.box for crop in revision.crops],
                    "vision_tokens": revision.vision_tokens,
                    "seconds": round(revision.grounding.timings.total_s, 4),
                }
                typer.echo(json.dumps(said))
            elif revision.final:
                typer.echo(answer.reply)
            elif answer.thought:
                typer.echo(answer.thought, err=True)

    asyncio.run(answered())


def zoomer_of(chosen: ModelChoice) -> tuple[Zoomer, int]:
    """Whom a model's user asks in words, and how long an answer may be in tokens.

    ERGO, and any stock Qwen2.5-VL, looks twice as published; other models look at regions again.
    """
    from agent.ergo import ErgoZoom, stock_folder
    from agent.ergo_protocol import NEW_TOKENS
    from agent.model_directory import longest_answer

    folder = stock_folder(chosen.model)
    if folder is None:
        from agent.zoom import RegionZoom

        pipeline = chosen.pipeline()
        return RegionZoom(pipeline), chosen.max_new_tokens or longest_answer(chosen.ready.model)
    typer.echo(f"loading {chosen.name} on {chosen.place} ...", err=True)
    loaded = ErgoZoom.from_pretrained(folder, dtype=chosen.dtype or "auto", device=chosen.place)
    return loaded, chosen.max_new_tokens or NEW_TOKENS
