"""The file of cameras: what it means, and what is said about each mistake."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import build_app
from groundstream.cameras.command import check_cameras
from groundstream.cameras.schema import read_runner_document, read_runner_file
from groundstream.cameras.settings import (
    CameraSettings,
    JsonLinesSettings,
    MqttSettings,
    RunnerSettings,
    WebhookSettings,
)
from groundstream.cameras.yaml_reader import Document
from groundstream.enums import AnswerMode, TaskKind
from groundstream.errors import SettingsError
from groundstream.scene_events import EventKind
from groundstream.types import Query
from groundstream.zones import Anchor, Unit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "cameras.md"
FULL = """
service: {target: "vision:50051", token: {env: TEST_TOKEN}, tls: {server_name: vision}}
state: kept
metrics: 127.0.0.1:9108
recordings:
  folder: pictures
  kinds: [line_crossed, DWELT]
  keep_days: 3
  keep_gigabytes: 1.5
  before_s: 2
cameras:
  gate:
    source: {env: TEST_GATE}
    fps: 10
    queries: [person, {ask: 'how many dogs?', id: dogs, task: count}]
    mode: ground
    zones:
      door: {points: [[0, 0], [100, 0], [100, 50]], unit: pixels, dwell_s: 3, queries: [person]}
    lines:
      kerb: {points: [[0, 0.5], [1, 0.5]]}
    events: {leave_s: 5, anchor: CENTRE, max_denials: null, counts: false, unsure_leave_s: null}
    sinks: [log]
    record: false
  yard: {source: yard.mp4, queries: [car], repeat: true}
sinks:
  log: {type: jsonl, path: events.jsonl}
  home: {type: mqtt, host: broker, topic: house/cameras, user: me, password: {file: password}}
  office:
    type: webhook
    url: https://office/hook
    secret: {env: TEST_SECRET}
    headers: {Authorization: {env: TEST_TOKEN}}
    kinds: [APPEARED]
    status: false
    queue_records: 50
"""
SMALL = "cameras: {a: {source: a.mp4, queries: [dog]}}\nsinks: {log: {type: jsonl, path: e}}\n"


def read(text: str, folder: Path) -> RunnerSettings:
    path = folder / "cameras.yaml"
    path.write_text(text)
    return read_runner_file(path)


def said(text: str, folder: Path) -> list[str]:
    """The lines about mistakes, without the file's name."""
    with pytest.raises(SettingsError) as caught:
        read(text, folder)
    return [line.removeprefix(f"{folder}/cameras.yaml:") for line in str(caught.value).split("\n")]


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunnerSettings:
    monkeypatch.setenv("TEST_TOKEN", "token-opensesame")
    monkeypatch.setenv("TEST_SECRET", "secret-opensesame")
    monkeypatch.setenv("TEST_GATE", "rtsp://me:opensesame@gate/1")
    (tmp_path / "password").write_text("password-opensesame\n")
    return read(FULL, tmp_path)


def test_what_a_full_file_means(full: RunnerSettings, tmp_path: Path) -> None:
    assert (full.service.target, full.service.token) == ("vision:50051", "token-opensesame")
    assert full.service.tls is not None
    assert full.service.tls.server_name == "vision"
    assert (full.state, full.metrics) == (tmp_path / "kept", ("127.0.0.1", 9108))
    assert full.recordings is not None
    assert full.recordings.kinds == {EventKind.LINE_CROSSED, EventKind.DWELT}
    assert full.recordings.keep_bytes == 1_500_000_000
    gate, yard = full.cameras["gate"], full.cameras["yard"]
    assert gate.source == "rtsp://me:opensesame@gate/1"
    assert gate.queries == (Query("person"), Query("how many dogs?", "dogs", TaskKind.COUNT))
    assert (gate.mode, gate.fps, gate.sinks, gate.record) == (
        AnswerMode.GROUND, 10.0, ("log",), False
    )  # fmt: skip
    (zone,), (line,) = gate.zones, gate.lines
    assert (zone.unit, zone.dwell_s, zone.queries) == (Unit.PIXELS, 3.0, ("person",))
    assert line.points == ((0.0, 0.5), (1.0, 0.5))
    assert (gate.events.leave_s, gate.events.anchor) == (5.0, Anchor.CENTRE)
    assert (gate.events.max_denials, gate.events.unsure_leave_s) == (None, None)
    assert not gate.events.counts
    usual = CameraSettings("yard", str(tmp_path / "yard.mp4"), (Query("car"),), repeat=True)
    assert yard == usual
    assert full.sinks["log"] == JsonLinesSettings("log", path=tmp_path / "events.jsonl")
    home, office = full.sinks["home"], full.sinks["office"]
    assert isinstance(home, MqttSettings)
    assert (home.port, home.topic, home.password) == (1883, "house/cameras", "password-opensesame")
    assert isinstance(office, WebhookSettings)
    assert (office.secret, office.max_records) == ("secret-opensesame", 50)
    assert office.headers == (("Authorization", "token-opensesame"),)
    assert (office.kinds, office.status) == ({EventKind.APPEARED}, False)


def test_secrets_are_not_shown(full: RunnerSettings) -> None:
    assert "opensesame" not in repr(full)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "is empty; docs/cameras.md has an example"),
        ("[1, 2]", "1:1: must be a mapping"),
        ("cameras: {a: [", "1:15: this is no YAML"),
        (SMALL + "sevice: {}\n", "3:1: sevice is no key here; did you mean service?"),
        (SMALL + "sinks: {}\n", "3:1: sinks is given twice"),
        (SMALL.replace("queries", "quries"), "1:14: cameras.a.queries is missing"),
        (SMALL.replace("queries", "quries"), "did you mean queries?"),
        (SMALL.replace("[dog]", "dog"), "cameras.a.queries must be a list"),
        (SMALL.replace("[dog]", "[]"), "say what to look for"),
        (SMALL.replace("[dog]", "[3]"), "1:40: cameras.a.queries[0] must be text; write it in"),
        (SMALL.replace("[dog]", r'["dog\ud800"]'), r"[0] contains '\ud800', which is no"),
        (SMALL.replace("[dog]", "[dog, dog]"), "two queries of one name"),
        (SMALL.replace("a.mp4", "'-'"), "standard input"),
        (SMALL.replace("[dog]", "[dog], fps: many"), "must be a number from 0.1 to 240"),
        (SMALL.replace("[dog]", "[dog], fps: 0"), "fps is 0 and must be from 0.1 to 240"),
        (SMALL.replace("[dog]", "[dog], repeat: 1"), "repeat must be true or false"),
        (SMALL.replace("[dog]", "[dog], mode: folow"), "did you mean FOLLOW?"),
        (SMALL.replace("[dog]", "[dog], sinks: [lag]"), "is 'lag'; the sinks of this file are log"),
        (SMALL.replace("[dog]", "[dog], lines: {l: {points: [[0, 0]]}}"), "needs 2"),
        (
            SMALL.replace("[dog]", "[dog], zones: {z: {points: [[0,0],[1,1],[1,0],[0,1]]}}"),
            "cameras.a.zones.z.points cannot be used: zone 'z': its border crosses itself",
        ),
        (
            SMALL.replace("[dog]", "[dog], zones: {z: {points: [[0,0],[9,1],[1,0]]}}"),
            "if these are pixels, add `unit: pixels`",
        ),
        (
            SMALL.replace("[dog]", "[dog], lines: {l: {points: [[0,0],[0,1]], queries: [cat]}}"),
            "is 'cat'; this camera asks dog",
        ),
        (SMALL.replace("[dog]", "[dog], events: {margin: 0.7}"), "margin is 0.7 and must be"),
        (SMALL.replace("a: {", "back yard: {"), "cameras.back yard is no name"),
        (SMALL.replace("jsonl", "json"), "sinks.log.type is 'json'; did you mean JSONL?"),
        (SMALL.replace("e}", "e, kinds: [CROSSED]}"), "did you mean LINE_CROSSED?"),
        (SMALL + "metrics: 9108\n", "3:10: metrics must be an address and a port"),
        (SMALL + "recordings: {folder: f, keep_days: -1}\n", "must be from 0 to 3650"),
        (SMALL + "recordings: {}\n", "3:13: recordings.folder is missing"),
        (SMALL + "service: {token: abc}\n", "a secret and does not belong in this file"),
        (SMALL + "service: {token: {env: NOT_THERE}}\n", "which is not set in the environment"),
        (SMALL + "service: {token: {file: nowhere}}\n", "cannot be read: No such file"),
        (SMALL + "service: {tls: {ca: nowhere.pem}}\n", "which is no file"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_a_remedy(
    text: str, mistake: str, tmp_path: Path
) -> None:
    lines = said(text, tmp_path)
    assert any(mistake in line for line in lines), lines


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SMALL.replace("[dog]", "[dog], fps: 0, repat: true").replace("jsonl", "json")
    places = [tuple(map(int, line.split(":")[:2])) for line in said(text, tmp_path)]
    assert len(places) == 3
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("sink", "mistake"),
    [
        ("{type: webhook, url: ftp://a}", "must be an http:// or https:// address"),
        ("{type: webhook, url: 'https://me:opensesame@a/'}", "holds a password"),
        ("{type: webhook, url: 'https://a/', secret: opensesame}", "does not belong in this file"),
        ("{type: webhook, url: 'https://a/', headers: {a: 5551212}}", "must be text"),
        ("{type: mqtt, host: h, port: 99999}", "port is 99999"),
        ("{type: mqtt, host: h, topic: 'a/+'}", "has no +, # or $ in it"),
        ("{type: mqtt, host: h, password: opensesame}", "does not belong in this file"),
    ],
)
def test_a_mistake_in_a_sink_is_told_without_its_secrets(
    sink: str, mistake: str, tmp_path: Path
) -> None:
    text = SMALL.split("sinks")[0] + f"sinks: {{s: {sink}}}\n"
    lines = said(text, tmp_path)
    assert any(mistake in line for line in lines), lines
    assert "opensesame" not in str(lines)
    assert "5551212" not in str(lines)


def test_cameras_can_share_what_they_have_in_common(tmp_path: Path) -> None:
    text = (
        "x-usual: &usual {queries: [dog, cat], fps: 5}\n"
        "cameras: {a: {<<: *usual, source: a.mp4}, b: {<<: *usual, source: b.mp4, fps: 2}}\n"
        "sinks: {log: {type: jsonl, path: e}}\n"
    )
    cameras = read(text, tmp_path).cameras
    assert [camera.fps for camera in cameras.values()] == [5.0, 2.0]
    assert cameras["a"].queries == cameras["b"].queries


def test_a_nest_of_aliases_costs_nothing(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(30)]
    nest = "x-n0: &n0 [dog]\n" + "".join(
        f"x-{name}: &{name} [*{before}, *{before}]\n" for before, name in itertools.pairwise(names)
    )
    lines = said(nest + SMALL.replace("[dog]", "*n29"), tmp_path)
    assert any("must be a mapping" in line for line in lines)


def test_every_key_is_described(full: RunnerSettings, tmp_path: Path) -> None:
    document = Document(tmp_path / "cameras.yaml")
    read_runner_document(document)
    keys = document.keys
    assert len(keys) > 60
    page = DOCS.read_text()
    described = set(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))
    names = {key.rpartition(".")[2] for key in keys}
    assert {name for name in names if name not in described} == set()
    for kind in EventKind:
        assert kind.value in (DOCS.parent / "events.md").read_text()


@pytest.mark.parametrize("name", ["examples/cameras.yaml", "deployments/cluster/cameras.yaml"])
def test_the_shipped_files_are_sound(name: str) -> None:
    settings = read_runner_file(ROOT / name)
    assert settings.cameras
    assert all(sink.path.suffix == ".jsonl" for sink in settings.sinks.values())  # type: ignore[attr-defined]


def test_the_shipped_example_plays_a_shipped_video() -> None:
    settings = read_runner_file(ROOT / "examples" / "cameras.yaml")
    assert all(Path(camera.source).is_file() for camera in settings.cameras.values())


def test_compose_runs_the_file_beside_it() -> None:
    compose = yaml.safe_load((ROOT / "deployments/cluster/compose.yaml").read_text())
    service = compose["services"]["cameras"]
    assert service["command"] == ["cameras", "/etc/groundstream/cameras.yaml"]
    assert ".:/etc/groundstream:ro" in service["volumes"]
    settings = read_runner_file(ROOT / "deployments/cluster/cameras.yaml")
    assert settings.service.target.split(":")[0] in compose["services"]
    assert settings.metrics is not None
    assert str(settings.metrics[1]) in service["ports"][0]
    (kept,) = (volume for volume in service["volumes"] if volume.startswith("cameras:"))
    assert settings.state.is_relative_to(kept.partition(":")[2])


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(SMALL)
    assert check_cameras(path) == f"{path} is sound: cameras a; sinks log"
    path.write_text(SMALL.replace("jsonl", "json"))
    with pytest.raises(SettingsError, match="did you mean JSONL"):
        check_cameras(path)
    shown = CliRunner().invoke(build_app(), ["cameras", "--help"])
    assert "--check" in shown.output
