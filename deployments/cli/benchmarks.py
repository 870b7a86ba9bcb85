"""`groundstream eval BENCHMARK`: files in, a table or one line of JSON out.

Every command reads its benchmark, asks the pipeline, prints. What is asked and how it is scored
stands in the benchmark's own module.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.evaluation.report import plain, print_columns, print_figures
from agent.model_directory import find_model
from deployments.cli.options import (
    DEFAULT_ARTWORK,
    DEFAULT_CACHE,
    USUAL_MODEL,
    AnnotationsOption,
    ArtworkOption,
    CacheOption,
    ImagesOption,
    JsonOption,
    LimitOption,
    MarkdownOption,
    ModelChoice,
    NumOption,
    PhotographsOption,
    Protocol,
    ProtocolOption,
    takes_model,
)

if TYPE_CHECKING:
    from agent.evaluation.coco_folder import CocoFolder
    from agent.evaluation.counting import CountQuestion
    from agent.evaluation.tally import Estimate, Tally


@takes_model
def odinw(
    folder: Annotated[Path, typer.Argument(help="ODinW13 as downloaded and unpacked.")],
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """ODinW13: detection in 13 small sets, mean of their APs."""
    from agent.evaluation.odinw import evaluate_odinw, load_odinw, mean_scores

    sets = load_odinw(folder, limit=limit)
    scores = asyncio.run(evaluate_odinw(chosen.pipeline(), sets))
    print_figures(f"ODinW13, {folder}", mean_scores(scores), as_json=as_json)


@takes_model
def ovdeval(
    folder: Annotated[Path, typer.Argument(help="Holds annotations/ and images/.")],
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """OVDEval: fine-grained labels with hard negatives, NMS-AP."""
    from agent.evaluation.ovdeval import evaluate_ovdeval, load_ovdeval, mean_scores

    tasks, pipeline = load_ovdeval(folder, limit=limit), chosen.pipeline()

    async def measure() -> dict[str, float]:
        found = {name: await evaluate_ovdeval(pipeline, data, title=name)
                 for name, data in tasks.items()}  # fmt: skip
        return mean_scores(found)

    print_figures(f"OVDEval, {folder}", asyncio.run(measure()), as_json=as_json)


@takes_model
def refcoco(
    refs: Annotated[Path, typer.Option(help="refs(unc).p, refs(umd).p or the same as JSON.")],
    instances: Annotated[Path, typer.Option(help="instances.json.")],
    images: ImagesOption,
    split: Annotated[str, typer.Option(help="val, testA, testB or test.")] = "val",
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg: accuracy at IoU 0.5."""
    from agent.evaluation.refcoco import evaluate_refcoco, load_refcoco

    data = load_refcoco(refs, instances, images, split=split, limit=limit)
    tally = asyncio.run(evaluate_refcoco(chosen.pipeline(), data))
    print_figures(f"{refs} {split}", tally.estimates(), as_json=as_json)


@takes_model
def countbench(
    table: Annotated[Path, typer.Argument(help="Parquet, or CountBench.json.")],
    questions: Annotated[
        Path | None, typer.Option(help="countbench_paired_questions.json of CountBenchQA.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Pictures, where not in the table.")] = None,
    limit: LimitOption = None,
    protocol: ProtocolOption = Protocol.AUTO,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """CountBench: accuracy and mean absolute error of counts."""
    from agent.evaluation.countbench import load_countbench

    data = load_countbench(table, questions=questions, images=images, limit=limit)
    tally = _counted(data, protocol, chosen)
    print_figures(f"CountBench, {table}", tally.estimates(), as_json=as_json)


@takes_model
def pixmo_count(
    table: Annotated[Path, typer.Argument(help="Parquet of allenai/pixmo-count.")],
    images: Annotated[Path | None, typer.Option(help="Pictures, by SHA-256 or name.")] = None,
    limit: LimitOption = None,
    protocol: ProtocolOption = Protocol.AUTO,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """PixMo-Count: accuracy and mean absolute error of counts."""
    from agent.evaluation.pixmo_count import load_pixmo_count

    data = load_pixmo_count(table, images=images, limit=limit)
    tally = _counted(data, protocol, chosen)
    print_figures(f"PixMo-Count, {table}", tally.estimates(), as_json=as_json)


def _counted(data: list[CountQuestion], protocol: Protocol, chosen: ModelChoice) -> Tally:
    from agent.evaluation.counting import evaluate_counting
    from agent.evaluation.published import evaluate_published_counting

    evaluate = evaluate_published_counting if protocol.is_published(chosen) else evaluate_counting
    return asyncio.run(evaluate(chosen.pipeline(), data))


@takes_model
def named_regions(
    annotations: Annotated[Path, typer.Option(help="Osprey's sample, or the set's own file.")],
    images: ImagesOption,
    encoder: Annotated[
        str | None,
        typer.Option(help="sentence-transformers model for semantic similarity (not offline)."),
    ] = None,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """LVIS and PACO: what is in a given box; exact, semantic IoU, semantic similarity."""
    from agent.evaluation.region_names import evaluate_named_regions, load_named_regions
    from agent.evaluation.text_match import sentence_encoder

    data = load_named_regions(annotations, images, limit=limit)
    vectors = None if encoder is None else sentence_encoder(encoder)
    tally = asyncio.run(evaluate_named_regions(chosen.pipeline(), data, encoder=vectors))
    print_figures(str(annotations), tally.estimates(), as_json=as_json)


@takes_model
def cocotext(
    annotations: Annotated[Path, typer.Option(help="cocotext.v2.json.")],
    images: ImagesOption,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """COCO-Text: what is written in a given box."""
    from agent.evaluation.cocotext import evaluate_cocotext, load_cocotext

    data = load_cocotext(annotations, images, split=split, limit=limit)
    tally = asyncio.run(evaluate_cocotext(chosen.pipeline(), data))
    print_figures(f"COCO-Text {split}, {annotations}", tally.estimates(), as_json=as_json)


@takes_model
def ferret_bench(
    folder: Annotated[Path, typer.Argument(help="Holds question.jsonl and, beside it, answers.")],
    images: ImagesOption,
    answers: Annotated[Path, typer.Option(help="Written for the judge.")] = Path("answers.jsonl"),
    think: Annotated[bool, typer.Option(help="Reasoning questions ask for thoughts.")] = True,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Ferret-Bench: questions about boxes; answers for a judge model, and exact matches."""
    from agent.evaluation.ferret_bench import evaluate_ferret_bench, load_ferret_bench

    data = load_ferret_bench(folder, images, limit=limit)
    tally = asyncio.run(
        evaluate_ferret_bench(chosen.pipeline(), data, answers=answers, think=think)
    )
    print_figures(f"{folder}, answers in {answers}", tally.estimates(), as_json=as_json)


@takes_model
def multiple_choice(
    table: Annotated[Path, typer.Argument(help="MMBench or MMStar, tab-separated.")],
    images: Annotated[Path | None, typer.Option(help="Pictures by index, if not inside.")] = None,
    circular: Annotated[
        bool, typer.Option(help="Right only under every rotation of the options (MMBench).")
    ] = False,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """MMBench and MMStar: multiple choice about pictures."""
    from agent.evaluation.multiple_choice import evaluate_multiple_choice, load_multiple_choice

    data = load_multiple_choice(table, images=images, limit=limit)
    tally = asyncio.run(evaluate_multiple_choice(chosen.pipeline(), data, circular=circular))
    print_figures(str(table), tally.estimates(), as_json=as_json)


@takes_model
def pope(
    questions: Annotated[Path, typer.Option(help="coco_pope_random.json and the like.")],
    images: ImagesOption,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """POPE: yes or no about what is there and what is not."""
    from agent.evaluation.pope import evaluate_pope, load_pope

    data = load_pope(questions, images, limit=limit)
    tally = asyncio.run(evaluate_pope(chosen.pipeline(), data))
    print_figures(f"POPE, {questions}", tally.estimates(), as_json=as_json)


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
    """Every ability on seen artwork, unseen artwork and novel classes; goes on where it was."""
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


def _photographs(images: Path | None, annotations: Path | None, num: int) -> CocoFolder | None:
    """The first pictures of a COCO folder, if one is given."""
    from agent.evaluation.coco_folder import open_coco

    if (images is None) != (annotations is None):
        raise typer.BadParameter("give --images and --annotations, or neither")
    if images is None or annotations is None:
        return None
    return open_coco(images, annotations, limit=num)


@takes_model
def evidence(
    images: ImagesOption,
    annotations: Annotated[Path, typer.Option(help="COCO annotation file.")],
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: what is read from the detector alone, the classifier alone, and both."""
    import tempfile

    from agent.evaluation.coco_folder import open_coco
    from agent.evaluation.detection import evaluate_detection
    from agent.evaluation.evidence_study import PARTS, with_silent
    from agent.evaluation.tally import Estimate

    data = open_coco(images, annotations, limit=limit)
    model, rows = find_model(chosen.ready.model).path, {}
    for name, silent in PARTS.items():
        with tempfile.TemporaryDirectory() as folder:
            pipeline = chosen.pipeline(model=str(with_silent(model, silent, Path(folder))))
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
    most_regions: Annotated[int, typer.Option(help="Of a scene.", min=1, max=24)] = 6,
    doubt: Annotated[float, typer.Option(help="1 is that of photographs.", min=0, max=1)] = 0.3,
    seed: Annotated[int, typer.Option(help="Chooses scenes and labels.")] = 77,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: what short trainings answer about the same symbolic scenes, and at what cost."""
    from agent.evaluation.answer_study import Answerer, ScenesAsked
    from agent.training.pointing import classifier_head

    asked = ScenesAsked(scenes=scenes, most_regions=most_regions, doubt=doubt, seed=seed)
    weights = classifier_head(head)
    shown = ("found_exact", "recall", "precision", "f1", "absent_right", "tokens_found",
             "passes", "milliseconds")  # fmt: skip
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
