"""The whole service on one machine, started, watched over and stopped without a trace.

Ray and the cache run in a session of their own (`deployments/local/ray_cluster.py`); this process
stays small, takes the signals, and when `stop` returns no process of that session is left, however
its leader ended. All listens on the loopback interface, but for one port of each Serve replica,
which Ray binds to all interfaces and guards with this service's own token. Knows no Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.interrupts import interruptible, uninterruptible
from agent.model_directory import find_model
from agent.settings import ServeConfig, with_environment
from deployments.local import process_session
from groundstream.errors import AgentError, SettingsError, StageUnavailable

_logger = logging.getLogger(__name__)
_STOP_MARGIN_S = 15.0
_PARENT_POLL_S = 0.5
_PORT_PATIENCE_S = 60.0
"""A killed process keeps its sockets until its last thread is gone; that may take a while."""
_MAX_RESTARTS = 3
_RESTART_WINDOW_S = 600.0
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes Ray take 127.0.0.1 for this machine's address on Linux too; it reads this on import."""


class LocalService:
    """Started once, stopped once; may be stopped at any moment of its start."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        logs: Path | None = None,
        report: Callable[[str], object] = _logger.warning,
    ) -> None:
        """Prepare a service.

        Args:
            config: every number of it.
            logs: where the logs of all its processes are kept; None: they go with it.
            report: told what takes longer than it should.
        """
        self._report = report
        self._config = dataclasses.replace(
            config, service=with_environment(config.service, os.environ)
        )
        self._logs = logs
        self._folder: Path | None = None
        self._leader: subprocess.Popen[str] | None = None
        self._is_ready = False
        self._was_ready = False
        """Once in its life: the port is its own, if somebody has it still."""

    @property
    def target(self) -> str:
        """Where clients connect: host:port."""
        server = self._config.service.server
        return server.address

    def start(self) -> float:
        """Start everything and wait until a frame has gone all the way; returns seconds taken.

        Raises:
            SettingsError: the port is taken, or the settings do not fit together.
            CheckpointMismatch: there is no such model.
            StageUnavailable: a stage cannot start, or not in time.
        """
        started_s = time.monotonic()
        service = self._config.service
        service.server.check_address()
        find_model(service.model)
        check_port_is_free(
            service.server.host,
            service.server.port,
            patience_s=_PORT_PATIENCE_S if self._was_ready else 0.0,
        )
        # Only its owner may enter it, whatever Ray does to its own folder within.
        self._folder = Path(tempfile.mkdtemp(prefix="groundstream-"))
        self._leader = subprocess.Popen(
            [sys.executable, "-m", "deployments.local.ray_cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _LOOPBACK_ONLY,
            text=True,
            start_new_session=True,
        )
        assert self._leader.stdin is not None
        assert self._leader.stdout is not None
        self._leader.stdin.write(json.dumps(self._order(self._folder)) + "\n")
        self._leader.stdin.flush()
        while (reply := _reply(self._leader.stdout.readline())) is not None:
            self._report(reply)
        self._is_ready = self._was_ready = True
        return time.monotonic() - started_s

    def is_running(self) -> bool:
        """Whether the session's leader is alive."""
        return self._leader is not None and self._leader.poll() is None

    def why_ended(self) -> str:
        """What a service that is no longer running said last; empty: nothing."""
        leader = self._leader
        if leader is None or leader.poll() is None or leader.stdout is None:
            return ""
        reason = ""
        for line in leader.stdout:
            with contextlib.suppress(ValueError):
                reason = json.loads(line).get("ended", reason)
        return reason

    def stop(self) -> None:
        """Stop everything; what does not go in time is killed."""
        if self._leader is not None:
            self._end_session(self._leader)
            self._leader = None
            self._is_ready = False
        if self._folder is not None:
            self._keep_logs(self._folder)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _order(self, folder: Path) -> dict[str, object]:
        return {
            "args": dataclasses.asdict(self._config.service),
            "deployments": [dataclasses.asdict(entry) for entry in self._config.deployments],
            "folder": str(folder),
            "stop_within_s": self._stop_within_s,
        }

    @property
    def _stop_within_s(self) -> float:
        return self._config.service.server.drain_grace_s + _STOP_MARGIN_S

    def _end_session(self, leader: subprocess.Popen[str]) -> None:
        if self._is_ready:
            # The end of its input tells the leader to stop.
            assert leader.stdin is not None
            with contextlib.suppress(OSError):
                leader.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                leader.wait(timeout=self._stop_within_s)
        # The leader's id is the session's; children that outlived it are still in there.
        process_session.kill(leader.pid)
        with leader:
            pass  # Closes the pipes and collects the exit status.

    def _keep_logs(self, folder: Path) -> None:
        logs = folder / "ray" / "session_latest" / "logs"
        if self._logs is not None and logs.is_dir():
            shutil.copytree(logs, self._logs, dirs_exist_ok=True, ignore_dangling_symlinks=True)


def serve_forever(
    service: LocalService, *, report: Callable[[str], object], stop_with_parent: bool = False
) -> None:
    """Run the service until SIGINT or SIGTERM, or until the parent process is gone.

    A service whose Ray died is started again, with all that belongs to it.

    Args:
        service: not yet started.
        report: told one line when the service is ready and one when it stops.
        stop_with_parent: end with the process that started this one, however it ended.

    Raises:
        StageUnavailable: the service ended by itself too often.
    """
    parent = os.getppid()
    restarts_s: list[float] = []
    try:
        with interruptible():
            report(f"starting on {service.target} ...")
            took_s = service.start()
            report(f"ready on {service.target} after {took_s:.1f} s (Ctrl-C stops)")
            while not stop_with_parent or os.getppid() == parent:
                if not service.is_running():
                    restarts_s = _check_restarts(restarts_s, service.why_ended())
                    report("the service ended by itself; starting it again ...")
                    service.stop()
                    took_s = service.start()
                    report(f"ready on {service.target} again after {took_s:.1f} s")
                time.sleep(_PARENT_POLL_S)
    except KeyboardInterrupt:
        pass
    finally:
        with uninterruptible():
            report("stopping ...")
            service.stop()
            report("stopped")


def _check_restarts(restarts_s: list[float], reason: str) -> list[float]:
    """The moments of restarts of late, with one more.

    Raises:
        StageUnavailable: there were too many.
    """
    now_s = time.monotonic()
    recent = [moment_s for moment_s in restarts_s if now_s - moment_s < _RESTART_WINDOW_S]
    if len(recent) >= _MAX_RESTARTS:
        why = f" ({reason})" if reason else ""
        raise StageUnavailable(
            f"the service ended by itself{why}, for the {len(recent) + 1}th time within "
            f"{_RESTART_WINDOW_S / 60:.0f} minutes; see its messages above"
        )
    if reason:
        _logger.warning("the service ended: %s", reason)
    return [*recent, now_s]


def _reply(line: str) -> str | None:
    """What the leader is waiting for; None: it is ready. Raises what it says went wrong."""
    if not line:
        raise StageUnavailable("the service ended while it started; see its messages above")
    reply = json.loads(line)
    if reply.get("ready"):
        return None
    if "progress" in reply:
        return str(reply["progress"])
    kind: type[AgentError] = StageUnavailable
    if reply["error"] == SettingsError.__name__:
        kind = SettingsError
    raise kind(reply["message"])


def check_port_is_free(
    host: str, port: int, option: str = "--port", *, patience_s: float = 0.0
) -> None:
    """No other process listens there, and we may.

    Args:
        host: address.
        port: of it.
        option: chooses another port.
        patience_s: how long to wait for it to become free.

    Raises:
        SettingsError: otherwise; names the `option` that chooses another.
    """
    # Front-end replicas share their port, so a second service would silently share it too.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    until_s = time.monotonic() + patience_s
    while True:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
            return
        except OSError as error:
            if time.monotonic() < until_s:
                time.sleep(_PARENT_POLL_S)
                continue
            raise SettingsError(
                f"cannot listen on {host}:{port} ({error.strerror}); is a service running there? "
                f"Choose another with {option}"
            ) from error
