"""Ray and Serve from their command lines, as one runs them on a cluster."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.integration.conftest import ROOT

_BIN = Path(sys.executable).parent
_DEPLOY_S = 120.0
_START_S = 420.0
_PAUSE_S = 1.0


def environment() -> dict[str, str]:
    """For all nodes of one cluster, and for nobody else: they share a secret."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    inherited = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    return inherited | {
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_worker_niceness": "0",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_timeout_ms": "5000",
    }


def ray_start(*arguments: str, folder: Path) -> list[str]:
    """`ray start` in the foreground, with little of everything; again where it gives up.

    It waits 30 s for its own parts, and for a head that is starting; a busy machine takes longer.
    """
    return [
        "sh", "-c", 'until "$@"; do sleep 1; done', "ray start",
        str(_BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={folder}",
        "--object-store-memory=100000000", *arguments,
    ]  # fmt: skip


def deploy(
    config: Path, dashboard: str, environment: dict[str, str], prefix: Sequence[str] = ()
) -> None:
    """`serve deploy`, tried again while the cluster is starting."""
    command = [*prefix, str(_BIN / "serve"), "deploy", str(config), "--address", dashboard]
    deadline_s = time.monotonic() + _START_S
    while True:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_DEPLOY_S, env=environment
        )
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline_s, done.stdout + done.stderr
        time.sleep(_PAUSE_S)
