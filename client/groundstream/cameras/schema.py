"""The keys of a file of cameras; `docs/cameras.md` describes each."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from groundstream.cameras.settings import (
    CameraSettings,
    RecordingSettings,
    RunnerSettings,
    ServiceSettings,
)
from groundstream.cameras.sink_schema import read_kinds, read_path, read_sinks, sink_names
from groundstream.cameras.yaml_reader import Document, Section, Value
from groundstream.channel import TlsOptions
from groundstream.enums import AnswerMode, TaskKind
from groundstream.errors import EventsError
from groundstream.event_detector import EventSettings
from groundstream.scene_events import EventKind
from groundstream.types import Query
from groundstream.zones import Anchor, Line, Unit, Zone

MAX_CAMERAS = 256
MAX_PLACES = 64
"""Zones of one camera, and lines as well."""
MAX_POINTS = 256
MAX_DWELL_S = 86_400.0
_DAY_S = 86_400.0
_HOUR_S = 3600.0
_MB = 1_000_000
_RECORDED = frozenset(
    {EventKind.APPEARED, EventKind.LINE_CROSSED, EventKind.ZONE_ENTERED, EventKind.DWELT}
)


def read_runner_file(path: Path) -> RunnerSettings:
    """What a file of cameras says.

    Raises:
        SettingsError: it cannot be read, or something in it is wrong: one line for each mistake
            with file, line, column and key.
    """
    return read_runner_document(Document(path))


def read_runner_document(document: Document) -> RunnerSettings:
    """The same of a document, which then knows every key that it could have had.

    Raises:
        SettingsError: something in it is wrong.
    """
    root, folder = document.root, document.path.parent
    service = _service(root.find("service"))
    state = root.find("state")
    recordings = root.find("recordings")
    settings = RunnerSettings(
        service=service,
        state=folder / "state" if state is None else state.located(state.text("state")),
        metrics=_metrics(root.find("metrics")),
        recordings=None if recordings is None else _recordings(recordings.section()),
        sinks=read_sinks(root.need("sinks")),
        cameras=_cameras(root.need("cameras"), sink_names(root)),
    )
    root.close(ignored_prefix="x-")
    document.check()
    return settings


def read_cameras(path: Path) -> dict[str, CameraSettings]:
    """The cameras alone of a runner's file, by name; what else it says is passed over.

    Raises:
        SettingsError: it cannot be read, or something about its cameras is wrong.
    """
    document = Document(path)
    cameras = _cameras(document.root.need("cameras"), sink_names(document.root))
    document.check()
    return cameras


def _service(value: Value | None) -> ServiceSettings:
    if value is None:
        return ServiceSettings()
    section = value.section()
    token, tls = section.find("token"), section.find("tls")
    settings = ServiceSettings(
        target=section.text("target", ServiceSettings.target),
        token=None if token is None else token.secret() or None,
        tls=None if tls is None else _tls(tls),
    )
    section.close()
    return settings


def _tls(value: Value) -> TlsOptions | None:
    if value.is_text():
        return TlsOptions() if value.flag(False) else None
    section = value.section()
    options = TlsOptions(
        read_path(section, "ca"),
        read_path(section, "certificate"),
        read_path(section, "key"),
        section.text("server_name") or None,
    )
    section.close()
    return options


def _metrics(value: Value | None) -> tuple[str, int] | None:
    if value is None:
        return None
    text = str(value.node.value) if value.is_text() else ""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        value.problem("must be an address and a port, such as '127.0.0.1:9108'")
        return None
    return host.strip("[]"), int(port)


def _recordings(section: Section) -> RecordingSettings:
    folder, kinds = section.need("folder"), section.find("kinds")
    usual = RecordingSettings(Path(), _RECORDED)
    settings = RecordingSettings(
        folder=Path() if folder is None else folder.located(folder.text("recordings")),
        kinds=_RECORDED if kinds is None else read_kinds(kinds),
        snapshots=section.flag("snapshots", True),
        clips=section.flag("clips", True),
        before_s=section.number("before_s", usual.before_s, 0.0, 60.0),
        after_s=section.number("after_s", usual.after_s, 0.0, 60.0),
        max_s=section.number("max_s", usual.max_s, 1.0, 600.0),
        keep_days=section.number("keep_days", usual.keep_days, 0.0, 3650.0),
        keep_bytes=round(
            1000 * _MB * section.number("keep_gigabytes", usual.keep_bytes / 1e9, 0.0, 1e6)
        ),
        max_ring_bytes=_MB * section.whole("ring_megabytes", 32, 1, 1024),
    )
    section.close()
    return settings


# ---- cameras ----


def _cameras(value: Value | None, sinks: list[str]) -> dict[str, CameraSettings]:
    found = {}
    for name, entry in [] if value is None else value.section().named(MAX_CAMERAS):
        found[name] = _camera(name, entry.section(), sinks)
    if value is not None and not found:
        value.problem("has no cameras")
    return found


def _camera(name: str, section: Section, known_sinks: list[str]) -> CameraSettings:
    source, queries = section.need("source"), section.need("queries")
    fps, sinks = section.find("fps"), section.find("sinks")
    events = section.find("events")
    told = [] if sinks is None else [(item, item.text()) for item in sinks.items()]
    for item, sink in told:
        if sink and sink not in known_sinks:
            known = ", ".join(known_sinks) or "none"
            item.problem(f"is {sink!r}; the sinks of this file are {known}")
    asked = [] if queries is None else [_query(item) for item in queries.items()]
    if queries is not None and not asked:
        queries.problem("is empty; say what to look for, such as [person, car]")
    names = [query.name for query in asked]
    if queries is not None and len(set(names)) < len(names):
        queries.problem("has two queries of one name; give them different ids")
    zones, lines = read_places(section, names)
    settings = CameraSettings(
        name=name,
        source="" if source is None else _source(source),
        queries=tuple(asked),
        fps=None if fps is None else fps.number(10.0, 0.1, 240.0),
        repeat=section.flag("repeat", False),
        mode=section.choice("mode", AnswerMode.FOLLOW),
        max_age_ms=section.number("max_age_ms", 0.0, 0.0, _HOUR_S * 1e3),
        zones=zones,
        lines=lines,
        events=EventSettings() if events is None else _event_settings(events.section()),
        sinks=None if sinks is None else tuple(sink for _, sink in told),
        record=section.flag("record", True),
    )
    section.close()
    return settings


def _source(value: Value) -> str:
    text = value.secret(in_clear=True)
    if text == "-":
        value.problem("is standard input, which a camera runner does not read")
    if "://" in text or text.startswith("camera:") or not text:
        return text
    path, hash_mark, topic = text.partition("#")
    return f"{value.located(path)}{hash_mark}{topic}"


def _query(value: Value) -> Query:
    if value.is_text():
        return Query(value.text())
    section = value.section()
    ask = section.need("ask")
    query = Query(
        text="" if ask is None else ask.text(),
        id=section.text("id"),
        task=section.choice("task", TaskKind.DETECT),
    )
    section.close()
    return query


def read_places(
    section: Section, names: list[str] | None
) -> tuple[tuple[Zone, ...], tuple[Line, ...]]:
    """The zones and lines of a camera; what is wrong with them is noted in the document.

    Args:
        section: the camera.
        names: of its queries; None: they are not known, and any may be named.
    """
    zones = _shapes(section.find("zones"), True, names)
    lines = _shapes(section.find("lines"), False, names)
    return (
        tuple(zone for zone in zones if isinstance(zone, Zone)),
        tuple(line for line in lines if isinstance(line, Line)),
    )


def _shapes(value: Value | None, is_zone: bool, names: list[str] | None) -> list[Zone | Line]:
    found: list[Zone | Line] = []
    for name, entry in [] if value is None else value.section().named(MAX_PLACES):
        section = entry.section()
        points, queries = section.need("points"), section.find("queries")
        corners = [] if points is None else [_point(item) for item in points.items()[:MAX_POINTS]]
        unit = section.choice("unit", Unit.SHARES)
        dwell = section.find("dwell_s") if is_zone else None
        concerned = [] if queries is None else queries.items()
        for item in concerned:
            if (query := item.text()) and names is not None and query not in names:
                item.problem(f"is {query!r}; this camera asks {', '.join(names) or 'nothing'}")
        section.close()
        wanted = tuple(item.text() for item in concerned)
        if None in corners or points is None:
            continue
        sound: Any = tuple(corners)
        try:
            if is_zone:
                dwell_s = None if dwell is None else dwell.number(0.0, 0.0, MAX_DWELL_S)
                found.append(Zone(name, sound, unit, dwell_s, wanted))
            else:
                found.append(Line(name, sound, unit, wanted))
        except EventsError as error:
            words = str(error).partition("; pixels are written")
            remedy = "; if these are pixels, add `unit: pixels`" if words[1] else ""
            points.problem(f"cannot be used: {words[0]}{remedy}")
    return found


def _point(value: Value) -> tuple[float, float] | None:
    items = value.items()
    if len(items) != 2:
        value.problem("must be two numbers, [x, y]")
        return None
    x, y = (item.number(math.nan, -100_000.0, 100_000.0) for item in items)
    return None if math.isnan(x) or math.isnan(y) else (x, y)


def _event_settings(section: Section) -> EventSettings:
    given: dict[str, Any] = {}
    for name, usual in dataclasses.asdict(EventSettings()).items():
        value = section.find(name)
        if value is None:
            continue
        if isinstance(usual, Anchor):
            given[name] = value.choice(usual)
        elif isinstance(usual, bool):
            given[name] = value.flag(usual)
        elif name == "max_denials":
            given[name] = None if value.is_null() else value.whole(2, 1, 1000)
        elif name == "unsure_leave_s" and value.is_null():
            given[name] = None
        else:
            given[name] = value.number(usual, 0.0, 0.499 if name == "margin" else _DAY_S)
    section.close()
    return EventSettings(**given)
