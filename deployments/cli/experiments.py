"""`groundstream eval`: experiments on what the figures of this project come from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.evaluation.report import print_columns
from agent.model_directory import find_model
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
    NumOption,
    PhotographsOption,
    takes_model,
)

if TYPE_CHECKING:
    from agent.evaluation.coco_folder import CocoFolder
    from agent.evaluation.tally import Estimate


@takes_model
def proposals(
    num: NumOption = 100,
    network: Annotated[
        list[str] | None, typer.Option(help="Another proposal network; may be repeated.")
    ] = None,
    images: PhotographsOption = None,
    annotations: AnnotationsOption = None,
    artwork: ArtworkOption = DEFAULT_ARTWORK,
    cache: CacheOption = DEFAULT_CACHE,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: the same questions with boxes from different sources."""
    from agent.evaluation.composed_sets import evaluation_sets
    from agent.evaluation.proposal_study import Source, box_sources, measure_source
    from agent.frame import load_frame

    data = _photographs(images, annotations, num)
    if data is None:
        data = evaluation_sets()[0].load(cache, artwork, num)
    proposer = chosen.proposer()
    sources = box_sources(
        chosen.pipeline(), own=lambda image: proposer.propose([load_frame(image.path)])[0].xyxy
    )
    for name in network or []:
        other = chosen.pipeline(proposals=name)
        sources[name] = Source(other)

    async def measure() -> dict[str, dict[str, Estimate]]:
        return {name: await measure_source(source, data, title=name)
                for name, source in sources.items()}  # fmt: skip

    found = asyncio.run(measure())
    shown = (
        "boxes", "box_precision", "proposal_recall", "recall", "precision", "f1", "AP50",
        "false_positives",
    )  # fmt: skip
    rows = {name: {key: figures.get(key) for key in shown} for name, figures in found.items()}
    title = f"{len(data.images)} pictures, {chosen.name}"
    print_columns(title, rows, as_json=as_json, markdown=markdown)


@takes_model
def evidence(
    images: ImagesOption,
    annotations: CocoFileOption,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: what the language model reads from the detector, the classifier, and both."""
    import tempfile

    from agent.evaluation.coco_folder import open_coco
    from agent.evaluation.detection import evaluate_detection
    from agent.evaluation.evidence_study import PARTS, with_silent
    from agent.evaluation.tally import Estimate

    data = open_coco(images, annotations, limit=limit)
    model, rows = find_model(chosen.ready.model).path, {}
    for name, silent in {"as it is": None, **PARTS}.items():
        with tempfile.TemporaryDirectory() as folder:
            shown = model if silent is None else with_silent(model, silent, Path(folder))
            pipeline = chosen.pipeline(model=str(shown))
            scores = asyncio.run(evaluate_detection(pipeline, data, num_resamples=1000))
        rows[name] = {
            key: Estimate(getattr(scores, key), *scores.intervals.get(key, (0.0, 1.0)))
            for key in ("f1", "precision", "recall", "AP50", "absent_false_positive_rate",
                        "region_top1", "region_top1_narrow")
        }  # fmt: skip
    title = f"{len(data.images)} pictures, {chosen.name}"
    print_columns(title, rows, as_json=as_json, markdown=markdown)


def answers(
    run: Annotated[
        list[Path], typer.Option(help="A folder of `train pointing`, or a model; may be repeated.")
    ],
    head: Annotated[Path, typer.Option(help="The image classifier's weights.")],
    scenes: Annotated[int, typer.Option(min=1)] = 60,
    least_regions: Annotated[int, typer.Option(help="Of a scene.", min=1, max=100)] = 1,
    most_regions: Annotated[
        int, typer.Option(help="More than a run was trained with are pages.", min=1, max=100)
    ] = 6,
    held_out: Annotated[
        int, typer.Option(help="Labels more, of words that training never asks.", min=0)
    ] = 4,
    doubt: Annotated[float, typer.Option(help="1 is that of photographs.", min=0, max=1)] = 0.3,
    evidence_share: Annotated[
        float, typer.Option(help="Of class evidence, as in config.json.", min=0, max=1)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses scenes and labels.")] = 77,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: what short trainings answer about the same symbolic scenes, and at what cost."""
    from agent.evaluation.answer_study import Answerer, ScenesAsked
    from agent.training.pointing import classifier_head

    if least_regions > most_regions:
        raise typer.BadParameter("--least-regions is more than --most-regions")
    asked = ScenesAsked(
        scenes=scenes, held_out=held_out, least_regions=least_regions, most_regions=most_regions,
        evidence_share=evidence_share, doubt=doubt, seed=seed,
    )  # fmt: skip
    weights = classifier_head(head)
    shown = ("found_exact", "recall", "precision", "f1", "absent_right", "tokens_found",
             "passes", "milliseconds", "held_out_f1", "held_out_found_exact")  # fmt: skip
    found = {str(folder): Answerer(folder).measure(weights, asked) for folder in run}
    rows = {name: {key: one.get(key) for key in shown} for name, one in found.items()}
    print_columns(f"{scenes} scenes", rows, as_json=as_json, markdown=markdown)


@takes_model
def clutter(
    num: NumOption = 20,
    images: PhotographsOption = None,
    annotations: AnnotationsOption = None,
    artwork: ArtworkOption = DEFAULT_ARTWORK,
    cache: CacheOption = DEFAULT_CACHE,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: recall against the number of objects, with and without paging.

    On pictures of a folder: against the number of boxes, of which some hold nothing.
    """
    from agent.evaluation.clutter_study import (
        NUMBERS,
        crowded_set,
        measure_clutter,
        measure_distractors,
    )
    from agent.evaluation.composed_sets import evaluation_sets

    shown = ("boxes", "proposal_recall", "recall", "precision", "f1", "false_positives", "seconds")
    photographs = _photographs(images, annotations, num)
    if photographs is not None:
        measuring = measure_distractors(chosen.pipeline(), chosen.proposer(), photographs)
        lines = {
            f"{number} boxes": {key: figures.get(key) for key in shown}
            for number, figures in asyncio.run(measuring).items()
        }
        title = f"{len(photographs.images)} pictures, {chosen.name}"
        print_columns(title, lines, as_json=as_json, markdown=markdown)
        return
    settings = evaluation_sets()[0].settings
    sets = {number: crowded_set(number, settings).load(cache, artwork, num) for number in NUMBERS}
    pipeline, proposer = chosen.pipeline(), chosen.proposer(max_boxes=max(NUMBERS))
    found = {}
    for number, data in sets.items():
        found[number] = asyncio.run(measure_clutter(pipeline, proposer, data))
    rows = {
        f"{clutter.num_objects:.0f} objects: {source}": {key: figures.get(key) for key in shown}
        for clutter in found.values()
        for source, figures in clutter.figures.items()
    }
    print_columns(f"{num} pictures each, {chosen.name}", rows, as_json=as_json, markdown=markdown)


def _photographs(images: Path | None, annotations: Path | None, num: int) -> CocoFolder | None:
    """The first pictures of a COCO folder, if one is given."""
    from agent.evaluation.coco_folder import open_coco

    if (images is None) != (annotations is None):
        raise typer.BadParameter("give --images and --annotations, or neither")
    if images is None or annotations is None:
        return None
    return open_coco(images, annotations, limit=num)
