"""The camera runner against a service, a broker and a web server that are killed and come back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from groundstream.cameras.runner import Runner
from groundstream.errors import SettingsError
from tests.camera_runs import (
    RunnerProcess,
    check_numbers,
    check_story,
    events_of,
    figures,
    light_service,
    lines,
    now_ns,
    of_what,
    write_light,
)
from tests.receivers import Broker, Record, WebReceiver, free_port
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]
EVENTS = {"appear_s": 0.2, "leave_s": 0.5}


@pytest.fixture
def web() -> Iterator[WebReceiver]:
    receiver = WebReceiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def broker() -> Iterator[Broker]:
    receiver = Broker()
    yield receiver
    receiver.stop()


def camera(source: Path | str, **more: object) -> dict[str, object]:
    return {"source": str(source), "queries": ["light"], "repeat": True, "events": EVENTS, **more}


def write(path: Path, content: dict[str, object]) -> None:
    """As an editor does: another file takes its place."""
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(content))
    os.replace(new, path)


@pytest.mark.skipif(
    "CAMERAS_MINUTES" not in os.environ, reason="`make test-long` sets CAMERAS_MINUTES"
)
async def test_a_service_a_receiver_and_the_runner_are_killed_and_nothing_is_lost_silently(
    tmp_path: Path, web: WebReceiver, broker: Broker
) -> None:
    pytest.importorskip("paho.mqtt.client")
    names = ["one", "two", "three"]
    videos = [write_light(tmp_path / f"{name}.mp4", seed=n) for n, name in enumerate(names)]
    port, metrics_port = free_port(), free_port()
    path, log = tmp_path / "cameras.yaml", tmp_path / "events.jsonl"
    sinks = {
        "log": {"type": "jsonl", "path": "events.jsonl"},
        "office": {"type": "webhook", "url": web.url, "timeout_s": 2},
        "home": {"type": "mqtt", "host": "127.0.0.1", "port": broker.port, "timeout_s": 2},
    }
    content = {
        "service": {"target": f"127.0.0.1:{port}"},
        "metrics": f"127.0.0.1:{metrics_port}",
        "recordings": {"folder": "kept", "before_s": 1, "after_s": 1, "kinds": ["APPEARED"]},
        "cameras": {
            name: camera(video) for name, video in zip(names, videos, strict=True)
        },
        "sinks": sinks,
    }  # fmt: skip
    write(path, content)
    web.start()
    broker.start()
    runner = RunnerProcess(path)
    runner.start()
    try:
        # The service is not there yet.
        await eventually(lambda: len(of_what(lines(log), "SERVICE_LOST")) == 3)
        async with light_service(port):
            await eventually(lambda: set(events_of(lines(log))) == set(names))
            for receiver in (web, broker):
                await eventually(lambda r=receiver: set(events_of(r.records)) == set(names))
            killed_ns = now_ns()
        await eventually(lambda: len(of_what(lines(log), "SERVICE_LOST", killed_ns)) == 3)
        async with light_service(port):
            await eventually(lambda: len(of_what(lines(log), "SERVICE_BACK", killed_ns)) == 3)
            back_ns = now_ns()
            await eventually(lambda: set(events_of(lines(log), back_ns)) == set(names))
            # Both receivers are away; the file goes on.
            web.stop()
            broker.stop()
            away_ns = now_ns()
            await eventually(lambda: set(events_of(lines(log), away_ns)) == set(names))
            for sink in ("office", "home"):
                waiting = f'groundstream_cameras_records_waiting{{sink="{sink}"}}'
                await eventually(lambda w=waiting: figures(metrics_port)[w] > 0)
            found = await asyncio.to_thread(figures, metrics_port)
            for name in names:
                label = f'{{camera="{name}"}}'
                assert found[f"groundstream_cameras_answered_total{label}"] > 0
                assert found[f"groundstream_cameras_service_lost_total{label}"] == 2
            # The runner is killed while they are.
            runner.kill()
            runner.start()
            web.start()
            broker.start()
            await eventually(lambda: len(of_what(lines(log), "STARTED")) >= 8)
            started_ns = now_ns()
            await eventually(lambda: set(events_of(web.records, started_ns)) == set(names))
            await eventually(lambda: set(events_of(broker.records, started_ns)) == set(names))
            status = await asyncio.to_thread(runner.end)
        assert status == 0, runner.log
    finally:
        runner.kill()
    told = lines(log)
    starts = [record for record in of_what(told, "STARTED") if record["type"] == "runner"]
    assert [record["ended_well"] for record in starts] == [True, False]
    # Every record of every sink has come, and the same ones to all of them.
    everything = {record["id"] for record in told}
    for records in (told, web.records, broker.records):
        check_numbers(records)
        check_story(records)
        assert {record["id"] for record in records} == everything
    # The books of every camera closed when it was stopped.
    stopped = of_what(told, "STOPPED")
    assert sorted(r["camera"] for r in stopped if r["type"] == "camera") == sorted(names)
    for record in stopped:
        assert record["type"] == "runner" or record["books"]["closed"], record
    # What was told to be recorded is there, or its failure was told.
    clips = {r["clip"] for records in events_of(told).values() for r in records if "clip" in r}
    finished = {r["name"] for r in told if r["type"] == "recording" and "bytes" in r}
    assert len(finished) >= 3
    assert all((tmp_path / "kept" / name).stat().st_size > 0 for name in finished)
    unfinished = clips - finished
    assert all(r["time_ns"] < started_ns for r in told if r.get("clip") in unfinished)
    assert list((tmp_path / "kept").rglob(".partial-*")) == []


class Live:
    """A runner in this process."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, path.parent / "events.jsonl"
        self.runner = Runner(path)
        self.task = asyncio.ensure_future(self.runner.run())

    def told(self, what: str) -> list[Record]:
        return of_what(lines(self.log), what)

    async def stop(self) -> None:
        self.runner.stop()
        await asyncio.wait_for(self.task, 60.0)


@pytest.fixture
async def service_port() -> AsyncIterator[int]:
    port = free_port()
    async with light_service(port):
        yield port


async def test_a_file_that_changes_is_taken_over(tmp_path: Path, service_port: int) -> None:
    videos = [write_light(tmp_path / f"{number}.mp4", seed=number) for number in range(3)]
    path = tmp_path / "cameras.yaml"
    content = {
        "service": {"target": f"127.0.0.1:{service_port}"},
        "cameras": {"stays": camera(videos[0]), "goes": camera(videos[1])},
        "sinks": {"log": {"type": "jsonl", "path": "events.jsonl"}},
    }
    write(path, content)
    live = Live(path)
    await eventually(lambda: set(events_of(lines(live.log))) == {"stays", "goes"})
    stays = live.runner.cameras["stays"]
    # A broken file: all goes on, and it is said why.
    path.write_text("cameras: {stays: {source: 0.mp4, quries: [light]}}\n")
    await eventually(lambda: live.told("RELOAD_REFUSED"))
    (refused,) = live.told("RELOAD_REFUSED")
    assert "did you mean queries?" in refused["reason"]
    assert not live.runner.is_file_sound
    refused_ns = now_ns()
    await eventually(lambda: set(events_of(lines(live.log), refused_ns)) == {"stays", "goes"})
    # One camera goes, one comes, one stays untouched; a sink comes.
    new_log = tmp_path / "more.jsonl"
    content["cameras"] = {"stays": camera(videos[0]), "comes": camera(videos[2])}
    content["sinks"] = {**content["sinks"], "more": {"type": "jsonl", "path": "more.jsonl"}}
    write(path, content)
    await eventually(lambda: live.told("RELOADED"))
    (taken,) = live.told("RELOADED")
    assert (taken["added"], taken["removed"], taken["changed"]) == (["comes"], ["goes"], [])
    assert live.runner.is_file_sound
    assert live.runner.cameras["stays"] is stays
    (stopped,) = live.told("STOPPED")
    assert (stopped["camera"], stopped["books"]["closed"]) == ("goes", True)
    await eventually(lambda: set(events_of(lines(new_log))) == {"stays", "comes"})
    # A camera changes: it alone begins anew.
    content["cameras"]["comes"] = camera(videos[2], fps=5, sinks=["more"])
    write(path, content)
    await eventually(lambda: len(live.told("RELOADED")) == 2)
    assert live.told("RELOADED")[1]["changed"] == ["comes"]
    assert live.runner.cameras["stays"] is stays
    changed_ns = now_ns()
    await eventually(lambda: "comes" in events_of(lines(new_log), changed_ns))
    await live.stop()
    assert "comes" not in events_of(lines(live.log), changed_ns)
    assert live.runner.num_reloads == 2
    check_numbers(lines(live.log))
    check_numbers(lines(new_log))


async def test_a_camera_that_is_not_there_is_waited_for(tmp_path: Path, service_port: int) -> None:
    video, path = tmp_path / "late.mp4", tmp_path / "cameras.yaml"
    content = {
        "service": {"target": f"127.0.0.1:{service_port}"},
        "cameras": {"late": camera(video, repeat=False)},
        "sinks": {"log": {"type": "jsonl", "path": "events.jsonl"}},
    }
    write(path, content)
    live = Live(path)
    await eventually(lambda: live.told("FAILED"))
    assert "late.mp4 does not exist" in live.told("FAILED")[0]["reason"]
    write_light(tmp_path / "new.mp4", seed=1).rename(video)
    # The video ends, and with it, as it is the only one, the runner.
    await asyncio.wait_for(live.task, 90.0)
    (ended,) = live.told("ENDED")
    assert ended["books"]["closed"]
    assert ended["books"]["pictures"] == 60
    assert events_of(lines(live.log))["late"]
    assert lines(live.log)[-1]["what"] == "STOPPED"


async def test_two_runners_do_not_share_their_state(tmp_path: Path, service_port: int) -> None:
    path = tmp_path / "cameras.yaml"
    content = {
        "service": {"target": f"127.0.0.1:{service_port}"},
        "cameras": {"one": camera(write_light(tmp_path / "one.mp4", seed=1))},
        "sinks": {"log": {"type": "jsonl", "path": "events.jsonl"}},
    }
    write(path, content)
    live = Live(path)
    await eventually(lambda: live.told("STARTED"))
    with pytest.raises(SettingsError, match="another runner uses"):
        await Runner(path).run()
    await live.stop()
    again = Live(path)
    await eventually(lambda: len([r for r in again.told("STARTED") if r["type"] == "runner"]) == 2)
    assert all(r.get("ended_well", True) for r in again.told("STARTED"))
    await again.stop()


def test_a_file_with_a_mistake_ends_with_status_two(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text("cameras: {}\nsinks: {}\n")
    runner = RunnerProcess(path)
    runner.start()
    assert runner._process is not None
    assert runner._process.wait(60.0) == 2
    assert "cameras.yaml:1:10: cameras has no cameras" in runner.log
    assert "Traceback" not in runner.log
