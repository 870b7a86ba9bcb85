"""The `groundstream train` command: what to train, on what, where. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli import DeviceOption


def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="artwork, proposals, language, vision, align, instruct, export, or all; "
            "refine: a trained model's eyes go on learning; reinforce: practise where to look; "
            "plot: draw the curves of what has run."
        ),
    ] = "all",
    artwork: Annotated[Path, typer.Option(help="Cache of rendered artwork.")] = Path(".artwork"),
    directory: Annotated[Path, typer.Option(help="Checkpoints and logs.")] = Path(".training"),
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML with what differs from the shipped recipe (nano.yaml)."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Annotated pictures for align or instruct, as FORMAT:FILE (coco, lvis, refcoco, "
            "visualgenome); may be given several times."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Their folder (default: beside each file).")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="What refine, align or instruct start from: 'pocket' or a folder."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of this stage.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where export and reinforce write (default of export: the shipped weights)."
        ),
    ] = None,
    device: DeviceOption = "cpu",
    workers: Annotated[
        int, typer.Option(help="Processes that train together, through Ray Train.", min=1)
    ] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each training process.", min=1)] = 1,
) -> None:
    """Train the nano model, one stage or all; an interrupted stage goes on where it was."""
    import logging

    from rich import get_console
    from rich.logging import RichHandler

    from agent.training.annotations import DataSource
    from agent.training.nano import WEIGHTS, NanoTraining, with_own_pictures
    from agent.training.recipe import load_recipe
    from deployments.training import launch

    if get_console().is_terminal:
        # Lines above the progress bar, not through it.
        handler = RichHandler(console=get_console(), show_path=False)
        logging.basicConfig(
            level=logging.INFO, format="%(message)s", handlers=[handler], force=True
        )
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    sources = tuple(DataSource.parse(text, images) for text in data or ())
    training = NanoTraining(
        artwork,
        directory,
        with_own_pictures(load_recipe(recipe), stage, sources, steps),
        base=base,
        output=output or WEIGHTS,
        device=device,
        num_threads=threads,
    )
    if workers == 1:
        training.run(stage)
    else:
        launch(training, stage, workers)
