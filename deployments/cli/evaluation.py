"""`groundstream eval`: this project's own measurements; public benchmarks are beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.evaluation.report import plain, print_columns, print_figures
from agent.model_directory import DEFAULT_MODEL, find_model
from agent.zoom_policy import Zoom, ZoomPolicy
from deployments.cli.options import (
    DEFAULT_ARTWORK,
    DEFAULT_CACHE,
    USUAL_MODEL,
    AnnotationsOption,
    ArtworkOption,
    CacheOption,
    CocoFileOption,
    ImagesOption,
    JsonOption,
    LimitOption,
    MarkdownOption,
    ModelChoice,
    ModelOption,
    NumOption,
    PhotographsOption,
    Protocol,
    ProtocolOption,
    takes_model,
)

if TYPE_CHECKING:
    from agent.evaluation.coco_folder import CocoFolder
    from agent.evaluation.tally import Estimate, Tally
    from agent.evaluation.tracking import TrackingScores
    from agent.pipeline import Pipeline


_LEAST_SPELLINGS = 200


@takes_model
def detection(
    images: ImagesOption,
    annotations: CocoFileOption,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    seed: Annotated[int, typer.Option(help="Chooses the absent labels.")] = 0,
    every_label: Annotated[
        bool, typer.Option("--every-label", help="Ask each image for all labels, as COCO does.")
    ] = False,
    resamples: Annotated[int, typer.Option(help="Of the intervals.", min=1)] = 1000,
    protocol: ProtocolOption = Protocol.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Ask a COCO-format folder for what is there and what is not."""
    from rich.console import Console
    from rich.table import Table

    from agent.evaluation.coco_folder import open_coco
    from agent.evaluation.detection import as_dict, evaluate_detection

    data = open_coco(images, annotations, limit=limit)
    if protocol.is_published(chosen):
        from agent.evaluation.published import evaluate_published_detection

        figures = asyncio.run(
            evaluate_published_detection(chosen.pipeline(), data, num_resamples=resamples)
        )
        title = f"{annotations} ({len(data.images)} images), as published"
        print_figures(title, figures, as_json=as_json)
        return
    proposer = chosen.proposer(score_threshold=0.0, max_boxes=100)
    measuring = evaluate_detection(
        chosen.pipeline(), data, seed=seed, every_label=every_label,
        propose=lambda frame: proposer.propose([frame])[0], num_resamples=resamples,
    )  # fmt: skip
    scores = asyncio.run(measuring)
    if as_json:
        typer.echo(json.dumps(as_dict(scores)))
        return
    table = Table(
        "figure", "value (95 % interval)", title=f"{annotations} ({scores.images} images)"
    )
    for name, value in as_dict(scores).items():
        if isinstance(value, int | float):
            low, high = scores.intervals.get(name, (None, None))
            around = "" if low is None else f" ({low:.3f} to {high:.3f})"
            table.add_row(name, (f"{value}" if isinstance(value, int) else f"{value:.4f}") + around)
    Console().print(table)


@takes_model
def words(
    images: ImagesOption,
    annotations: CocoFileOption,
    limit: LimitOption = None,
    labels: Annotated[int, typer.Option(help="Most names in one question.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Chooses the absent names.")] = 0,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Ask for the same things in other words, and for many at once: are the answers the same?"""
    from agent.evaluation.coco_folder import open_coco
    from agent.evaluation.words import evaluate_words, num_present_ways, questions

    data = open_coco(images, annotations, limit=limit)
    asked = questions(data, labels=labels, seed=seed)
    number = num_present_ways(asked)
    if number < _LEAST_SPELLINGS:
        typer.echo(f"only {number} other ways to ask for what is there; give more images", err=True)
    scores = asyncio.run(evaluate_words(chosen.pipeline(), data, asked))
    print_figures(f"{annotations} ({len(asked)} images)", scores.figures(), as_json=as_json)


@takes_model
def places(
    images: ImagesOption,
    annotations: CocoFileOption,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Ask for one of several things alike, by its place or size: "second person from the left"."""
    from agent.evaluation.places import evaluate_places

    _print_tally(evaluate_places, chosen, images, annotations, limit, as_json=as_json)


@takes_model
def likeness(
    images: ImagesOption,
    annotations: CocoFileOption,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Show the box of each labelled thing, and ask for the others like it."""
    from agent.evaluation.likeness import evaluate_likeness

    _print_tally(evaluate_likeness, chosen, images, annotations, limit, as_json=as_json)


def _print_tally(
    evaluate: Callable[[Pipeline, CocoFolder], Coroutine[Any, Any, Tally]],
    chosen: ModelChoice,
    images: Path,
    annotations: Path,
    limit: int | None,
    *,
    as_json: bool,
) -> None:
    """The figures of an evaluation on a folder of labelled pictures."""
    from agent.evaluation.coco_folder import open_coco

    data = open_coco(images, annotations, limit=limit)
    figures = asyncio.run(evaluate(chosen.pipeline(), data)).estimates()
    print_figures(f"{annotations} ({len(data.images)} images)", figures, as_json=as_json)


def forgetting(
    knowledge: Annotated[
        Path | None, typer.Option(help="YAML of text, choices and questions of your own.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    as_json: JsonOption = False,
) -> None:
    """What the language model knew before it learned to point, and what it knows now."""
    from agent.evaluation.forgetting import Knowledge, compare

    asked = Knowledge.read() if knowledge is None else Knowledge.read(knowledge)
    found = compare(model, asked)
    rows: dict[str, dict[str, object]] = {
        "perplexity": {k: round(m.perplexity, 3) for k, m in found.items()},
        "choices right": {k: round(m.choices_right, 3) for k, m in found.items()},
        "yes or no right": {k: round(m.yes_no_right, 3) for k, m in found.items()},
    }
    for number, question in enumerate(asked.questions):
        rows[question] = {k: m.answers[number] for k, m in found.items()}
    print_columns("forgetting", rows, as_json=as_json, markdown=False)


@takes_model
def tracking(
    artwork: ArtworkOption = DEFAULT_ARTWORK,
    num: Annotated[int, typer.Option(help="Sequences.", min=1)] = 20,
    duration_s: Annotated[float, typer.Option(help="Length of each, seconds.", min=0.5)] = 10.0,
    latency_ms: Annotated[float, typer.Option(help="Key frame to answer.", min=0.0)] = 400.0,
    oracle: Annotated[
        bool, typer.Option(help="True boxes instead of a model: tracking by itself.")
    ] = False,
    baselines: Annotated[bool, typer.Option(help="Also without tracking.")] = True,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Follow standing queries through composed moving scenes: HOTA, IDF1, age of the evidence."""
    from agent.evaluation.moving_scenes import measure_tracking

    pipeline = None if oracle else chosen.pipeline()
    scores = asyncio.run(
        measure_tracking(
            artwork, pipeline, num=num, duration_s=duration_s, latency_s=latency_ms / 1e3,
            baselines=baselines,
        )
    )  # fmt: skip
    what = "oracle" if oracle else chosen.name
    _print_ways(scores, f"{num} sequences of {duration_s:g} s, {what}", as_json=as_json)


@takes_model
def video(
    video: Annotated[Path, typer.Option(help="The video.")],
    annotations: Annotated[Path, typer.Option(help="COCO file with frame_index and track_id.")],
    key_every: Annotated[int, typer.Option(help="The model sees one of so many frames.", min=1)],
    latency_ms: Annotated[float, typer.Option(help="Key frame to answer.", min=0.0)] = 0.0,
    every_frame: Annotated[bool, typer.Option(help="Also the model on every frame.")] = True,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Follow through a labelled video between key frames, against the model on every frame."""
    from agent.evaluation.tracking import check_metrics
    from agent.evaluation.video_tracks import load_video, measure_video

    check_metrics()
    data = load_video(video, annotations)
    scores = asyncio.run(
        measure_video(
            chosen.pipeline(), data, key_every=key_every, latency_s=latency_ms / 1e3,
            every_frame=every_frame,
        )
    )  # fmt: skip
    title = f"{video}, {len(data.truth)} labelled frames, key frames: one of {key_every}"
    _print_ways(scores, title, as_json=as_json)


def _print_ways(scores: dict[str, TrackingScores], title: str, *, as_json: bool) -> None:
    """Figures of tracking, a column for each way of answering."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps({name: asdict(value) for name, value in scores.items()}))
        return
    table = Table("figure", *scores, title=title)
    for name in asdict(next(iter(scores.values()))):
        table.add_row(name, *(f"{getattr(value, name):.3f}" for value in scores.values()))
    Console().print(table)


@takes_model
def high_resolution(
    artwork: ArtworkOption = DEFAULT_ARTWORK,
    num: Annotated[int, typer.Option(help="Questions.", min=1)] = 500,
    images: PhotographsOption = None,
    annotations: AnnotationsOption = None,
    sums: Annotated[
        Path | None, typer.Option(help="Kept here; a run that was interrupted goes on from them.")
    ] = None,
    full: Annotated[bool, typer.Option(help="Also the full-resolution pass (slow).")] = True,
    policy: Annotated[
        ZoomPolicy, typer.Option(help="Of the zoom column.", case_sensitive=False)
    ] = ZoomPolicy.AUTO,
    tokens: Annotated[int | None, typer.Option(help="Vision tokens of second looks.")] = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Composed 2048x1536 questions: reduced frame, zoom and full resolution side by side.

    Of a folder's own pictures every name is asked, and as many that are absent.
    """
    import tempfile

    from rich.console import Console
    from rich.table import Table

    from agent.evaluation import high_resolution_scenes as scenes
    from agent.evaluation.coco_folder import open_coco
    from agent.training.zoom_scenes import SIZE

    questions: scenes.Questions
    if images is not None and annotations is not None:
        taken = scenes.PhotographQuestions(open_coco(images, annotations))
        questions, most = taken, min(num, len(taken))
    else:
        questions, most = scenes.SceneQuestions(artwork), num

    async def run(folder: Path) -> dict[str, scenes.WayScores]:
        kept = folder / "sums.json" if sums is None else sums
        pipeline = chosen.pipeline()
        zoom = Zoom(policy, vision_tokens=tokens)
        ways = {"coarse": scenes.coarse(pipeline), "zoom": scenes.zoomed(pipeline, zoom)}
        if full:
            raised = scenes.with_image_limit(chosen.ready.model, max(SIZE), folder)
            ways["full resolution"] = scenes.Whole(chosen.pipeline(model=str(raised)))
        scores = scenes.read_sums(kept, ways)
        async for done in scenes.compare_ways(questions, ways, scores, num=most):
            scenes.write_sums(kept, scores)
            typer.echo(f"\r{done} of {most}", err=True, nl=done == most)
        return scores

    with tempfile.TemporaryDirectory() as folder:
        scores = asyncio.run(run(Path(folder)))
    if as_json:
        typer.echo(json.dumps({name: value.as_dict() for name, value in scores.items()}))
        return
    columns, rows = scenes.table_rows(scores)
    table = Table("figure", *columns, title=f"{most} questions, {chosen.name}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def compose(
    out: Annotated[Path, typer.Option(help="A folder with COCO files gets the other formats.")],
    num: NumOption = 40,
    name: Annotated[str, typer.Option(help="drawn, twemoji or other.")] = "drawn",
    artwork: ArtworkOption = DEFAULT_ARTWORK,
) -> None:
    """Compose an evaluation set and write it in every benchmark's format."""
    from agent.evaluation.composed_sets import evaluation_sets
    from agent.evaluation.scene_formats import write_formats

    chosen = {one.name: one for one in evaluation_sets()}.get(name)
    if chosen is None:
        raise typer.BadParameter("--name is drawn, twemoji or other")
    data = chosen.load(out, artwork, num)
    typer.echo(f"pictures: {data.images[0].path.parent}")
    for benchmark, folder in write_formats(data, chosen.folder(out, num)).items():
        typer.echo(f"{benchmark}: {folder}")


@takes_model
def suite(
    num: NumOption = 500,
    artwork: ArtworkOption = DEFAULT_ARTWORK,
    cache: CacheOption = DEFAULT_CACHE,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Every ability, on scenes of drawings; goes on where it was."""
    from agent.evaluation.composed_sets import evaluation_sets
    from agent.evaluation.suite import FIGURES, SUITE_VERSION, Suite

    ready = chosen.ready
    digest = find_model(ready.model, proposal_network=ready.proposal_network).digest[:12]
    sets = [(one, one.load(cache, artwork, num)) for one in evaluation_sets()]
    proposer = chosen.proposer(score_threshold=0.0)
    suite = Suite(chosen.pipeline(), lambda frame: proposer.propose([frame])[0])
    columns: dict[str, dict[str, Estimate]] = {}
    for one, data in sets:
        results = one.folder(cache, num) / f"suite{SUITE_VERSION}-{digest}.jsonl"
        columns[one.name] = asyncio.run(suite.measure(data, results, title=one.name))
    rows = {title: {name: found.get(key) for name, found in columns.items()}
            for key, title in FIGURES.items()}  # fmt: skip
    summary = cache / f"suite{SUITE_VERSION}-{num}-{digest}.json"
    summary.write_text(json.dumps(plain(columns)) + "\n", encoding="utf-8")
    print_columns(
        f"{chosen.name}, {num} scenes of each, 95 % intervals",
        rows,
        as_json=as_json,
        markdown=markdown,
    )
