"""Zones and lines of cameras in a file of their own, in the form of the runner's file.

What is written here can be pasted into a file of cameras; `groundstream/cameras/schema.py` reads
both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from groundstream.cameras.schema import MAX_CAMERAS, read_places
from groundstream.cameras.yaml_reader import Document
from groundstream.errors import SettingsError
from groundstream.zones import Line, Unit, Zone

_HEADER = "# Zones and lines by camera, as in a file of cameras (docs/cameras.md).\n"


@dataclass(frozen=True)
class Places:
    """The zones and lines of one camera."""

    zones: tuple[Zone, ...] = ()
    lines: tuple[Line, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.zones or self.lines)


def read_place_file(path: Path) -> dict[str, Places]:
    """The places of every camera that the file names.

    Raises:
        SettingsError: it cannot be read, or something in it is wrong: one line for each mistake
            with file, line, column and key.
    """
    document = Document(path)
    cameras = document.root.need("cameras")
    found = {}
    for name, value in [] if cameras is None else cameras.section().named(MAX_CAMERAS):
        section = value.section()
        found[name] = Places(*read_places(section, None))
        section.close()
    document.root.close(ignored_prefix="x-")
    document.check()
    return found


def write_place_file(path: Path, cameras: Mapping[str, Places]) -> None:
    """Replace the file as a whole, or leave it as it is.

    Args:
        path: its folder must be there.
        cameras: places by the name of the camera.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(_HEADER + places_text(cameras))
            Path(partial).chmod(0o644)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SettingsError(f"zones cannot be written to {path}: {error.strerror}") from None


def places_text(cameras: Mapping[str, Places]) -> str:
    """YAML that `read_place_file` reads and that fits into a file of cameras."""
    tree = {"cameras": {name: places_fields(places) for name, places in cameras.items()}}
    # Points on one line, keys on lines of their own.
    text: str = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100)
    return text


def places_fields(places: Places) -> dict[str, Any]:
    """The keys of a camera that say its places, as JSON and YAML have them; none that is empty."""
    fields = {
        "zones": {zone.name: _fields(zone) for zone in places.zones},
        "lines": {line.name: _fields(line) for line in places.lines},
    }
    return {key: found for key, found in fields.items() if found}


def _fields(place: Zone | Line) -> dict[str, Any]:
    fields: dict[str, Any] = {"points": [[x, y] for x, y in place.points]}
    if place.unit is not Unit.SHARES:
        fields["unit"] = place.unit.name
    if place.queries:
        fields["queries"] = list(place.queries)
    if isinstance(place, Zone) and place.dwell_s is not None:
        fields["dwell_s"] = place.dwell_s
    return fields
