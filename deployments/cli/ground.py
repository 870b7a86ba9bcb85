"""Commands that answer questions about pictures in their own process: ground, ask."""

from __future__ import annotations

import asyncio
import itertools
import json
import os.path
from collections.abc import Callable, Iterator, Sequence
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
    from agent.detections import Proposals
    from agent.grounded_output import GroundedOutput
    from agent.parsing import Answer
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
        list[int] | None,
        typer.Option(
            help="Which box a region task is about: its number among the picture's own proposals, "
            "from 0, best first; may be said again.",
            min=0,
        ),
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
        InvalidQuery: words or boxes that the kind needs are missing, there are some that it does
            not take, or a query is a file.
    """
    if files := [query for query in queries if _is_file(query)]:
        raise InvalidQuery(
            f"one picture at a time: {files[0]!r} is a file, and stands where words are expected"
        )
    name = kind.value.lower()
    if queries and not kind.needs_query:
        more = "; repeat the option for more boxes: --region 0 --region 1"
        raise InvalidQuery(
            f"--task {name} takes no words, so nothing can be done with {queries[0]!r}"
            f"{more if kind.needs_region else ''}"
        )
    if regions and not kind.needs_region:
        raise InvalidQuery(f"--task {name} is not about a box, so leave out --region")
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
            raise InvalidQuery(f"--task {name} is about a box: say which with --region N")
        return [Task(kind, region=index) for index in regions]
    return [Task.describe_image()]


def _is_file(query: str) -> bool:
    # A word may well be the name of a file without a suffix, or of a folder.
    return bool(Path(query).suffix) and os.path.isfile(query)


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
    from agent.grounded_output import region_box

    grounding = revision.grounding
    return {
        "frame": index,
        "time_s": round(pts_s, 4),
        "answers": [
            {
                "task": answer.task.kind.value.lower(),
                "query": answer.task.query,
                "region": answer.task.region,
                "region_box": _rounded(region_box(answer, grounding.proposals)),
                "status": answer.status.value.lower(),
                "text": answer.text,
                "reply": answer.reply,
                "count": answer.count,
                "detections": [
                    {"label": label, "box": _rounded(box), "score": round(float(score), 4)}
                    for label, box, score in zip(
                        answer.detections.label, answer.detections.xyxy.tolist(),
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


def _rounded(box: Sequence[float] | None) -> list[float] | None:
    return None if box is None else [round(value, 2) for value in box]


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
        for row in _rows(answer, grounding.proposals):
            table.add_row(*row)
    Console().print(table)


def _rows(answer: Answer, proposals: Proposals) -> Iterator[tuple[str, str, str, str]]:
    """What the table says of one answer."""
    from agent.grounded_output import region_box, shown_labels

    task, found, about = answer.task, answer.detections, region_box(answer, proposals)
    asked = escape(task.query or task.kind.value.lower())
    if about is not None:
        asked += f", box {task.region}"
    if not task.kind.searches:
        yield asked, escape(answer.reply), _corners(about), ""
    elif about is not None:
        yield asked, f"box {task.region}", _corners(about), ""
    if answer.count is not None:
        yield asked, f"count: {answer.count}", "", ""
    if task.kind.searches and not len(found):
        yield asked, f"[dim]{answer.status.value.lower()}[/dim]", "", ""
    for label, box, score in zip(
        shown_labels(answer), found.xyxy.tolist(), found.confidence, strict=True
    ):
        yield asked, escape(label), _corners(box), f"{score:.2f}"


def _corners(box: Sequence[float] | None) -> str:
    return "" if box is None else " ".join(f"{value:.0f}" for value in box)


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
