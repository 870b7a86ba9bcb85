"""Questions in words about one picture, and benchmarks made of them: ask, eval vstar and others.

ERGO, and any stock Qwen2.5-VL, looks twice as published; other models look at regions again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.zoom_policy import Zoom, ZoomPolicy
from deployments.cli.options import USUAL_MODEL, JsonOption, LimitOption, ModelChoice, takes_model

if TYPE_CHECKING:
    from agent.zoom import Zoomer

PolicyOption = Annotated[
    ZoomPolicy,
    typer.Option("--zoom", help="Look again at a part of the picture.", case_sensitive=False),
]
TokensOption = Annotated[
    int | None, typer.Option("--zoom-tokens", help="Vision tokens of second looks.", min=1)
]


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
    """Whom a model's user asks in words, and how long an answer may be in tokens."""
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
