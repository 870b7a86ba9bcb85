"""Reads the kinds of files benchmarks are published in, as rows of plain dictionaries.

JSON (a list), JSON lines (also where they are called .json, as POPE's are), tab-separated values
and Parquet. Knows no benchmark.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundstream.errors import SourceError

Row = dict[str, Any]

_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


def read_rows(path: Path) -> list[Row]:
    """The rows of a benchmark file.

    Raises:
        SourceError: the file cannot be read, or is none of the kinds above.
    """
    try:
        if path.suffix == ".parquet":
            return _parquet_rows(path)
        if path.suffix == ".tsv":
            return _tab_separated(path)
        return _json_rows(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as a table ({error})") from error


def _json_rows(text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except ValueError:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    # A single line of JSON lines is one object.
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it holds no list of objects")
    return rows


def _tab_separated(path: Path) -> list[Row]:
    # Pictures stand in the table as base64, far beyond the csv module's default limit.
    before = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [dict(row) for row in csv.DictReader(file, delimiter="\t")]
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"reading {path} needs pyarrow: pip install 'groundstream[eval]'"
        ) from error
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows


def picture_of(row: Mapping[str, Any], images: Path | None, *names: str) -> Path | bytes | None:
    """A row's picture: embedded (Parquet or base64), or the first of `names` found in `images`.

    Returns None where the row has none, as happens when a link of the benchmark is dead.
    """
    embedded = row.get("image")
    if isinstance(embedded, Mapping):
        embedded = embedded.get("bytes")
    if isinstance(embedded, bytes):
        return embedded
    if images is not None:
        for name in names:
            for suffix in _SUFFIXES:
                if (images / f"{name}{suffix}").is_file():
                    return images / f"{name}{suffix}"
    if isinstance(embedded, str) and not names:
        try:
            return base64.b64decode(embedded, validate=True)
        except binascii.Error as error:
            raise SourceError(f"a picture is not valid base64 ({error})") from error
    return None


def required(row: Mapping[str, Any], *names: str) -> Any:
    """The first of the named fields a row has.

    Raises:
        SourceError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise SourceError(f"a row has no field {' or '.join(map(repr, names))}: {sorted(row)}")
