"""The command that looks at model directories: model check."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from agent.model_directory import find_model


def check(
    directory: Annotated[str, typer.Argument(help="'pocket' or a checkpoint folder.")],
) -> None:
    """Say what a model directory holds, how it will compute, and everything that does not fit."""
    from rich.console import Console
    from rich.table import Table

    from agent.inspection import inspect_model

    report = inspect_model(find_model(directory).path)
    console = Console()
    for title, rows in (("found", report.found), ("switches", report.switches)):
        table = Table(title, "", title=str(report.directory))
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
