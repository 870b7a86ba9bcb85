"""Figures on the terminal: a table, Markdown, or one line of JSON. Knows no benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The command line starts without NumPy.
    from agent.evaluation.tally import Estimate


def plain(figures: Any) -> Any:
    """Figures as what JSON can hold."""
    if is_dataclass(figures) and not isinstance(figures, type):
        return asdict(figures)
    if isinstance(figures, Mapping):
        return {str(name): plain(value) for name, value in figures.items()}
    return figures


def print_figures(title: str, figures: Mapping[str, float | Estimate], *, as_json: bool) -> None:
    """Figures one below the other, with what they were measured on."""
    if as_json:
        print(json.dumps(plain(figures)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value (95 % interval)", "of", title=title)
    for name, value in figures.items():
        counted = "" if isinstance(value, (int, float)) else f"{value.count:.0f}"
        table.add_row(name, _shown(value), counted)
    Console().print(table)


def print_columns(
    title: str,
    rows: Mapping[str, Mapping[str, object]],
    *,
    as_json: bool,
    markdown: bool,
) -> None:
    """Figures by row and column: numbers, or what says its interval; "-" where there is none."""
    if as_json:
        print(json.dumps(plain(rows)))
        return
    columns = ["", *next(iter(rows.values()))]
    lines = [[name, *map(_shown, figures.values())] for name, figures in rows.items()]
    if markdown:
        for line in (columns, ["---"] * len(columns), *lines):
            print(f"| {' | '.join(line)} |")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
