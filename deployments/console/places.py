"""The zones and lines of each camera: where they come from, what may be drawn, where they are kept.

They are known by the camera's name, so that they outlast its streams. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from groundstream.cameras.place_file import Places, read_place_file, write_place_file
from groundstream.cameras.schema import MAX_DWELL_S, MAX_PLACES, MAX_POINTS
from groundstream.cameras.yaml_reader import NAME
from groundstream.errors import EventsError
from groundstream.zones import Line, Point, Zone

MAX_NAMED_CAMERAS = 256
"""Cameras that have places, those that are gone included."""
_MAX_QUERIES = 64
_DIGITS = 4
"""A ten-thousandth of the picture is less than a pixel of most."""


class PlaceStore:
    """The places of all cameras; with a file, what is drawn is in it before it counts."""

    def __init__(self, known: Mapping[str, Places], path: Path | None = None) -> None:
        """Places of the file replace known ones camera by camera.

        Args:
            known: places by camera, such as those of a file of cameras.
            path: a file of places; it is made with the first change if it is not there.

        Raises:
            SettingsError: the file cannot be used.
        """
        self._path = path
        written = read_place_file(path) if path is not None and path.exists() else {}
        self._written = dict(written)
        self._places = {**known, **written}
        self._changing = asyncio.Lock()
        self.on_change: Callable[[str, Places], object] = lambda _camera, _places: None
        """Told when a camera has got other places."""

    def of(self, camera: str) -> Places:
        """What has been drawn for a camera."""
        return self._places.get(camera, Places())

    async def put(self, camera: str, place: Zone | Line) -> None:
        """Add a place, or replace the one of its name.

        Raises:
            EventsError: the camera would have too many, or too many cameras would have some.
            SettingsError: the file cannot be written; nothing has changed.
        """
        async with self._changing:
            before = self.of(camera)
            if isinstance(place, Zone):
                after = replace(before, zones=_with(before.zones, place))
            else:
                after = replace(before, lines=_with(before.lines, place))
            await self._change(camera, after)

    async def remove(self, camera: str, kind: type[Zone] | type[Line], name: str) -> None:
        """Take a place away; one that is not there is no error.

        Raises:
            SettingsError: the file cannot be written; nothing has changed.
        """
        async with self._changing:
            before = self.of(camera)
            if kind is Zone:
                zones = tuple(zone for zone in before.zones if zone.name != name)
                after = replace(before, zones=zones)
            else:
                lines = tuple(line for line in before.lines if line.name != name)
                after = replace(before, lines=lines)
            if after != before:
                await self._change(camera, after)

    async def _change(self, camera: str, places: Places) -> None:
        if max(len(places.zones), len(places.lines)) > MAX_PLACES:
            raise EventsError(f"{camera} has {MAX_PLACES} already; remove one first")
        if camera not in self._places and len(self._places) >= MAX_NAMED_CAMERAS:
            raise EventsError(f"{MAX_NAMED_CAMERAS} cameras have zones; remove those of another")
        written = {**self._written, camera: places}
        if self._path is not None:
            await asyncio.to_thread(write_place_file, self._path, written)
        self._written = written
        self._places[camera] = places
        self.on_change(camera, places)


def zone_from_fields(name: str, fields: object) -> Zone:
    """A zone as a page sends it: `{"points": [[x, y], ...], "dwell_s": seconds or null}`, and
    perhaps `"queries": [name, ...]`.

    Raises:
        EventsError: it is something else, or no zone.
    """
    points, found = _drawn(name, fields)
    dwell_s = found.get("dwell_s")
    if dwell_s is not None and not (_is_number(dwell_s) and 0.0 <= dwell_s <= MAX_DWELL_S):
        raise EventsError(f"dwell_s must be a number of seconds from 0 to {MAX_DWELL_S:.0f}")
    dwell_s = None if dwell_s is None else float(dwell_s)
    return Zone(name, points, dwell_s=dwell_s, queries=_queries(found))


def line_from_fields(name: str, fields: object) -> Line:
    """A line as a page sends it: `{"points": [[x, y], [x, y]]}`, and perhaps `queries`.

    Raises:
        EventsError: it is something else, or no line.
    """
    points, found = _drawn(name, fields)
    return Line(name, cast("tuple[Point, Point]", points), queries=_queries(found))


def _drawn(name: str, fields: object) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """Points in shares of the picture, and all that was sent."""
    if not NAME.fullmatch(name):
        raise EventsError(
            "a name has letters, digits, - and _, begins with a letter or digit, and has 64 at most"
        )
    points = fields.get("points") if isinstance(fields, dict) else None
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise EventsError("points must be a list of [x, y], shares of the picture")
    if len(points) > MAX_POINTS:
        raise EventsError(f"there are {len(points)} points; {MAX_POINTS} are possible")
    assert isinstance(fields, dict)
    return tuple((round(x, _DIGITS), round(y, _DIGITS)) for x, y in points), fields


def _queries(fields: dict[str, Any]) -> tuple[str, ...]:
    found = fields.get("queries") or []
    is_list = isinstance(found, list) and len(found) <= _MAX_QUERIES
    if not is_list or not all(isinstance(name, str) and 0 < len(name) <= 512 for name in found):
        raise EventsError(f"queries must be a list of at most {_MAX_QUERIES} names")
    return tuple(found)


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(cast("float", value)) < math.inf


def _with(places: tuple[Any, ...], new: Any) -> tuple[Any, ...]:
    """In its old place where there is one."""
    if new.name in [place.name for place in places]:
        return tuple(new if place.name == new.name else place for place in places)
    return (*places, new)
