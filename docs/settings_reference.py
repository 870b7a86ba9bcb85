"""Writes the table of docs/tuning.md from agent/settings.py: `python docs/settings_reference.py`.

A setting's meaning is the docstring below its field, or that of the group where all fields mean
the same for different things (threads and classes of the stages).
tests/unit/test_documentation.py fails when the page is old or lacks a key of serve_config.yaml.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.settings import DeploymentSettings, ServiceSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row."""

    key: str
    """As in the file, groups joined by dots."""
    default: str
    meaning: str


def settings_of(kind: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a dataclass, then those of its groups."""
    meanings = field_docstrings(kind)
    of_all = " ".join((kind.__doc__ or "").split())
    hints = typing.get_type_hints(kind)
    groups = [f for f in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[f.name])]
    for field in dataclasses.fields(kind):
        if field not in groups:
            key = f"{prefix}{field.name}"
            yield Setting(key, _default(field), meanings.get(field.name, of_all))
    for field in groups:
        yield from settings_of(hints[field.name], f"{prefix}{field.name}.")


def field_docstrings(kind: type) -> dict[str, str]:
    """The string that stands below each field of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def all_settings() -> list[Setting]:
    """Those of our own code; what Serve is told about a deployment follows in Serve's words."""
    return list(settings_of(ServiceSettings))


def table() -> str:
    """The table, group by group."""
    lines: list[str] = []
    group = None
    for setting in all_settings():
        above, _, name = setting.key.rpartition(".")
        if above != group:
            group = above
            title = f"`{above}`" if above else "The service"
            lines += ["", f"### {title}", "", "| setting | default | |", "|---|---|---|"]
        lines.append(f"| `{name}` | {setting.default} | {setting.meaning} |")
    return "\n".join(lines).strip()


def page() -> str:
    """The page with its table replaced."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def keys_of_file() -> set[str]:
    """Every key of serve_config.yaml's `args`, and of its deployments."""
    application = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]
    deployments = {key for entry in application["deployments"] for key in entry}
    assert deployments <= {field.name for field in dataclasses.fields(DeploymentSettings)}
    return set(_leaves(application["args"])) | deployments


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        # access.quota is one mapping by tenant's choice, and {} has no leaves of its own.
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
