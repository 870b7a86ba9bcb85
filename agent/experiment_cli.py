"""`groundstream eval` for experiments that train: `integration`, `encoders`, `mixtures`.

Each starts from a training of one's own or, with --base, from a model directory. Heavy imports
happen inside.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.benchmark_cli import eval_app as eval_app
from agent.evaluation.report import print_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.evaluation.coco_folder import CocoFolder
    from agent.evaluation.experiment_start import ExperimentStart
    from agent.training.nano import NanoTraining

ArtworkOption = Annotated[Path, typer.Option(help="Rendered artwork.")]
DirectoryOption = Annotated[
    Path, typer.Option(help="Of a training; arms go to experiments/ in it.")
]
BaseOption = Annotated[
    str | None, typer.Option(help="A model ('pocket' or a folder) in place of a training.")
]
RecipeOption = Annotated[
    Path | None, typer.Option(help="Hyperparameters; default: agent/training/experiments.yaml.")
]
StepsOption = Annotated[int | None, typer.Option(help="Of instruction tuning, each.", min=1)]
PoolOption = Annotated[
    int | None, typer.Option(help="Batches of 8 pictures whose regions are learned from.", min=3)
]
SeedsOption = Annotated[
    int, typer.Option(help="Runs of each arm; of one, intervals are over pictures.", min=1)
]
NumOption = Annotated[int, typer.Option(help="Composed pictures to measure on.", min=1)]
CacheOption = Annotated[Path, typer.Option(help="Where composed pictures are kept.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Last line: one JSON object.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")]

_ARTWORK, _DIRECTORY, _CACHE = Path(".artwork"), Path(".training"), Path(".evaluation")


@eval_app.command("encoders")
def eval_encoders(
    artwork: ArtworkOption = _ARTWORK,
    directory: DirectoryOption = _DIRECTORY,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    num_train: Annotated[int, typer.Option(help="Batches that are learned from.")] = 150,
    num_val: Annotated[int, typer.Option(help="Batches that are measured on.")] = 40,
    steps: Annotated[int, typer.Option(help="Of each classifier.", min=1)] = 1500,
    seeds: Annotated[int, typer.Option(help="Runs of each.", min=2)] = 3,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: region classification by both encoders and by either alone."""
    from agent.evaluation.ablations import compare_encoders
    from agent.training.grounding import GroundingSetup

    training = _training(artwork, directory, base, recipe)
    setup = GroundingSetup.load(artwork, training.pretrained, training.recipe.align)
    figures = compare_encoders(
        setup, num_train=num_train, num_val=num_val, num_seeds=seeds, steps=steps,
        precision=training.recipe.regions.precision,
    )  # fmt: skip
    rows = {name: {"top1": figure} for name, figure in figures.items()}
    print_columns(f"{seeds} seeds", rows, as_json=as_json, markdown=markdown)


@eval_app.command("integration")
def eval_integration(
    artwork: ArtworkOption = _ARTWORK,
    directory: DirectoryOption = _DIRECTORY,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    steps: StepsOption = None,
    pool: PoolOption = None,
    seeds: SeedsOption = 3,
    num: NumOption = 30,
    cache: CacheOption = _CACHE,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiment: what region tokens say after alignment alone, and after both stages."""
    from agent.evaluation.ablations import compare_stages

    start = _start(artwork, directory, base, recipe, steps, pool)
    rows = asyncio.run(compare_stages(start, _pictures(cache, artwork, num), num_seeds=seeds))
    _print(rows, ("region_top1", "f1", "recall", "precision"), seeds, num, as_json, markdown)


@eval_app.command("mixtures")
def eval_mixtures(
    artwork: ArtworkOption = _ARTWORK,
    directory: DirectoryOption = _DIRECTORY,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    steps: StepsOption = None,
    pool: PoolOption = None,
    seeds: SeedsOption = 3,
    num: NumOption = 30,
    cache: CacheOption = _CACHE,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="Region tokens against printed boxes instead.")
    ] = False,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Experiments: without rejection samples, without general data; boxes printed as numbers."""
    from agent.evaluation.ablations import compare_mixtures
    from agent.evaluation.output_study import compare_outputs

    start = _start(artwork, directory, base, recipe, steps, pool)
    data = _pictures(cache, artwork, num)
    if outputs:
        rows = asyncio.run(compare_outputs(start, data, num_seeds=seeds))
        shown: tuple[str, ...] = (
            "precision", "recall", "f1", "false_positives", "passes", "language_ms",
            "primary_ms", "proposals_ms", "auxiliary_ms", "regions_ms",
        )  # fmt: skip
    else:
        rows = asyncio.run(compare_mixtures(start, data, num_seeds=seeds))
        shown = (
            "false_positives", "recall", "f1", "region_top1", "yes_no",
            "copying", "pointing", "naming", "symbolic_yes_no",
        )  # fmt: skip
    _print(rows, shown, seeds, num, as_json, markdown)


def _training(
    artwork: Path, directory: Path, base: str | None, recipe: Path | None
) -> NanoTraining:
    from agent.evaluation.experiment_start import EXPERIMENTS_RECIPE
    from agent.training.nano import NanoTraining
    from agent.training.recipe import load_recipe

    return NanoTraining(artwork, directory, load_recipe(recipe or EXPERIMENTS_RECIPE), base)


def _start(
    artwork: Path,
    directory: Path,
    base: str | None,
    recipe: Path | None,
    steps: int | None,
    pool: int | None,
) -> ExperimentStart:
    from dataclasses import replace

    from agent.evaluation.experiment_start import ExperimentStart

    training = _training(artwork, directory, base, recipe)
    chosen = training.recipe
    if steps is not None:
        rehearsal = chosen.instruct.rehearsal
        shorter = replace(rehearsal, loop=replace(rehearsal.loop, steps=steps))
        chosen = replace(chosen, instruct=replace(chosen.instruct, rehearsal=shorter))
    if pool is not None:
        chosen = replace(chosen, regions=replace(chosen.regions, batches=pool))
    return ExperimentStart.load(replace(training, recipe=chosen))


def _pictures(cache: Path, artwork: Path, num: int) -> CocoFolder:
    from agent.evaluation.composed_sets import evaluation_sets

    return evaluation_sets()[0].load(cache, artwork, num)


def _print(
    rows: Mapping[str, Mapping[str, object]],
    shown: tuple[str, ...],
    seeds: int,
    num: int,
    as_json: bool,
    markdown: bool,
) -> None:
    columns = {name: {key: figures.get(key) for key in shown} for name, figures in rows.items()}
    print_columns(f"{seeds} seeds, {num} pictures", columns, as_json=as_json, markdown=markdown)
