"""YAML read key by key, so that whatever is wrong is told with its line, its key and a remedy.

Knows no cameras: `groundstream/cameras/schema.py` says which keys there are. A mistake gives the
default back and is noted, so that one look finds all of them.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TypeVar

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from groundstream.checks import strange_character
from groundstream.errors import SettingsError

E = TypeVar("E", bound=Enum)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Of cameras, sinks and whatever else becomes part of a file's name or a topic."""
_MAX_BYTES = 1024 * 1024
_MAX_SECRET_BYTES = 64 * 1024
_MAX_PROBLEMS_SHOWN = 20
_MISSING = "is missing"


class Document:
    """One file and what is wrong with it."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            SettingsError: it cannot be read, or is no YAML at all.
        """
        self.path = path
        self.keys: set[str] = set()
        """Every key that was asked for, names of things as `*`."""
        self._problems: list[tuple[int, int, str]] = []
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"cannot read {path}: {error.strerror}") from None
        if len(content) > _MAX_BYTES:
            raise SettingsError(f"{path} is larger than 1 MB; split it over several runners")
        try:
            node = yaml.compose(content, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise SettingsError(f"{path}{where}: this is no YAML: {error.problem}") from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise SettingsError(f"{path}: this is no YAML: {error}") from None
        if node is None:
            raise SettingsError(f"{path} is empty; docs/cameras.md has an example")
        self.root = Section(self, node, "", "")

    def problem(self, node: Node, key: str, words: str) -> None:
        """Note a mistake."""
        mark = node.start_mark
        subject = f"{key} " if key else ""
        self._problems.append((mark.line + 1, mark.column + 1, f"{subject}{words}"))

    def check(self) -> None:
        """Raise all that was noted.

        Raises:
            SettingsError: there is something; one line for each, in the order of the file.
        """
        if not self._problems:
            return
        found = sorted(set(self._problems))
        lines = [f"{self.path}:{line}:{column}: {words}" for line, column, words in found]
        if len(lines) > _MAX_PROBLEMS_SHOWN:
            more = len(lines) - _MAX_PROBLEMS_SHOWN
            lines = [*lines[:_MAX_PROBLEMS_SHOWN], f"... and {more} more"]
        raise SettingsError("\n".join(lines))


class Value:
    """A node, where it stands, and readings of it."""

    def __init__(self, document: Document, node: Node, key: str, pattern: str) -> None:
        self.document, self.node, self.key = document, node, key
        self.pattern = pattern
        """The key, with `*` for the names of things."""

    def problem(self, words: str) -> None:
        """Note a mistake here."""
        self.document.problem(self.node, self.key, words)

    def text(self, default: str = "") -> str:
        """A text that is not empty."""
        found = _plain(self.node)
        if isinstance(found, str) and (strange := strange_character(found)):
            self.problem(f"contains {strange!r}, which is no character; write it in UTF-8")
        elif isinstance(found, str) and found.strip():
            return found
        elif isinstance(found, (int, float, bool)):
            self.problem("must be text; write it in quotes")
        elif found is None or isinstance(found, str):
            self.problem("is empty; write a text or leave the key out")
        else:
            self.problem("must be text")
        return default

    def number(self, default: float, low: float, high: float) -> float:
        """A number within bounds."""
        found = _plain(self.node)
        if isinstance(found, str):
            # YAML 1.1 takes 1e3 for text.
            try:
                found = float(found)
            except ValueError:
                found = None
        if not isinstance(found, (int, float)) or isinstance(found, bool) or math.isnan(found):
            self.problem(f"must be a number from {low:g} to {high:g}")
            return default
        if not low <= found <= high:
            self.problem(f"is {found:g} and must be from {low:g} to {high:g}")
            return default
        return float(found)

    def whole(self, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        found = self.number(default, low, high)
        if found != int(found):
            self.problem(f"is {found:g} and must be a whole number")
            return default
        return int(found)

    def flag(self, default: bool) -> bool:
        """True or false."""
        found = _plain(self.node)
        if isinstance(found, bool):
            return found
        self.problem("must be true or false")
        return default

    def choice(self, default: E) -> E:
        """One of an enumeration, in capitals or not."""
        text, names = self.text(), [member.name for member in type(default)]
        if text.upper() in names:
            return type(default)[text.upper()]
        if text:
            self.problem(f"is {text!r}; {_suggested(text, names)}")
        return default

    def is_null(self) -> bool:
        """Whether nothing, or `null`, is written here."""
        return isinstance(self.node, ScalarNode) and _plain(self.node) is None

    def is_text(self) -> bool:
        """Whether it is one word or number, not a list or a mapping."""
        return isinstance(self.node, ScalarNode)

    def items(self) -> list[Value]:
        """The entries of a list."""
        if not isinstance(self.node, SequenceNode):
            self.problem("must be a list, [first, second] or one entry a line after a dash")
            return []
        return [
            Value(self.document, node, f"{self.key}[{index}]", f"{self.pattern}[]")
            for index, node in enumerate(self.node.value)
        ]

    def section(self) -> Section:
        """The keys of a mapping."""
        return Section(self.document, self.node, self.key, self.pattern)

    def secret(self, *, in_clear: bool = False) -> str:
        """A text from the environment or a file; `in_clear`: or from here.

        The text itself never is part of a problem.
        """
        if self.is_text():
            if in_clear:
                return self.text()
            self.problem(
                "is a secret and does not belong in this file; write {env: NAME} for a variable "
                "of the environment or {file: PATH} for a file"
            )
            return ""
        section = self.section()
        variable, path = section.find("env"), section.find("file")
        section.close()
        if (variable is None) is (path is None):
            self.problem("must be {env: NAME} or {file: PATH}")
        elif variable is not None and (name := variable.text()):
            if found := os.environ.get(name, ""):
                return found
            variable.problem(f"names {name}, which is not set in the environment")
        elif path is not None and (name := path.text()):
            try:
                with self.located(name).open("rb") as file:
                    content = file.read(_MAX_SECRET_BYTES)
            except OSError as error:
                path.problem(f"cannot be read: {error.strerror}")
            else:
                if found := content.decode(errors="replace").strip():
                    return found
                path.problem(f"names {name}, which is empty")
        return ""

    def located(self, name: str) -> Path:
        """A path as it is meant: from the folder in which the file lies."""
        return self.document.path.parent / Path(name).expanduser()


class Section:
    """A mapping; ask for all keys that it may have, then `close` it."""

    def __init__(self, document: Document, node: Node, key: str, pattern: str) -> None:
        self.document, self.node, self.key, self.pattern = document, node, key, pattern
        self._values: dict[str, Value] = {}
        self._names: dict[str, Node] = {}
        self._known: list[str] = []
        if not isinstance(node, MappingNode):
            document.problem(node, key, "must be a mapping, `key: value` on lines of their own")
            return
        for name_node, value_node in self._pairs(node):
            name = _plain(name_node)
            if not isinstance(name, str):
                document.problem(name_node, key, "has a key that is no text; write it in quotes")
            elif name in self._values:
                document.problem(name_node, self._path(name), "is given twice")
            else:
                self._names[name] = name_node
                self._values[name] = Value(
                    document, value_node, self._path(name), f"{pattern}.{name}".lstrip(".")
                )

    def _pairs(self, node: MappingNode) -> list[tuple[Node, Node]]:
        """Own keys, then those of what `<<` brings in, which own ones replace."""
        own = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
        try:
            SafeConstructor().flatten_mapping(node)
        except yaml.MarkedYAMLError:
            self.document.problem(node, self.key, "has a `<<` that brings in no mapping")
            return own
        seen = {_plain(name) for name, _ in own if isinstance(name, ScalarNode)}
        brought = {
            _plain(name): (name, value)
            for name, value in node.value
            if isinstance(name, ScalarNode) and _plain(name) not in seen
        }
        return [*own, *brought.values()]

    def _path(self, name: str) -> str:
        return f"{self.key}.{name}" if self.key else name

    def find(self, name: str) -> Value | None:
        """What a key says; None: the key is not there."""
        self._known.append(name)
        self.document.keys.add(f"{self.pattern}.{name}".lstrip("."))
        return self._values.get(name)

    def need(self, name: str) -> Value | None:
        """As `find`, of a key that must be there."""
        found = self.find(name)
        if found is None and isinstance(self.node, MappingNode):
            self.document.problem(self.node, self._path(name), _MISSING)
        return found

    def text(self, name: str, default: str = "") -> str:
        """See `Value.text`."""
        found = self.find(name)
        return default if found is None else found.text(default)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """See `Value.number`."""
        found = self.find(name)
        return default if found is None else found.number(default, low, high)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """See `Value.whole`."""
        found = self.find(name)
        return default if found is None else found.whole(default, low, high)

    def flag(self, name: str, default: bool) -> bool:
        """See `Value.flag`."""
        found = self.find(name)
        return default if found is None else found.flag(default)

    def choice(self, name: str, default: E) -> E:
        """See `Value.choice`."""
        found = self.find(name)
        return default if found is None else found.choice(default)

    def named(self, most: int) -> list[tuple[str, Value]]:
        """All keys, where each is a name of the user's choice."""
        if len(self._values) > most:
            self.document.problem(
                self.node, self.key, f"has {len(self._values)} entries; {most} are possible"
            )
        found = []
        for name, value in list(self._values.items())[:most]:
            if not NAME.fullmatch(name):
                self.document.problem(
                    self._names[name], self._path(name),
                    "is no name: letters, digits, - and _, 64 at most",
                )  # fmt: skip
                continue
            self._known.append(name)
            found.append((name, Value(self.document, value.node, value.key, f"{self.pattern}.*")))
        return found

    def close(self, *, ignored_prefix: str = "") -> None:
        """Note the keys that nobody asked for."""
        for name, node in self._names.items():
            if name in self._known or (ignored_prefix and name.startswith(ignored_prefix)):
                continue
            self.document.problem(
                node, self._path(name), f"is no key here; {_suggested(name, self._known)}"
            )


def _plain(node: Node) -> object:
    """What a scalar means in YAML; the node itself where it is none."""
    if not isinstance(node, ScalarNode):
        return node
    try:
        found: object = SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError):
        return node.value
    return found if isinstance(found, (str, int, float, bool, type(None))) else node.value


def _suggested(given: str, known: Iterable[str]) -> str:
    """What may be written instead."""
    names: Sequence[str] = sorted(set(known))
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), list(lower), n=1)
    if close:
        return f"did you mean {lower[close[0]]}?"
    return f"one of {', '.join(names)} is possible" if names else "nothing is possible"
