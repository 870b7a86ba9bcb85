"""Queues and sinks of the camera runner against receivers that fail in every way."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundstream.cameras import delivery as delivery_module
from groundstream.cameras.delivery import Delivery, SinkAway
from groundstream.cameras.outbox import Outbox
from groundstream.cameras.settings import JsonLinesSettings, MqttSettings, WebhookSettings
from groundstream.cameras.signatures import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    is_authentic,
    sign,
)
from groundstream.cameras.sinks import JsonLines, open_sink
from groundstream.cameras.webhook import Webhook
from groundstream.errors import SettingsError
from tests.receivers import Broker, WebReceiver, free_port
from tests.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses for tests."""
    monkeypatch.setattr(delivery_module, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(delivery_module, "_MAX_PAUSE_S", 0.2)


def opened(path: Path, *, max_records: int = 1000, max_bytes: int = 1_000_000) -> Outbox:
    return Outbox(path / "queue.sqlite", max_records=max_records, max_bytes=max_bytes)


def put(outbox: Outbox, *ids: int) -> None:
    for number in ids:
        outbox.put([{"id": f"r{number}", "type": "event", "camera": "gate"}])


def ids(records: list[dict[str, str]]) -> list[str]:
    return [record["id"] for record in records]


def balance(outbox: Outbox) -> tuple[int, int, int, int, int]:
    books = outbox.books
    return books.accepted, books.delivered, books.refused, books.overflowed, books.waiting


# ---- the queue ----


def test_what_waits_outlives_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from groundstream.cameras.outbox import Outbox;"
        "outbox = Outbox(Path(sys.argv[1]), max_records=100, max_bytes=10000);"
        "[outbox.put([{'id': f'r{n}', 'type': 'event'}]) for n in range(5)];"
        "outbox.done(outbox.peek(2)); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "queue.sqlite")], check=False)
    assert done.returncode == -9
    outbox = opened(tmp_path)
    assert balance(outbox) == (5, 2, 0, 0, 3)
    waiting = [json.loads(record.body) for record in outbox.peek(10)]
    assert ids(waiting) == ["r2", "r3", "r4"]
    assert [record["number"] for record in waiting] == [3, 4, 5]
    put(outbox, 5)
    assert json.loads(outbox.peek(10)[-1].body)["number"] == 6
    outbox.close()


def test_what_overflows_is_counted_and_told_in_its_place(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_records=10)
    put(outbox, *range(1, 4))
    in_flight = outbox.peek(2)
    put(outbox, *range(4, 16))
    outbox.done(in_flight)  # Not among the lost: it had been sent already.
    assert balance(outbox) == (15, 2, 0, 5, 8)
    outbox.close()
    outbox = opened(tmp_path, max_records=10)
    found = [json.loads(record.body) for record in outbox.peek(20)]
    lost, *rest = found
    assert (lost["type"], lost["first_number"], lost["last_number"], lost["count"]) == (
        "lost", 3, 7, 5
    )  # fmt: skip
    assert [record["number"] for record in rest] == list(range(8, 16))
    batch = outbox.peek(20)
    outbox.done(batch[:1])
    assert json.loads(outbox.peek(1)[0].body)["number"] == 8
    assert balance(outbox) == (15, 2, 0, 5, 8)
    outbox.close()


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    outbox = opened(tmp_path, max_bytes=2000)
    for number in range(20):
        outbox.put([{"id": str(number), "type": "event", "more": "x" * 500}])
    accepted, _, _, overflowed, waiting = balance(outbox)
    assert (accepted, overflowed + waiting) == (20, 20)
    assert 1 <= waiting <= 4
    outbox.close()


def test_a_full_disk_keeps_records_in_memory_and_counts_what_is_too_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened(tmp_path, max_records=100_000, max_bytes=100_000_000)
    put(outbox, 0)
    # SQLite's own limit gives the error of a full disk.
    pages = outbox._database.execute("PRAGMA page_count").fetchone()[0]
    outbox._database.execute(f"PRAGMA max_page_count={pages}")
    with caplog.at_level(logging.WARNING):
        for number in range(1, 1301):
            outbox.put([{"id": f"r{number}", "type": "event", "more": "x" * 100}])
    assert "full" in caplog.text
    num_unsaved = outbox.num_unsaved
    assert 900 < num_unsaved <= 1000
    accepted, delivered, _, overflowed, waiting = balance(outbox)
    assert accepted == 1301
    assert overflowed > 200
    assert accepted == delivered + overflowed + waiting
    # What is in memory is delivered all the same, after what the disk had taken before.
    batch = outbox.peek(2000)
    told = [json.loads(record.body) for record in batch]
    assert (told[0]["type"], told[0]["count"]) == ("lost", overflowed)
    assert told[1]["id"] == "r0"
    outbox.done(batch[:500])
    assert outbox.books.delivered == 499
    outbox._database.execute("PRAGMA max_page_count=1000000")
    put(outbox, 1301)
    assert outbox.num_unsaved == 0
    outbox.close()
    outbox = opened(tmp_path, max_records=100_000, max_bytes=100_000_000)
    accepted, delivered, _, overflowed, waiting = balance(outbox)
    assert (accepted, delivered) == (1302, 499)
    assert waiting == len(outbox.peek(5000)) == accepted - delivered - overflowed
    outbox.close()


def test_a_damaged_queue_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "queue.sqlite").write_bytes(b"no database at all " * 100)
    outbox = opened(tmp_path)
    put(outbox, 1)
    assert balance(outbox) == (1, 0, 0, 0, 1)
    assert "damaged" in caplog.text
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    outbox.close()


# ---- signatures ----


def test_a_signature_holds_for_its_body_its_time_and_its_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    stamp, body = "1799999990", b'{"id": "r1"}'
    signature = sign("secret", stamp, body)
    # By another implementation: printf '%s.%s' STAMP BODY | openssl dgst -sha256 -hmac secret
    expected = "v1=" + _EXPECTED
    assert signature == expected
    assert is_authentic("secret", stamp, body, signature)
    assert not is_authentic("other", stamp, body, signature)
    assert not is_authentic("secret", stamp, body + b" ", signature)
    assert not is_authentic("secret", "1799999991", body, signature)
    assert not is_authentic("secret", "not a time", body, signature)
    assert not is_authentic("secret", stamp, body, "v1=ä")
    monkeypatch.setattr("time.time", lambda: 1_800_000_400.0)
    assert not is_authentic("secret", stamp, body, signature)


_EXPECTED = "d1303989983decaf16f5c8ab4f65d0c26562869d40cfa3fedd0bb1b300dfb460"


def test_the_receiver_on_the_page_accepts_what_is_signed_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cameras.md").read_text()
    (code,) = re.findall(r"```python\n(import hashlib.*?)```", page, re.DOTALL)
    known: dict[str, Any] = {}
    exec(code, known)
    body, stamp = b'{"id": "r1"}', str(int(time.time()))
    headers = {TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: sign("secret", stamp, body)}
    assert known["is_authentic"]("secret", headers, body)
    assert not known["is_authentic"]("other", headers, body)
    assert not known["is_authentic"]("secret", headers, body + b" ")
    old = str(int(time.time()) - 1000)
    headers = {TIMESTAMP_HEADER: old, SIGNATURE_HEADER: sign("secret", old, body)}
    assert not known["is_authentic"]("secret", headers, body)


# ---- webhooks ----


@pytest.fixture
def web() -> Iterator[WebReceiver]:
    receiver = WebReceiver()
    yield receiver
    receiver.stop()


def posting(web: WebReceiver, outbox: Outbox, timeout_s: float = 2.0) -> Delivery:
    settings = WebhookSettings(
        "office", url=web.url, secret="opensesame", headers=(("X-Key", "hush"),),
        timeout_s=timeout_s,
    )  # fmt: skip
    return Delivery("office", outbox, Webhook(settings))


def test_a_webhook_gets_signed_records_in_order(web: WebReceiver, tmp_path: Path) -> None:
    web.start()
    outbox = opened(tmp_path)
    delivery = posting(web, outbox)
    put(outbox, *range(30))
    until(lambda: len(web.requests) == 30)
    delivery.stop(1.0)
    assert ids(web.records) == [f"r{number}" for number in range(30)]
    for headers, body in web.requests:
        stamp, signature = headers[TIMESTAMP_HEADER], headers[SIGNATURE_HEADER]
        assert is_authentic("opensesame", stamp, body, signature)
        assert headers["X-Key"] == "hush"
    assert balance(outbox) == (30, 30, 0, 0, 0)
    outbox.close()


def test_a_webhook_that_is_away_gets_all_when_it_is_back(
    web: WebReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened(tmp_path)
    delivery = posting(web, outbox)
    put(outbox, 1, 2)
    until(lambda: delivery.num_failures >= 3)
    assert delivery.is_away
    web.start()
    until(lambda: len(web.requests) == 2)
    web.stop()
    put(outbox, 3)
    web.start()  # The connection that was kept is a dead one now.
    until(lambda: len(web.requests) >= 3)
    delivery.stop(1.0)
    assert ids(web.records) == ["r1", "r2", "r3"]
    assert not delivery.is_away
    assert balance(outbox) == (3, 3, 0, 0, 0)
    assert "opensesame" not in caplog.text
    assert "hush" not in caplog.text
    outbox.close()


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503, 301])
def test_what_may_pass_is_tried_again(status: int, web: WebReceiver, tmp_path: Path) -> None:
    web.answer = lambda _: (status if web.num_asked <= 3 else 200, {"Location": "/other"})
    web.start()
    outbox = opened(tmp_path)
    delivery = posting(web, outbox)
    put(outbox, 1, 2)
    until(lambda: len(web.requests) == 2)
    delivery.stop(1.0)
    assert web.num_asked == 5
    assert delivery.num_failures == 3
    assert balance(outbox) == (2, 2, 0, 0, 0)
    outbox.close()


def test_what_is_refused_is_counted_and_does_not_stop_the_rest(
    web: WebReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web.answer = lambda record: (400 if record["id"] == "r2" else 200, {})
    web.start()
    outbox = opened(tmp_path)
    delivery = posting(web, outbox)
    put(outbox, 1, 2, 3)
    until(lambda: len(web.requests) == 2)
    delivery.stop(1.0)
    assert ids(web.records) == ["r1", "r3"]
    assert balance(outbox) == (3, 2, 1, 0, 0)
    assert "refuses record 2" in caplog.text
    outbox.close()


def test_a_receiver_says_how_long_to_wait(web: WebReceiver, tmp_path: Path) -> None:
    web.answer = lambda _: (503, {"Retry-After": "7"})
    web.start()
    outbox = opened(tmp_path)
    put(outbox, 1)
    sink = Webhook(WebhookSettings("office", url=web.url))
    with pytest.raises(SinkAway, match="status 503") as caught:
        sink.send(outbox.peek(1))
    assert caught.value.retry_after_s == 7.0
    web.answer = lambda _: (503, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})
    with pytest.raises(SinkAway) as caught:
        sink.send(outbox.peek(1))
    assert caught.value.retry_after_s is None
    sink.close()
    outbox.close()


def test_a_receiver_that_never_answers_is_given_up(web: WebReceiver, tmp_path: Path) -> None:
    hang = threading.Event()
    web.answer = lambda _: (200, {}) if hang.wait(5.0) else (500, {})
    web.start()
    outbox = opened(tmp_path)
    delivery = posting(web, outbox, timeout_s=0.2)
    put(outbox, 1)
    until(lambda: delivery.num_failures >= 1)
    hang.set()
    until(lambda: outbox.books.delivered == 1)
    delivery.stop(1.0)
    outbox.close()


def test_a_stop_is_not_kept_by_a_receiver_that_is_away(web: WebReceiver, tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    delivery = posting(web, outbox)
    put(outbox, *range(5))
    until(lambda: delivery.num_failures >= 1)
    delivery.stop(0.2)
    assert balance(outbox) == (5, 0, 0, 0, 5)
    outbox.close()


# ---- files ----


def test_lines_are_added_and_half_a_line_spoils_none(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id": "old"}\n{"id": "ha')
    outbox = opened(tmp_path)
    delivery = Delivery("log", outbox, JsonLines(JsonLinesSettings("log", path=path)))
    put(outbox, 1)
    until(lambda: outbox.books.delivered == 1)
    path.rename(tmp_path / "moved.jsonl")  # As logrotate does.
    put(outbox, 2)
    until(lambda: outbox.books.delivered == 2)
    delivery.stop(1.0)
    lines = (tmp_path / "moved.jsonl").read_text().splitlines()
    assert lines[:2] == ['{"id": "old"}', '{"id": "ha']
    assert [json.loads(lines[2])["id"], json.loads(path.read_text())["id"]] == ["r1", "r2"]
    outbox.close()


def test_a_file_on_a_full_disk_is_away_until_there_is_room(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from groundstream.cameras.delivery import SinkAway;"
        "from groundstream.cameras.outbox import Waiting;"
        "from groundstream.cameras.settings import JsonLinesSettings;"
        "from groundstream.cameras.sinks import JsonLines;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY));"
        "sink = JsonLines(JsonLinesSettings('log', path=Path(sys.argv[1])));"
        "sink.send([Waiting(1, b'x' * 700)])\n"
        "try: sink.send([Waiting(2, b'y' * 700)])\n"
        "except SinkAway as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "sink.send([Waiting(2, b'y' * 700)])"
    )
    path = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert path.read_text() == "x" * 700 + "\n" + "y" * 700 + "\n"


# ---- MQTT ----


@pytest.fixture
def broker() -> Iterator[Broker]:
    pytest.importorskip("paho.mqtt.client")
    receiver = Broker()
    yield receiver
    receiver.stop()


def publishing(broker: Broker, outbox: Outbox, **more: object) -> Delivery:
    from groundstream.cameras.mqtt import MqttPublisher

    settings = MqttSettings(
        "home", host="127.0.0.1", port=broker.port, topic="house", user="me",
        password="opensesame", timeout_s=1.0, **more,
    )  # fmt: skip
    return Delivery("home", outbox, MqttPublisher(settings))


def test_a_broker_gets_records_by_topic_and_knows_whether_we_are_there(
    broker: Broker, tmp_path: Path
) -> None:
    broker.start()
    outbox = opened(tmp_path)
    delivery = publishing(broker, outbox)
    put(outbox, *range(50))
    outbox.put([{"id": "s", "type": "runner"}])
    until(lambda: outbox.books.delivered == 51)
    assert broker.retained == {"house/status": b"online"}
    assert broker.credentials == [("me", "opensesame")]
    delivery.stop(1.0)
    assert ids(broker.records) == [*(f"r{number}" for number in range(50)), "s"]
    topics = [topic for topic, _ in broker.published if not topic.endswith("/status")]
    assert topics == ["house/gate/event"] * 50 + ["house/runner/runner"]
    assert broker.retained == {"house/status": b"offline"}
    outbox.close()


def test_a_broker_that_is_killed_gets_the_rest_when_it_is_back(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = opened(tmp_path)
    delivery = publishing(broker, outbox)
    put(outbox, 1)
    until(lambda: delivery.num_failures >= 2)
    broker.start()
    until(lambda: outbox.books.delivered == 1)
    broker.stop()
    until(lambda: broker.retained == {"house/status": b"offline"})  # Its last will.
    put(outbox, 2, 3)
    until(lambda: delivery.is_away)
    broker.start()
    until(lambda: outbox.books.delivered == 3)
    until(lambda: broker.retained == {"house/status": b"online"})
    delivery.stop(1.0)
    assert list(dict.fromkeys(ids(broker.records))) == ["r1", "r2", "r3"]
    assert "opensesame" not in caplog.text
    outbox.close()


def test_what_a_broker_does_not_acknowledge_is_not_delivered(
    broker: Broker, tmp_path: Path
) -> None:
    broker.is_silent = True
    broker.start()
    outbox = opened(tmp_path)
    delivery = publishing(broker, outbox)
    put(outbox, 1)
    until(lambda: delivery.num_failures >= 1)
    assert balance(outbox) == (1, 0, 0, 0, 1)
    broker.is_silent = False
    until(lambda: outbox.books.delivered == 1)
    delivery.stop(1.0)
    outbox.close()


def test_a_broker_that_refuses_us_is_away(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker.refuses = 5
    broker.start()
    outbox = opened(tmp_path)
    delivery = publishing(broker, outbox)
    put(outbox, 1)
    until(lambda: delivery.num_failures >= 1)
    assert "ot authorized" in caplog.text
    broker.refuses = 0
    until(lambda: outbox.books.delivered == 1)
    delivery.stop(1.0)
    outbox.close()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"sinks\.home needs paho-mqtt; pip install"):
        open_sink(MqttSettings("home", host="127.0.0.1"))


def test_nobody_listens_there(tmp_path: Path) -> None:
    sink = Webhook(WebhookSettings("office", url=f"http://127.0.0.1:{free_port()}/"))
    outbox = opened(tmp_path)
    put(outbox, 1)
    with pytest.raises(SinkAway, match="Connection refused"):
        sink.send(outbox.peek(1))
    outbox.close()
    assert os.listdir(tmp_path)
