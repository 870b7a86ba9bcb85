"""A service comes and goes without a trace, however it is ended; real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from agent.errors import CheckpointMismatch
from agent.settings import CacheSettings, load_serve_config
from deployments.app import bind
from deployments.local.service_process import free_port
from deployments.local.supervisor import LocalService
from groundstream.errors import SettingsError
from tests.integration.conftest import ROOT, fake_config, write_fake_config

SERVE = [sys.executable, "-m", "deployments.cli", "serve"]

_READY_S = 120.0
_GONE_S = 30.0


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("ready", signal.SIGKILL),  # Nobody is left to clean up but the session itself.
        ("starting", signal.SIGTERM),
    ],
)
def test_no_process_and_no_file_is_left(
    empty_model: Path, tmp_path: Path, when: str, number: signal.Signals
) -> None:
    temporary = Path("/tmp") / f"gs-{os.getpid()}-{number}"
    temporary.mkdir()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)}
    environment.pop("REDIS_URL", None)
    output = tmp_path / "output.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(
            [
                *SERVE,
                "--config",
                str(write_fake_config(empty_model, tmp_path)),
                "--port",
                str(free_port()),
            ],
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        wanted = "ready on" if when == "ready" else "starting on"
        _wait(lambda: wanted in output.read_text() or process.poll() is not None, _READY_S)
        assert wanted in output.read_text()
        if when == "starting":
            time.sleep(6.0)  # Ray is half up.
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.send_signal(number)
        process.wait(_GONE_S)
        _, alive = psutil.wait_procs(family, timeout=_GONE_S)
        assert not alive, [psutil.Process(p.pid).cmdline() for p in alive]
        _wait(lambda: not list(temporary.iterdir()), _GONE_S)
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        for left in temporary.iterdir():
            left.rename(tmp_path / left.name)
        temporary.rmdir()


def test_what_dies_is_started_again_and_an_interrupt_leaves_nothing(
    empty_model: Path, tmp_path: Path
) -> None:
    temporary = Path("/tmp") / f"gs-{os.getpid()}-w"
    temporary.mkdir()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)}
    environment.pop("REDIS_URL", None)
    output = tmp_path / "output.txt"
    config = str(write_fake_config(empty_model, tmp_path))
    with output.open("w") as stream:
        process = subprocess.Popen(
            [*SERVE, "--config", config, "--port", str(free_port())],
            env=environment,
            stdout=stream,
            stderr=stream,
        )
    try:
        _wait(lambda: "ready on" in output.read_text() or process.poll() is not None, _READY_S)
        (folder,) = temporary.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        cache = _named(process.pid, "valkey-server")
        assert [c for c in cache.net_connections() if c.family == socket.AF_INET] == []
        cache.kill()
        _wait(lambda: _named(process.pid, "valkey-server", but=cache.pid) is not None, _GONE_S)
        _named(process.pid, "raylet").kill()
        _wait(lambda: "again after" in output.read_text() or process.poll() is not None, _READY_S)
        assert "again after" in output.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(_GONE_S)
        _, alive = psutil.wait_procs(family, timeout=_GONE_S)
        assert not alive, [psutil.Process(p.pid).cmdline() for p in alive]
        _wait(lambda: not list(temporary.iterdir()), _GONE_S)
        assert "Traceback" not in output.read_text()
    finally:
        process.kill()
        for left in temporary.iterdir():
            left.rename(tmp_path / left.name)
        temporary.rmdir()


def _named(parent: int, name: str, but: int = 0) -> psutil.Process:
    """The process of that name below another; asked again while there is none."""
    for _ in range(300):
        for process in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith(name) and process.pid != but:
                    return process
        time.sleep(0.1)
    raise AssertionError(f"no {name}")


def test_a_taken_port_is_refused_at_once(empty_model: Path) -> None:
    config = fake_config(empty_model, CacheSettings())
    with socket.socket() as other:
        other.bind(("127.0.0.1", config.service.server.port))
        other.listen()
        service = LocalService(config)
        with pytest.raises(SettingsError, match="--port"):
            service.start()
        service.stop()


def test_a_model_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    service = LocalService(fake_config(tmp_path / "nothing", CacheSettings()))
    with pytest.raises(CheckpointMismatch, match="nothing"):
        service.start()
    service.stop()


def test_the_shipped_file_is_a_serve_config() -> None:
    path = ROOT / "deployments" / "serve_config.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = schema.applications
    assert application.import_path == "deployments.app:build"
    config = load_serve_config(path)
    names = [deployment.name for deployment in application.deployments]
    assert names == ["Ingress", "Proposal", "PrimaryEncoder", "AuxiliaryEncoder", "Language"]
    bind(config.service, config.deployments)


def test_numbers_for_an_unknown_deployment_are_refused() -> None:
    config = load_serve_config(ROOT / "deployments" / "serve_config.yaml")
    stray = dataclasses.replace(config.deployments[0], name="Nobody")
    with pytest.raises(SettingsError, match="Nobody"):
        bind(config.service, [*config.deployments, stray])


def _wait(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.1)
