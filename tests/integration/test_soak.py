"""The soak in short, with fake stages: the command a developer types, its checks and its JSON.

Runs where SOAK_MINUTES says for how long (`make test-long`: three).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, write_fake_config

_MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
_TIMEOUT_S = 240.0 + 60.0 * _MINUTES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _MINUTES, reason="SOAK_MINUTES says nothing"),
    pytest.mark.timeout(_TIMEOUT_S + 60.0),
]


async def test_some_time_of_everything(empty_model: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "REDIS_URL"} | {"PYTHONPATH": path}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.soak", "--minutes", str(_MINUTES), "--clients", "4",
        "--config", str(write_fake_config(empty_model, tmp_path)), "--logs", str(tmp_path / "soak"),
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, messages = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, messages.decode(errors="replace")[-4000:]
    summary = json.loads(output.decode().splitlines()[-1])
    assert summary["wrong"] == []
    assert len(summary["kills"]) >= 2
    assert summary["redis_restarts"] >= 1
    assert summary["results"]["good"] > 50
    assert len(summary["lives"]) >= 5
