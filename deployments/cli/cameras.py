"""The camera runner's command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cameras(
    file: Annotated[
        Path,
        typer.Argument(help="Says which cameras, what to look for and whom to tell (.yaml)."),
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Only say what is wrong with the file.")
    ] = False,
) -> None:
    """Watch many cameras and tell others what happens; docs/cameras.md describes the file.

    Goes on until it is stopped, or until all sources have ended. The file is read again when it
    changes. Exit status 2: the file, or something that it names, cannot be used.
    """
    from groundstream.cameras.command import check_cameras, run_cameras

    if check:
        typer.echo(check_cameras(file))
    else:
        run_cameras(file)
