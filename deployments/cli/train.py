"""The `groundstream train` commands: thin, over `agent.training`. Heavy imports happen inside."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent.model_directory import DEFAULT_MODEL
from deployments.cli.options import DEFAULT_ARTWORK, ArtworkOption

WordNet = Annotated[Path | None, typer.Option(help="data.noun of WordNet 3.0.")]
Workers = Annotated[
    int, typer.Option(help="Processes that train together, through Ray Train.", min=1)
]
Threads = Annotated[int, typer.Option(help="Threads of each training process.", min=1)]


def vocabulary(
    wordnet: Annotated[Path, typer.Option(help="data.noun of WordNet 3.0.")],
    synsets: Annotated[Path, typer.Option(help="ImageNet's synsets, a line each.")],
    output: Annotated[Path | None, typer.Option(help="Instead of the package's own.")] = None,
) -> None:
    """Write the words that the embedded model's classes are called by."""
    from agent.training.wordnet import write

    write(wordnet, synsets, *([output] if output else []))


def own_answers(
    output: Annotated[Path, typer.Option(help="A folder for one text file an answer.")],
    count: Annotated[int, typer.Option(min=1)] = 240,
    seed: Annotated[int, typer.Option(help="Chooses the questions.")] = 0,
) -> None:
    """Write what the untouched language model answers to everyday questions, to rehearse."""
    from agent.training.own_answers import write

    write(output, count=count, seed=seed)


def evidence(
    images: Annotated[Path, typer.Option(help="A folder of pictures; no labels are needed.")],
    output: Annotated[Path, typer.Option(help="The .npz to write.")],
    weights: Annotated[
        Path | None, typer.Option(help="A folder with the vision parts' weights.")
    ] = None,
    views: Annotated[int, typer.Option(min=1, help="Of each picture: parts of it.")] = 6,
    seed: int = 0,
) -> None:
    """Collect what the vision parts believe of pictures, for `train pointing --evidence`."""
    from agent.model_directory import find_model
    from agent.training.picture_evidence import collect

    folder = weights or find_model(DEFAULT_MODEL).path
    print(f"{collect(images, folder, output, views=views, seed=seed)} views")


def pointing(
    head: Annotated[Path, typer.Option(help="The image classifier's weights.")],
    directory: Annotated[Path, typer.Option(help="State and log of the run.")] = Path(
        ".training/pointing"
    ),
    wordnet: WordNet = None,
    texts: Annotated[
        list[Path] | None, typer.Option(help="A folder of text to rehearse; several may be given.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="A model's folder: begin with what it has learned.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="Of pictures, written by `train evidence`.")
    ] = None,
    own_answers: Annotated[
        Path | None, typer.Option(help="Written by `train own-answers`; asked beside scenes too.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with what differs from the usual numbers.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    minutes: Annotated[float, typer.Option(help="Stop then; another run goes on.")] = float("inf"),
    workers: Workers = 1,
    threads: Threads = 1,
) -> None:
    """Teach the embedded model's language side to point; goes on where it was interrupted."""
    from dataclasses import replace
    from functools import partial

    from agent.training.pointing import PointingRecipe, run
    from deployments.cli.ray_train import launch

    chosen = PointingRecipe() if recipe is None else PointingRecipe.read(recipe)
    if steps is not None:
        chosen = replace(chosen, steps=steps)
    work = partial(
        run, chosen, head.resolve(), directory.resolve(), wordnet=wordnet and wordnet.resolve(),
        texts=[folder.resolve() for folder in texts or ()], start=start and start.resolve(),
        evidence=evidence and evidence.resolve(), own_answers=own_answers and own_answers.resolve(),
        minutes=minutes, threads=threads,
    )  # fmt: skip
    if workers == 1:
        work()
    else:
        launch(work, "pointing", directory.resolve(), workers)


def export(
    output: Annotated[Path, typer.Option(help="The model's folder.")],
    directory: Annotated[Path | None, typer.Option(help="The run that learned to point.")] = None,
    mean_with: Annotated[
        Path | None, typer.Option(help="The model it began with: write the mean of both.")
    ] = None,
    nanodet_graph: Annotated[
        Path | None, typer.Option(help="NanoDet-g as a TensorFlow.js graph model, a folder.")
    ] = None,
    efficientnet: Annotated[
        Path | None, typer.Option(help="EfficientNet-Lite0 as a PyTorch state.")
    ] = None,
) -> None:
    """Write a model's folder: what a run has learned, the vision parts, or both."""
    from agent.training.pointing import export as export_language
    from agent.training.vision_parts import convert

    if (nanodet_graph is None) != (efficientnet is None) or not (directory or nanodet_graph):
        raise typer.BadParameter(
            "give --directory, or --nanodet-graph and --efficientnet, or all three"
        )
    if nanodet_graph is not None and efficientnet is not None:
        convert(nanodet_graph=nanodet_graph, efficientnet=efficientnet, output=output)
    if directory is not None:
        export_language(directory, output, mean_with=mean_with)


def artwork(cache: ArtworkOption = DEFAULT_ARTWORK) -> None:
    """Render the drawings that composed scenes are made of, unless they are there; needs npm."""
    from agent.training.artwork import build_atlas, build_backgrounds

    _log()
    if not (cache / "backgrounds").is_dir():
        build_atlas(cache)
        build_backgrounds(cache)


def reinforce(
    output: Annotated[Path, typer.Option(help="The reinforced model's folder.")],
    base: Annotated[str, typer.Option(help="What to start from: 'pocket' or a folder.")] = (
        DEFAULT_MODEL
    ),
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with what differs from the usual numbers.")
    ] = None,
    cache: ArtworkOption = DEFAULT_ARTWORK,
    directory: Annotated[Path, typer.Option(help="Sheets, checkpoint and log.")] = Path(
        ".training/reinforce"
    ),
    threads: Threads = 1,
) -> None:
    """Let a model practise where to look on high-resolution scenes."""
    import torch

    from agent.training.reinforcement import load_settings, run

    _log()
    torch.set_num_threads(threads)
    for when, rewards in run(cache, directory, output, load_settings(recipe), model=base).items():
        typer.echo(f"{when}: {rewards}")


def _log() -> None:
    # The real standard error: one that a test put in its place is closed when the test ends.
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        stream=sys.__stderr__,
        force=True,
    )
