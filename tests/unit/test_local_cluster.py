"""What a local service starts, whom it lets in, and what it does when a part of it dies."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import ray
import redis
from ray import serve

from agent.settings import CacheSettings, ServiceSettings
from deployments.local import ray_cluster, supervisor
from deployments.local.embedded_cache import EmbeddedCache
from groundstream.errors import SettingsError, StageUnavailable


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "ENVIRONMENT", {})
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr(ray_cluster, "_RAY_PAUSE_S", 0.01)


def test_ray_that_does_not_start_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []

    def init(**_options: object) -> NoReturn:
        time.sleep(0.05)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    deadline_s = time.monotonic() + 0.2
    with pytest.raises(StageUnavailable, match=r"timed out during startup.* less to do"):
        ray_cluster._start_ray(
            ServiceSettings(model="pocket"), tmp_path, deadline_s=deadline_s, report=said.append
        )
    assert len(said) >= 2
    assert "trying for" in said[0]


def test_a_folder_whose_name_is_too_long_for_sockets_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(**_options: object) -> NoReturn:
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: '...'")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SettingsError, match="set TMPDIR"):
        ray_cluster._start_ray(
            ServiceSettings(model="pocket"),
            tmp_path,
            deadline_s=time.monotonic() + 60.0,
            report=pytest.fail,
        )


def test_ray_is_started_again_while_there_is_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[dict[str, Any]] = []
    said: list[str] = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(serve, "start", lambda **_options: None)
    ray_cluster._start_ray(
        ServiceSettings(model="pocket"),
        tmp_path,
        deadline_s=time.monotonic() + 60.0,
        report=said.append,
    )
    assert (len(tries), len(said)) == (3, 2)
    # Ray opens its folder to everybody.
    assert Path(tries[-1]["_temp_dir"]).parent == tmp_path


def test_the_embedded_cache_is_its_owners_alone_and_comes_back(tmp_path: Path) -> None:
    cache = EmbeddedCache(CacheSettings(budget_bytes=10_000_000), tmp_path)
    cache.start()
    try:
        client = redis.Redis.from_url(cache.url)
        assert client.ping()
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE((tmp_path / "cache.sock").stat().st_mode) == 0o700
        client.set("a", "1")
        process = cache._server._process
        assert process is not None
        cache.keep_running()
        assert cache._server._process is process
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache.keep_running()
        assert redis.Redis.from_url(cache.url).ping()
    finally:
        cache.stop()


def test_a_dead_ray_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_WATCH_S", 0.01)
    gone: list[str] = []
    monkeypatch.setattr(ray_cluster, "dead_ray_processes", lambda: gone)
    timer = threading.Timer(0.1, gone.append, ["raylet"])
    timer.start()
    reason = ray_cluster.watch_over(threading.Event(), None, patience_s=60.0)
    assert reason == "Ray's raylet ended"


def test_a_service_that_no_frame_gets_through_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_WATCH_S", 0.01)
    monkeypatch.setattr(ray_cluster, "_READY_S", 0.02)
    monkeypatch.setattr(ray_cluster, "dead_ray_processes", list)
    answers = iter([True, False, True])
    monkeypatch.setattr(ray_cluster, "_is_serving", lambda: next(answers, False))
    reason = ray_cluster.watch_over(threading.Event(), None, patience_s=0.2)
    assert reason is not None
    assert reason.startswith("no frame got through")


def test_a_service_that_is_told_to_stop_has_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_WATCH_S", 0.01)
    monkeypatch.setattr(ray_cluster, "dead_ray_processes", list)
    ended = threading.Event()
    threading.Timer(0.05, ended.set).start()
    assert ray_cluster.watch_over(ended, None, patience_s=60.0) is None


class _Dying:
    """A service that ends as soon as it is asked whether it runs."""

    target = "127.0.0.1:1"

    def __init__(self, num_deaths: int) -> None:
        self.num_starts = 0
        self._num_deaths = num_deaths

    def start(self) -> float:
        self.num_starts += 1
        return 0.1

    def stop(self) -> None:
        pass

    def is_running(self) -> bool:
        if self._num_deaths:
            self._num_deaths -= 1
            return False
        os.kill(os.getpid(), signal.SIGINT)
        return True

    def why_ended(self) -> str:
        return "Ray's raylet ended"


def test_a_service_that_died_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PARENT_POLL_S", 0.01)
    said: list[str] = []
    service = _Dying(2)
    supervisor.serve_forever(service, report=said.append)  # type: ignore[arg-type]
    assert service.num_starts == 3
    assert [line for line in said if "again after" in line]


def test_a_service_that_dies_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PARENT_POLL_S", 0.01)
    service = _Dying(9)
    with pytest.raises(StageUnavailable, match=r"raylet ended.*4th time"):
        supervisor.serve_forever(service, report=lambda _line: None)  # type: ignore[arg-type]
    assert service.num_starts == 4


def test_a_port_that_is_let_go_soon_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_PARENT_POLL_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as dying:
        port = dying.getsockname()[1]
        with pytest.raises(SettingsError, match="is a service running there"):
            supervisor.check_port_is_free("127.0.0.1", port)
        threading.Timer(0.1, dying.close).start()
        supervisor.check_port_is_free("127.0.0.1", port, patience_s=10.0)
