"""Settings that check themselves: frozen dataclasses validated by pydantic, errors of one line.

`checked` goes above `@dataclass(frozen=True)`. Values are then checked wherever an object is made:
by a constructor, by `dataclasses.replace`, or by `from_mapping`, which reads what a file says.
A field's meaning is the string below it; it becomes the description in the JSON schema.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic.dataclasses
import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from groundstream.errors import SettingsError

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=1)] | None
NonNegativeCount = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


def checked(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked when an object is made.

    Objects raise SettingsError: a value has the wrong kind or is out of range.
    """
    made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=CONFIG)  # type: ignore[call-overload]
    validate = made.__init__

    @functools.wraps(validate)
    def construct(self: object, *values: object, **named: object) -> None:
        try:
            validate(self, *values, **named)
        except ValidationError as error:
            raise _settings_error(error, made, made.__name__) from None

    made.__init__ = construct
    made.__doc__ = cls.__doc__
    return typing.cast("type[T]", made)


def from_mapping(cls: type[T], values: object, where: str = "settings") -> T:
    """A checked dataclass from plain values; nested ones are built on the way.

    Args:
        cls: decorated with `checked`.
        values: a mapping of strings, numbers, lists and mappings, as YAML or JSON gives them.
        where: what errors call the mapping.

    Raises:
        SettingsError: an unknown or missing key, a value of the wrong kind or out of range.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{where} must be a mapping, not {type(values).__name__}")
    try:
        # Through JSON: its strict mode takes a list for a tuple and a mapping for a dataclass.
        return typing.cast(T, _validator(cls).validate_json(json.dumps(values)))
    except ValidationError as error:
        raise _settings_error(error, cls, where) from None
    except TypeError as error:
        raise SettingsError(
            f"{where} holds a value that is neither text nor number: {error}"
        ) from (error)


def with_changes(usual: T, path: Path) -> T:
    """A checked dataclass with what a YAML file says in place of its values, also of nested ones.

    Raises:
        SettingsError: the file cannot be read, or has an unknown key or an impossible value.
    """
    known = dataclasses.asdict(usual)  # type: ignore[call-overload]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping")
    merged = {
        key: {**known[key], **value} if isinstance(value, dict) and key in known else value
        for key, value in values.items()
    }
    return from_mapping(type(usual), known | merged, str(path))


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a checked dataclass."""
    return TypeAdapter(cls).json_schema()


def unknown_key(key: str, known: Sequence[str], where: str) -> SettingsError:
    """The error about a key that is none of `known`; names the one that may be meant."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return SettingsError(f"unknown key {key!r} in {where}; {hint}")


def positive_numbers(value: T) -> T:
    """Refuse a dataclass that holds a number of zero or less; for `positive`."""
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        number = getattr(value, field.name)
        if number <= 0:
            raise ValueError(f"{field.name} should be greater than 0, not {number!r}")
    return value


AllPositive = AfterValidator(positive_numbers)
"""Annotation for a plain dataclass of numbers that must all be positive."""


def _validator(cls: Any) -> Any:
    return cls.__pydantic_validator__


def _settings_error(error: ValidationError, cls: type[Any], where: str) -> SettingsError:
    """One line about the first mistake: where it is, what is wanted, what stands there."""
    first = error.errors(include_url=False)[0]
    parts = list(first["loc"])
    kind, said, given = first["type"], first["msg"], first["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        key = str(parts.pop())
        group = _hint_at(cls, parts)
        known = sorted(field.name for field in dataclasses.fields(group))
        return unknown_key(key, known, _path(where, parts))
    if kind in ("missing", "missing_argument"):
        return SettingsError(f"{_path(where, parts[:-1])} lacks the key {parts[-1]!r}")
    if kind in ("dataclass_type", "dataclass_exact_type", "dict_type"):
        said = f"Input should be a mapping, not {type(given).__name__}"
    elif kind == "value_error":
        said = f"Input is wrong: {said.removeprefix('Value error, ')}"
    else:
        wanted = _hint_at(cls, parts)
        null = " or null" if type(None) in typing.get_args(wanted) else ""
        said = f"{said}{null}, not {given!r}"
    return SettingsError(f"{_path(where, parts)} {said.removeprefix('Input ')}")


def _hint_at(hint: Any, parts: list[int | str]) -> Any:
    """The type at a place; drops from `parts` what names no place but a member of a union."""
    for index, part in enumerate(parts):
        group = _without_none(hint)
        if dataclasses.is_dataclass(group):
            hint = typing.get_type_hints(group)[str(part)]
        elif typing.get_origin(group) in (Mapping, Sequence, tuple, list, dict):
            hint = next(kind for kind in reversed(typing.get_args(group)) if kind is not Ellipsis)
        else:
            del parts[index:]
            break
    return hint


def _without_none(hint: Any) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    has_none = type(None) in typing.get_args(hint)
    return kinds[0] if has_none and len(kinds) == 1 else hint


def _path(where: str, parts: Sequence[int | str]) -> str:
    return where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
