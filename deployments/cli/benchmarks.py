"""`groundstream eval BENCHMARK`: a public benchmark's files in, a table or one line of JSON out.

Every command reads its benchmark, asks the model, prints. What is asked and how it is scored
stands in the benchmark's own module.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.evaluation.report import print_figures
from agent.zoom_policy import Zoom, ZoomPolicy
from deployments.cli.ground import zoomer_of
from deployments.cli.options import (
    USUAL_MODEL,
    ImagesOption,
    JsonOption,
    LimitOption,
    ModelChoice,
    PolicyOption,
    Protocol,
    ProtocolOption,
    TokensOption,
    takes_model,
)

if TYPE_CHECKING:
    from agent.evaluation.counting import CountQuestion
    from agent.evaluation.tally import Tally


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


@takes_model
def vstar(
    tables: Annotated[list[Path], typer.Argument(help="test_questions.jsonl, beside its folders.")],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """V* Bench as ERGO was measured."""
    _measure("vstar", tables, Zoom(zoom, zoom_tokens), limit, chosen, as_json=as_json)


@takes_model
def hrbench(
    tables: Annotated[list[Path], typer.Argument(help="hr_bench_4k.parquet, hr_bench_8k.parquet.")],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """HR-Bench as ERGO was measured."""
    _measure("hrbench", tables, Zoom(zoom, zoom_tokens), limit, chosen, as_json=as_json)


@takes_model
def mme_realworld(
    tables: Annotated[
        list[Path], typer.Argument(help="All train-*.parquet of MME-RealWorld-lite-lmms-eval.")
    ],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    limit: LimitOption = None,
    chosen: ModelChoice = USUAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """MME-RealWorld-lite as ERGO was measured."""
    _measure("mme-realworld", tables, Zoom(zoom, zoom_tokens), limit, chosen, as_json=as_json)


def _measure(
    name: str, tables: list[Path], zoom: Zoom, limit: int | None, chosen: ModelChoice, *,
    as_json: bool,
) -> None:  # fmt: skip
    from agent.evaluation.ergo_benchmarks import LOADERS, evaluate_ergo
    from agent.evaluation.report import print_figures

    questions = list(itertools.islice(LOADERS[name](tables), limit))
    zoomer, longest = zoomer_of(chosen)
    measuring = evaluate_ergo(
        zoomer, questions, zoom=zoom, max_new_tokens=longest,
        report=lambda done: typer.echo(f"{done} of {len(questions)}", err=True),
    )  # fmt: skip
    print_figures(f"{name}, {chosen.name}", asyncio.run(measuring).estimates(), as_json=as_json)
