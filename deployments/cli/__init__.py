"""The `groundstream` command: every subcommand is registered here and nowhere else.

The modules beside this one hold plain functions; each imports what it needs when it runs, so that
help is quick.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from groundstream.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def build_app() -> typer.Typer:
    """All commands under one name."""
    from deployments.cli import (
        benchmarks,
        client,
        evaluation,
        experiments,
        ground,
        model,
        service,
        train,
    )

    app = _group(
        "Find named things in pictures and video streams.",
        {
            "ground": ground.ground,
            "ask": ground.ask,
            "watch": client.watch,
            "cameras": client.cameras,
            "serve": service.serve,
            "console": client.console,
            "health": client.health,
            "doctor": service.doctor,
            "key": service.key,
            "demo": service.demo,
        },
    )
    app.callback()(_options)
    groups = {
        "eval": _group(
            "Measure the model on benchmarks.",
            {
                "detection": evaluation.detection,
                "words": evaluation.words,
                "places": evaluation.places,
                "likeness": evaluation.likeness,
                "forgetting": evaluation.forgetting,
                "tracking": evaluation.tracking,
                "video": evaluation.video,
                "high-resolution": evaluation.high_resolution,
                "vstar": benchmarks.vstar,
                "hrbench": benchmarks.hrbench,
                "mme-realworld": benchmarks.mme_realworld,
                "odinw": benchmarks.odinw,
                "ovdeval": benchmarks.ovdeval,
                "refcoco": benchmarks.refcoco,
                "countbench": benchmarks.countbench,
                "pixmo-count": benchmarks.pixmo_count,
                "lvis": benchmarks.named_regions,
                "paco": benchmarks.named_regions,
                "cocotext": benchmarks.cocotext,
                "ferret-bench": benchmarks.ferret_bench,
                "mmbench": benchmarks.multiple_choice,
                "mmstar": benchmarks.multiple_choice,
                "pope": benchmarks.pope,
                "compose": evaluation.compose,
                "suite": evaluation.suite,
                "proposals": experiments.proposals,
                "clutter": experiments.clutter,
                "evidence": experiments.evidence,
                "answers": experiments.answers,
            },
        ),
        "model": _group(
            "Bring models here, and look at them.", {"fetch": model.fetch, "check": model.check}
        ),
        "train": _group(
            "Train the embedded model, and others by reinforcement; docs/training.md.",
            {
                "vocabulary": train.vocabulary,
                "own-answers": train.own_answers,
                "evidence": train.evidence,
                "pointing": train.pointing,
                "export": train.export,
                "artwork": train.artwork,
                "reinforce": train.reinforce,
            },
        ),
    }
    for name, group in groups.items():
        app.add_typer(group, name=name)
    return app


def main() -> None:
    """Run the command line; an error the caller can mend is one line and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # As Python's stderr does: names of files may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        build_app()()
    except AgentError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        # A folder that cannot be written, a full disk: theirs to mend, too.
        typer.echo(f"error: {_of_file(error)}", err=True)
        raise SystemExit(2) from None


def _of_file(error: OSError) -> str:
    """What the system says, and of which file where it says that."""
    said = error.strerror or str(error) or type(error).__name__
    return said if error.filename is None else f"{error.filename}: {said}"


def _group(title: str, commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    """A group of commands, or the whole; without a command it shows its help."""
    group = typer.Typer(
        help=title, no_args_is_help=True, pretty_exceptions_enable=False, cls=_Group
    )
    for name, command in commands.items():
        group.command(name, cls=_Command)(command)
    return group


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(f"groundstream {importlib.metadata.version('groundstream')}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show it.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Options that belong to no command."""


class _PlainFlags:
    """Help shows no type beside flags, which take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See the base class."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    """A command."""


class _Group(_PlainFlags, TyperGroup):
    """A group of commands."""
