"""Who is told what, and how sinks are exchanged while others go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from groundstream.cameras.records import camera_record, event_record, runner_record
from groundstream.cameras.settings import JsonLinesSettings, SinkSettings, WebhookSettings
from groundstream.cameras.telling import Telling
from groundstream.errors import SettingsError
from groundstream.scene_events import EventKind, SceneEvent
from tests.camera_runs import lines
from tests.receivers import Record, free_port
from tests.waiting import until


def event(number: int, kind: EventKind) -> Record:
    told = SceneEvent(f"e{number}", kind, "dog", number, number, number, number)
    return event_record("gate", told, {})


def told_in(path: Path) -> list[str]:
    return [record.get("what") or record["event"]["kind"] for record in lines(path)]


def jsonl(name: str, folder: Path, **more: object) -> JsonLinesSettings:
    return JsonLinesSettings(name, path=folder / f"{name}.jsonl", **more)


def change(telling: Telling, *settings: SinkSettings) -> None:
    telling.change(telling.prepare({one.name: one for one in settings}), 1.0)


def test_each_sink_gets_what_it_wants(tmp_path: Path) -> None:
    telling = Telling(tmp_path)
    change(
        telling,
        jsonl("all", tmp_path),
        jsonl("few", tmp_path, kinds=frozenset({EventKind.DWELT}), status=False),
        jsonl("other", tmp_path),
    )
    records = [
        camera_record("gate", "STARTED"),
        event(1, EventKind.APPEARED),
        event(2, EventKind.DWELT),
        event(3, EventKind.RETRACTED),
    ]
    telling.tell(records, ["all", "few"])
    telling.tell([runner_record("STOPPED")])
    telling.stop(5.0)
    assert told_in(tmp_path / "all.jsonl") == [
        "STARTED", "APPEARED", "DWELT", "RETRACTED", "STOPPED"
    ]  # fmt: skip
    assert told_in(tmp_path / "few.jsonl") == ["DWELT", "RETRACTED"]
    assert told_in(tmp_path / "other.jsonl") == ["STOPPED"]


def test_a_sink_that_changes_keeps_what_waits_for_it(tmp_path: Path) -> None:
    telling = Telling(tmp_path)
    away = WebhookSettings("office", url=f"http://127.0.0.1:{free_port()}/", timeout_s=1.0)
    change(telling, away, jsonl("log", tmp_path))
    log = telling.told["log"].delivery
    telling.tell([event(number, EventKind.DWELT) for number in range(5)])
    until(lambda: telling.told["office"].delivery.is_away)
    # The same name, now a file; the other sink is not touched.
    change(telling, jsonl("office", tmp_path), jsonl("log", tmp_path))
    assert telling.told["log"].delivery is log
    until(lambda: len(lines(tmp_path / "office.jsonl")) == 5)
    # Removed while it waits, and there again.
    change(telling, away, jsonl("log", tmp_path))
    telling.tell([event(5, EventKind.DWELT)])
    change(telling, jsonl("log", tmp_path))
    assert set(telling.told) == {"log"}
    change(telling, jsonl("office", tmp_path), jsonl("log", tmp_path))
    until(lambda: len(lines(tmp_path / "office.jsonl")) == 6)
    telling.stop(5.0)
    assert [record["number"] for record in lines(tmp_path / "office.jsonl")] == list(range(1, 7))


def test_a_sink_that_cannot_be_opened_changes_nothing(tmp_path: Path) -> None:
    telling = Telling(tmp_path)
    change(telling, jsonl("log", tmp_path))
    before = telling.told["log"]
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    bad = WebhookSettings("office", url="https://127.0.0.1/", ca=wrong)
    changed = dataclasses.replace(before.settings, max_records=7)
    with pytest.raises(SettingsError, match=r"sinks\.office\.ca"):
        telling.prepare({"log": changed, "office": bad})
    assert telling.told == {"log": before}
    telling.tell([event(1, EventKind.DWELT)])
    until(lambda: told_in(tmp_path / "log.jsonl") == ["DWELT"])
    telling.stop(5.0)
