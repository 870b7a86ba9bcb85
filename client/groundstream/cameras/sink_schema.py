"""The keys of the sinks in a file of cameras; `docs/cameras.md` describes each."""

from __future__ import annotations

import re
import urllib.parse
from enum import Enum
from pathlib import Path
from typing import Any

from groundstream.cameras.settings import (
    JsonLinesSettings,
    MqttSettings,
    SinkSettings,
    WebhookSettings,
)
from groundstream.cameras.yaml_reader import Section, Value
from groundstream.scene_events import EventKind

_MAX_SINKS = 32
_MAX_HEADERS = 32
_MB = 1_000_000
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class SinkType(Enum):
    """What a sink may be."""

    JSONL = "jsonl"
    MQTT = "mqtt"
    WEBHOOK = "webhook"


def sink_names(root: Section) -> list[str]:
    """Also of sinks with mistakes, so that these are told once."""
    value = root.find("sinks")
    return [] if value is None else [name for name, _ in value.section().named(_MAX_SINKS)]


def read_sinks(value: Value | None) -> dict[str, SinkSettings]:
    """Settings of all sinks, by name."""
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
            "kinds": None if kinds is None else read_kinds(kinds),
            "status": section.flag("status", True),
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
    for name, value in [] if headers is None else headers.section().named(_MAX_HEADERS):
        text = value.secret(in_clear=True)
        if not _HEADER.fullmatch(name) or "\r" in text or "\n" in text or not text.isascii():
            value.problem("is no header of HTTP: a name without spaces, a value on one line")
        pairs.append((name, text))
    return WebhookSettings(
        **usual,
        url=address,
        secret="" if secret is None else secret.secret(),
        headers=tuple(pairs),
        ca=read_path(section, "ca"),
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
        ca=read_path(section, "ca"),
        timeout_s=section.number("timeout_s", 10.0, 0.1, 120.0),
    )


def read_kinds(value: Value) -> frozenset[EventKind]:
    """A list of kinds of events."""
    return frozenset(item.choice(EventKind.APPEARED) for item in value.items())


def read_path(section: Section, name: str) -> Path | None:
    """A file that is there; None: the key is not."""
    value = section.find(name)
    if value is None:
        return None
    path = value.located(value.text())
    if not path.is_file():
        value.problem(f"names {path}, which is no file")
    return path
