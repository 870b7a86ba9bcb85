"""The keys of a file of cameras; `docs/cameras.md` describes each."""

from __future__ import annotations

import dataclasses
import math
import re
import urllib.parse
from enum import Enum
from pathlib import Path
from typing import Any

from groundstream.cameras.settings import (
    CameraSettings,
    JsonLinesSettings,
    MqttSettings,
    RecordingSettings,
    RunnerSettings,
    ServiceSettings,
    SinkSettings,
    WebhookSettings,
)
from groundstream.cameras.yaml_reader import Document, Section, Value
from groundstream.channel import TlsOptions
from groundstream.enums import AnswerMode, TaskKind
from groundstream.errors import EventsError
from groundstream.event_detector import EventSettings
from groundstream.scene_events import EventKind
from groundstream.types import Query
from groundstream.zones import Anchor, Line, Unit, Zone

_MAX_CAMERAS = 256
_MAX_SINKS = 32
_MAX_SHAPES = 64
_MAX_POINTS = 256
_DAY_S = 86_400.0
_HOUR_S = 3600.0
_MB = 1_000_000
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_RECORDED = frozenset(
    {EventKind.APPEARED, EventKind.LINE_CROSSED, EventKind.ZONE_ENTERED, EventKind.DWELT}
)


class SinkType(Enum):
    """What a sink may be."""

    JSONL = "jsonl"
    MQTT = "mqtt"
    WEBHOOK = "webhook"


def read_runner_file(path: Path) -> tuple[RunnerSettings, frozenset[str]]:
    """What a file of cameras says, and the keys that it could have had.

    Raises:
        SettingsError: it cannot be read, or something in it is wrong: one line for each mistake
            with file, line, column and key.
    """
    document = Document(path)
    root = document.root
    service = _service(root.find("service"))
    state = root.find("state")
    recordings = root.find("recordings")
    settings = RunnerSettings(
        service=service,
        state=path.parent / "state" if state is None else state.located(state.text("state")),
        metrics=_metrics(root.find("metrics")),
        recordings=None if recordings is None else _recordings(recordings.section()),
        sinks=_sinks(root.need("sinks")),
        cameras=_cameras(root.need("cameras"), _sink_names(root)),
    )
    root.close(ignored_prefix="x-")
    document.check()
    return settings, frozenset(document.keys)


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
        _path(section, "ca"),
        _path(section, "certificate"),
        _path(section, "key"),
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
        kinds=_RECORDED if kinds is None else _kinds(kinds),
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


# ---- sinks ----


def _sinks(value: Value | None) -> dict[str, SinkSettings]:
    if value is None:
        return {}
    found: dict[str, SinkSettings] = {}
    for name, entry in value.section().named(_MAX_SINKS):
        section = entry.section()
        kind = section.need("type")
        if kind is None:
            continue
        kinds = section.find("kinds")
        usual: dict[str, Any] = {
            "name": name,
            "kinds": None if kinds is None else _kinds(kinds),
            "max_records": section.whole("queue_records", 100_000, 10, 10_000_000),
            "max_bytes": _MB * section.whole("queue_megabytes", 64, 1, 100_000),
        }
        sink_type = kind.choice(SinkType.JSONL)
        if sink_type is SinkType.WEBHOOK:
            found[name] = _webhook(section, usual)
        elif sink_type is SinkType.MQTT:
            found[name] = _mqtt(section, usual)
        else:
            path = section.need("path")
            located = Path() if path is None else path.located(path.text("events.jsonl"))
            found[name] = JsonLinesSettings(**usual, path=located)
        section.close()
    return found


def _webhook(section: Section, usual: dict[str, Any]) -> WebhookSettings:
    url, secret, headers = section.need("url"), section.find("secret"), section.find("headers")
    address = "" if url is None else url.secret(in_clear=True)
    if url is not None and address:
        try:
            parts = urllib.parse.urlsplit(address)
            is_sound = parts.scheme in ("http", "https") and bool(parts.hostname)
            has_password = parts.password is not None or parts.username is not None
            _ = parts.port
        except ValueError:
            is_sound = has_password = False
        if not is_sound:
            url.problem("must be an http:// or https:// address")
        elif has_password:
            url.problem("holds a password; send it in `headers`, from {env: ...} or {file: ...}")
    pairs = []
    for name, value in [] if headers is None else _free_keys(headers):
        text = value.secret(in_clear=True)
        if not _HEADER.fullmatch(name) or "\r" in text or "\n" in text or not text.isascii():
            value.problem("is no header of HTTP: a name without spaces, a value on one line")
        pairs.append((name, text))
    return WebhookSettings(
        **usual,
        url=address,
        secret="" if secret is None else secret.secret(),
        headers=tuple(pairs),
        ca=_path(section, "ca"),
        timeout_s=section.number("timeout_s", 10.0, 0.1, 120.0),
    )


def _mqtt(section: Section, usual: dict[str, Any]) -> MqttSettings:
    host, password, topic = section.need("host"), section.find("password"), section.find("topic")
    tls = section.flag("tls", False)
    prefix = "groundstream" if topic is None else topic.text("groundstream")
    if topic is not None and (set(prefix) & set("+#\0") or prefix.startswith("$")):
        topic.problem("is a topic to publish to and has no +, # or $ in it")
    return MqttSettings(
        **usual,
        host="" if host is None else host.text(),
        port=section.whole("port", 8883 if tls else 1883, 1, 65535),
        topic=prefix.strip("/"),
        client_id=section.text("client_id"),
        user=section.text("user"),
        password="" if password is None else password.secret(),
        tls=tls,
        ca=_path(section, "ca"),
        timeout_s=section.number("timeout_s", 10.0, 0.1, 120.0),
    )


# ---- cameras ----


def _cameras(value: Value | None, sinks: list[str]) -> dict[str, CameraSettings]:
    found = {}
    for name, entry in [] if value is None else value.section().named(_MAX_CAMERAS):
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
    settings = CameraSettings(
        name=name,
        source="" if source is None else _source(source),
        queries=tuple(asked),
        fps=None if fps is None else fps.number(10.0, 0.1, 240.0),
        repeat=section.flag("repeat", False),
        mode=section.choice("mode", AnswerMode.FOLLOW),
        max_age_ms=section.number("max_age_ms", 0.0, 0.0, _HOUR_S * 1e3),
        zones=tuple(
            shape
            for shape in _shapes(section.find("zones"), True, names)
            if isinstance(shape, Zone)
        ),
        lines=tuple(
            shape
            for shape in _shapes(section.find("lines"), False, names)
            if isinstance(shape, Line)
        ),
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


def _shapes(value: Value | None, is_zone: bool, names: list[str]) -> list[Zone | Line]:
    found: list[Zone | Line] = []
    for name, entry in [] if value is None else value.section().named(_MAX_SHAPES):
        section = entry.section()
        points, queries = section.need("points"), section.find("queries")
        corners = [] if points is None else [_point(item) for item in points.items()[:_MAX_POINTS]]
        unit = section.choice("unit", Unit.SHARES)
        dwell = section.find("dwell_s") if is_zone else None
        concerned = [] if queries is None else queries.items()
        for item in concerned:
            if (query := item.text()) and query not in names:
                item.problem(f"is {query!r}; this camera asks {', '.join(names) or 'nothing'}")
        section.close()
        wanted = tuple(item.text() for item in concerned)
        if None in corners or points is None:
            continue
        sound: Any = tuple(corners)
        try:
            if is_zone:
                dwell_s = None if dwell is None else dwell.number(0.0, 0.0, _DAY_S)
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


# ---- parts ----


def _kinds(value: Value) -> frozenset[EventKind]:
    return frozenset(item.choice(EventKind.APPEARED) for item in value.items())


def _path(section: Section, name: str) -> Path | None:
    value = section.find(name)
    if value is None:
        return None
    path = value.located(value.text())
    if not path.is_file():
        value.problem(f"names {path}, which is no file")
    return path


def _free_keys(value: Value) -> list[tuple[str, Value]]:
    return value.section().named(32)


def _sink_names(root: Section) -> list[str]:
    value = root.find("sinks")
    return [] if value is None else [name for name, _ in value.section().named(_MAX_SINKS)]
