"""The commands that bring models here and look at them: model fetch, model check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agent.model_directory import find_model, is_model

UPN = "upn"
_UPN_NAME = "upn_large.pth"
_UPN_HOME = "https://github.com/IDEA-Research/ChatRex"
_UPN_FILE = f"{_UPN_HOME}/releases/download/upn-large/{_UPN_NAME}"


def fetch(
    model: Annotated[
        str, typer.Argument(help="A hub name, OWNER/MODEL or OWNER/MODEL@REVISION; or upn.")
    ],
    file: Annotated[
        Path | None, typer.Option(help="For upn: the file that you downloaded.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(help="For upn: what its SHA-256 must be.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="For upn: agree to its authors' licence.")
    ] = False,
) -> None:
    """Bring a model of the hub here, in its newest commit, with a proposal network if it has none.

    UPN's weights are not on the hub, and no checksum of them is known, so they are not downloaded:
    the file that you have is checked, and the command that uses it is printed.
    """
    if model == UPN:
        _upn(file, sha256, accept_licence=accept_licence)
        return
    from agent.chosen_model import choose_model
    from agent.hub import HubName
    from agent.hub import fetch as fetch_from_hub
    from groundstream.errors import SettingsError

    name = HubName.parse(model)
    if name is None:
        raise SettingsError(
            f"{model!r} is no name of the hub; write OWNER/MODEL, such as omlab/VLM-FO1-3B-v01"
        )
    snapshot = fetch_from_hub(name, report=typer.echo)
    pinned = str(name.pinned(snapshot))
    if is_model(snapshot):
        choose_model(pinned, report=typer.echo)
        typer.echo(f"groundstream serve --model {pinned}")
    else:
        typer.echo(f"groundstream serve --model MODEL --proposals {pinned}")


def _upn(file: Path | None, sha256: str | None, *, accept_licence: bool) -> None:
    """Check a downloaded file and say how it is used.

    Raises:
        SettingsError: there is no file, its checksum differs, or its licence is not accepted.
        CheckpointMismatch: the file is not UPN.
    """
    import hashlib

    from agent.model.upn_checkpoint import load_universal_proposals
    from groundstream.errors import SettingsError

    if file is None or not file.is_file():
        raise SettingsError(
            f"read UPN's licence at {_UPN_HOME}, download {_UPN_FILE}, then: "
            f" groundstream model fetch upn --file {_UPN_NAME} --accept-licence"
        )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 is not None and found != sha256.strip().lower():
        raise SettingsError(f"the SHA-256 of {file} is {found}, not {sha256}; download it again")
    if not accept_licence and not typer.confirm(
        f"UPN has a licence of its own, at {_UPN_HOME}. Have you read it, and do you accept it?"
    ):
        raise SettingsError("UPN is not used without its licence; --proposals takes other networks")
    load_universal_proposals(file)
    typer.echo(f"{file} is UPN, SHA-256 {found}")
    typer.echo(f"groundstream serve --model omlab/VLM-FO1-3B-v01 --proposals {file.absolute()}")


def check(
    directory: Annotated[str, typer.Argument(help="'pocket', a checkpoint folder, or a hub name.")],
) -> None:
    """Say what a model directory holds, how it will compute, and everything that does not fit."""
    from rich.console import Console
    from rich.table import Table

    from agent.inspection import inspect_model

    model = find_model(directory)
    report = inspect_model(model.path)
    console = Console()
    for title, rows in (("found", report.found), ("switches", report.switches)):
        table = Table(title, "", title=model.name)
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning[/yellow] {escape(warning)}")
    for problem in report.problems:
        console.print(f"[red]problem[/red] {escape(problem)}")
    if report.problems:
        raise typer.Exit(1)
    console.print("can be loaded")
