"""Writes what is said about settings from the settings' own classes: `make pages`.

Three files follow from `agent.settings.ServiceSettings`: the table of docs/tuning.md, the `args` of
serve_config.yaml, and docs/serve_config.schema.json for editors. A setting's meaning is
the docstring below its field, or that of the group where all fields mean the same for different
things (threads and classes of the stages). tests/unit/test_documentation.py fails when a file is
old.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.checked_settings import json_schema
from agent.settings import DeploymentSettings, ServiceSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tuning.md"
SCHEMA = ROOT / "docs" / "serve_config.schema.json"
FILE = ROOT / "deployments" / "serve_config.yaml"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
FILE_BEGIN = "      # settings: begin; written from agent/settings.py by `make pages`"
FILE_END = "      # settings: end"
_NOT_IN_FILE = "stages"
"""Which classes run is no number."""
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row."""

    key: str
    """As in the file, groups joined by dots."""
    default: Any
    allowed: str
    """The range of a number, the words of a choice; empty: anything of the kind."""
    meaning: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings under one key, and the groups inside it."""

    key: str
    meaning: str
    settings: tuple[Setting, ...]
    groups: tuple[Group, ...]


def group_of(kind: type, key: str = "", schemas: dict[str, Any] | None = None) -> Group:
    """A settings class as a tree; the numbers are those of an object made without arguments."""
    if schemas is None:
        whole = json_schema(kind)
        schemas = {**whole["$defs"], kind.__name__: whole}
    schema = schemas[kind.__name__]
    hints = typing.get_type_hints(kind)
    made = kind()
    of_all = _sentence(kind.__doc__ or "")
    prefix = f"{key}." if key else ""
    settings, groups = [], []
    for field in dataclasses.fields(kind):
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            groups.append(group_of(hints[field.name], path, schemas))
            continue
        found = schema["properties"][field.name]
        meaning = _sentence(found.get("description", of_all))
        settings.append(Setting(path, getattr(made, field.name), _allowed(found), meaning))
    return Group(key, of_all, tuple(settings), tuple(groups))


def all_settings(group: Group | None = None) -> list[Setting]:
    """Those of our own code; what Serve is told about a deployment follows in Serve's words."""
    group = group or group_of(ServiceSettings)
    found = list(group.settings)
    for inner in group.groups:
        found += all_settings(inner)
    return found


def table() -> str:
    """The table, group by group."""
    lines: list[str] = []
    above = None
    for setting in all_settings():
        group, _, name = setting.key.rpartition(".")
        if group != above:
            above = group
            title = f"`{group}`" if group else "The service"
            lines += [
                "",
                f"### {title}",
                "",
                "| setting | default | allowed | |",
                "|---|---|---|---|",
            ]
        default = f"`{json.dumps(setting.default)}`"
        lines.append(f"| `{name}` | {default} | {setting.allowed} | {setting.meaning} |")
    return "\n".join(lines).strip()


def page() -> str:
    """The page with its table replaced."""
    return _between(PAGE.read_text(), BEGIN, table(), END)


def schema() -> str:
    """The JSON schema of `args`."""
    return json.dumps(json_schema(ServiceSettings), indent=1) + "\n"


def serve_config() -> str:
    """serve_config.yaml with its `args` replaced."""
    whole = group_of(ServiceSettings)
    return _between(FILE.read_text(), FILE_BEGIN, "\n".join(_lines(whole, 6)), FILE_END)


def keys_of_file() -> set[str]:
    """Every option of serve_config.yaml's deployments."""
    application = yaml.safe_load(FILE.read_text())["applications"][0]
    deployments = {key for entry in application["deployments"] for key in entry}
    assert deployments <= {field.name for field in dataclasses.fields(DeploymentSettings)}
    return deployments


def _lines(group: Group, indent: int) -> Iterator[str]:
    """A group as YAML, each meaning behind its key or, where it is long, above it."""
    for setting in group.settings:
        meaning = "" if setting.meaning == group.meaning else setting.meaning
        name = setting.key.rpartition(".")[2]
        yield from _line(f"{name}: {json.dumps(setting.default)}", meaning, indent)
    for inner in group.groups:
        if inner.key != _NOT_IN_FILE:
            yield from _line(f"{inner.key.rpartition('.')[2]}:", inner.meaning, indent)
            yield from _lines(inner, indent + 2)


def _line(text: str, meaning: str, indent: int) -> Iterator[str]:
    line = " " * indent + text
    if meaning and len(line) + len(meaning) + 4 <= _WIDTH:
        yield f"{line}  # {meaning}"
        return
    if meaning:
        start = " " * indent + "# "
        yield from textwrap.wrap(
            meaning, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
        )
    yield line


def _allowed(found: dict[str, Any]) -> str:
    """Words for the range in a property's schema."""
    kinds = found.get("anyOf", [found])
    number = next((kind for kind in kinds if kind.get("type") != "null"), found)
    said = []
    if "enum" in number:
        said.append(", ".join(f"`{word}`" for word in number["enum"]))
    for key, words in (("minimum", "at least"), ("exclusiveMinimum", "more than"),
                       ("maximum", "at most")):  # fmt: skip
        if key in number:
            said.append(f"{words} {number[key]}")
    if said and any(kind.get("type") == "null" for kind in kinds):
        said.append("or null")
    return " ".join(said)


def _sentence(docstring: str) -> str:
    """In a line, and in the file's words."""
    return " ".join(docstring.split()).replace("None", "null")


def _between(text: str, begin: str, new: str, end: str) -> str:
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{new}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
    SCHEMA.write_text(schema())
    FILE.write_text(serve_config())
