"""`groundstream eval BENCHMARK`: a public benchmark's files in, a table or one line of JSON out.

Every command reads its benchmark, asks the model, prints. What is asked and how it is scored
stands in the benchmark's own module.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.zoom_policy import Zoom, ZoomPolicy
from deployments.cli.ground import zoomer_of
from deployments.cli.options import (
    USUAL_RUN,
    BenchmarkRun,
    ImagesOption,
    PolicyOption,
    Protocol,
    ProtocolOption,
    TokensOption,
    takes_model,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agent.evaluation.counting import CountQuestion
    from agent.evaluation.tally import Tally


@takes_model
def odinw(
    folder: Annotated[Path, typer.Argument(help="ODinW13 as downloaded and unpacked.")],
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """ODinW13: detection in 13 small sets, mean of their APs."""
    from agent.evaluation.odinw import evaluate_odinw, load_odinw, mean_scores

    sets, pipeline = load_odinw(folder, limit=run.limit), run.pipeline()

    async def measure() -> dict[str, float]:
        return mean_scores(await evaluate_odinw(pipeline, sets))

    run.show(f"ODinW13, {folder}", measure())


@takes_model
def ovdeval(
    folder: Annotated[Path, typer.Argument(help="Holds annotations/ and images/.")],
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """OVDEval: fine-grained labels with hard negatives, NMS-AP."""
    from agent.evaluation.ovdeval import evaluate_ovdeval, load_ovdeval, mean_scores

    tasks, pipeline = load_ovdeval(folder, limit=run.limit), run.pipeline()

    async def measure() -> dict[str, float]:
        found = {name: await evaluate_ovdeval(pipeline, data, title=name)
                 for name, data in tasks.items()}  # fmt: skip
        return mean_scores(found)

    run.show(f"OVDEval, {folder}", measure())


@takes_model
def refcoco(
    refs: Annotated[Path, typer.Option(help="refs(unc).p, refs(umd).p or the same as JSON.")],
    instances: Annotated[Path, typer.Option(help="instances.json.")],
    images: ImagesOption,
    split: Annotated[str, typer.Option(help="val, testA, testB or test.")] = "val",
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg: accuracy at IoU 0.5."""
    from agent.evaluation.refcoco import evaluate_refcoco, load_refcoco

    data = load_refcoco(refs, instances, images, split=split, limit=run.limit)
    run.show(f"{refs} {split}", evaluate_refcoco(run.pipeline(), data))


@takes_model
def countbench(
    table: Annotated[Path, typer.Argument(help="Parquet, or CountBench.json.")],
    questions: Annotated[
        Path | None, typer.Option(help="countbench_paired_questions.json of CountBenchQA.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Pictures, where not in the table.")] = None,
    protocol: ProtocolOption = Protocol.AUTO,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """CountBench: accuracy and mean absolute error of counts."""
    from agent.evaluation.countbench import load_countbench

    data = load_countbench(table, questions=questions, images=images, limit=run.limit)
    run.show(f"CountBench, {table}", _counted(data, protocol, run))


@takes_model
def pixmo_count(
    table: Annotated[Path, typer.Argument(help="Parquet of allenai/pixmo-count.")],
    images: Annotated[Path | None, typer.Option(help="Pictures, by SHA-256 or name.")] = None,
    protocol: ProtocolOption = Protocol.AUTO,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """PixMo-Count: accuracy and mean absolute error of counts."""
    from agent.evaluation.pixmo_count import load_pixmo_count

    data = load_pixmo_count(table, images=images, limit=run.limit)
    run.show(f"PixMo-Count, {table}", _counted(data, protocol, run))


def _counted(
    data: list[CountQuestion], protocol: Protocol, run: BenchmarkRun
) -> Coroutine[Any, Any, Tally]:
    from agent.evaluation.counting import evaluate_counting
    from agent.evaluation.published import evaluate_published_counting

    evaluate = evaluate_published_counting if protocol.is_published(run) else evaluate_counting
    return evaluate(run.pipeline(), data)


@takes_model
def named_regions(
    annotations: Annotated[Path, typer.Option(help="Osprey's sample, or the set's own file.")],
    images: ImagesOption,
    encoder: Annotated[
        str | None,
        typer.Option(help="sentence-transformers model for semantic similarity (not offline)."),
    ] = None,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """LVIS and PACO: what is in a given box; exact, semantic IoU, semantic similarity."""
    from agent.evaluation.region_names import evaluate_named_regions, load_named_regions
    from agent.evaluation.text_match import sentence_encoder

    data = load_named_regions(annotations, images, limit=run.limit)
    vectors = None if encoder is None else sentence_encoder(encoder)
    run.show(str(annotations), evaluate_named_regions(run.pipeline(), data, encoder=vectors))


@takes_model
def cocotext(
    annotations: Annotated[Path, typer.Option(help="cocotext.v2.json.")],
    images: ImagesOption,
    split: Annotated[str, typer.Option(help="val or train.")] = "val",
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """COCO-Text: what is written in a given box."""
    from agent.evaluation.cocotext import evaluate_cocotext, load_cocotext

    data = load_cocotext(annotations, images, split=split, limit=run.limit)
    run.show(f"COCO-Text {split}, {annotations}", evaluate_cocotext(run.pipeline(), data))


@takes_model
def ferret_bench(
    folder: Annotated[Path, typer.Argument(help="Holds question.jsonl and, beside it, answers.")],
    images: ImagesOption,
    answers: Annotated[Path, typer.Option(help="Written for the judge.")] = Path("answers.jsonl"),
    think: Annotated[bool, typer.Option(help="Reasoning questions ask for thoughts.")] = True,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """Ferret-Bench: questions about boxes; answers for a judge model, and exact matches."""
    from agent.evaluation.ferret_bench import evaluate_ferret_bench, load_ferret_bench

    data = load_ferret_bench(folder, images, limit=run.limit)
    measuring = evaluate_ferret_bench(run.pipeline(), data, answers=answers, think=think)
    run.show(f"{folder}, answers in {answers}", measuring)


@takes_model
def multiple_choice(
    table: Annotated[Path, typer.Argument(help="MMBench or MMStar, tab-separated.")],
    images: Annotated[Path | None, typer.Option(help="Pictures by index, if not inside.")] = None,
    circular: Annotated[
        bool, typer.Option(help="Right only under every rotation of the options (MMBench).")
    ] = False,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """MMBench and MMStar: multiple choice about pictures."""
    from agent.evaluation.multiple_choice import evaluate_multiple_choice, load_multiple_choice

    data = load_multiple_choice(table, images=images, limit=run.limit)
    run.show(str(table), evaluate_multiple_choice(run.pipeline(), data, circular=circular))


@takes_model
def pope(
    questions: Annotated[Path, typer.Option(help="coco_pope_random.json and the like.")],
    images: ImagesOption,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """POPE: yes or no about what is there and what is not."""
    from agent.evaluation.pope import evaluate_pope, load_pope

    data = load_pope(questions, images, limit=run.limit)
    run.show(f"POPE, {questions}", evaluate_pope(run.pipeline(), data))


@takes_model
def vstar(
    tables: Annotated[list[Path], typer.Argument(help="test_questions.jsonl, beside its folders.")],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """V* Bench as ERGO was measured."""
    _measure("vstar", tables, Zoom(zoom, zoom_tokens), run)


@takes_model
def hrbench(
    tables: Annotated[list[Path], typer.Argument(help="hr_bench_4k.parquet, hr_bench_8k.parquet.")],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """HR-Bench as ERGO was measured."""
    _measure("hrbench", tables, Zoom(zoom, zoom_tokens), run)


@takes_model
def mme_realworld(
    tables: Annotated[
        list[Path], typer.Argument(help="All train-*.parquet of MME-RealWorld-lite-lmms-eval.")
    ],
    zoom: PolicyOption = ZoomPolicy.ALWAYS,
    zoom_tokens: TokensOption = None,
    run: BenchmarkRun = USUAL_RUN,
) -> None:
    """MME-RealWorld-lite as ERGO was measured."""
    _measure("mme-realworld", tables, Zoom(zoom, zoom_tokens), run)


def _measure(name: str, tables: list[Path], zoom: Zoom, run: BenchmarkRun) -> None:
    from agent.evaluation.ergo_benchmarks import LOADERS, evaluate_ergo

    questions = list(itertools.islice(LOADERS[name](tables), run.limit))
    zoomer, longest = zoomer_of(run)
    measuring = evaluate_ergo(
        zoomer, questions, zoom=zoom, max_new_tokens=longest,
        report=lambda done: typer.echo(f"{done} of {len(questions)}", err=True),
    )  # fmt: skip
    run.show(f"{name}, {run.name}", measuring)
